"""Padding masks: which visual tokens show the picture, and which only the padding around it.

A picture of another shape than the vision tower's square input is letterboxed: centred, with padding on
both sides of its short axis. That padding draws attention though it carries nothing, so its tokens get
m = 0 in the debiased score (arXiv 2508.17807).

A mask is float32 [rows * cols], row-major as the vision tower emits its tokens. Both rules below decide
in exact integers: a token on the threshold falls to the same side in
every implementation, and a mask is symmetric about the picture's centre.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import InputError

if TYPE_CHECKING:
    from edgeprune.manifest import PaddingMask, Preprocessing


def letterbox_valid(
    width: int, height: int, grid: tuple[int, int], resolution: float, threshold: float = 0.5
) -> NDArray[np.float32]:
    """The padding mask by each token's share of padding.

    Padding takes |W - H| / (2 * max(W, H)) * R, not rounded, on both sides of the short axis of the
    square of side R (arXiv 2508.17807). A token is padding where the padded share of its cell exceeds
    the threshold. The padding of both sides counts where a very elongated picture is thinner than a cell.
    R cancels out of the share, so the result does not depend on it.

    Args:
        width, height: of the picture before letterboxing, in pixels.
        grid: (rows, cols) of visual tokens.
        resolution: R, the side of the vision tower's input in pixels.
        threshold: 0 to 1. Published: 0.5 for FastV, HiMAP and TokenCarve, 0.01 for PyramidDrop.

    Returns:
        float32 [rows * cols], 1 where the token shows the picture, 0 for padding. All 0 where the picture
        is so elongated that no cell passes; the selection then takes padded tokens, lowest index first.

    Raises:
        InputError: a size is not positive, width or height is not whole, or the threshold is outside 0..1.
    """
    width, height = _check(width, height, grid, resolution, threshold)
    cells = grid[0] if width > height else grid[1]
    # In units of 1 / (2 * max(W, H)) of a cell, where the padding is an integer.
    cell = 2 * max(width, height)
    padding = abs(width - height) * cells
    before = [min(max(padding - index * cell, 0), cell) for index in range(cells)]
    padded = [(first + last) / cell for first, last in zip(before, reversed(before), strict=True)]
    return _spread([share <= threshold for share in padded], width > height, grid)


def letterbox_valid_bilinear(
    width: int, height: int, grid: tuple[int, int], resolution: int, threshold: float = 0.5
) -> NDArray[np.float32]:
    """The padding mask by shrinking the square picture mask, the rule published for SparseVLM.

    Each of R x R pixels is 1 where its centre lies in the picture; this mask is resized bilinearly to
    the grid (half-pixel centres, no antialiasing, as torch's interpolate with align_corners=False), and
    a token is valid where the result is at least the threshold.

    Args:
        width, height: of the picture before letterboxing, in pixels.
        grid: (rows, cols) of visual tokens.
        resolution: R, the side of the vision tower's input, a whole number of pixels.
        threshold: 0 to 1, published 0.5.

    Returns:
        float32 [rows * cols], 1 where the token shows the picture, 0 for padding. All 0 where the picture
        is too thin to reach any token.

    Raises:
        InputError: a size is not positive or not whole, or the threshold is outside 0..1.
    """
    width, height = _check(width, height, grid, resolution, threshold)
    _check_whole("resolution", resolution)
    side = int(resolution)
    cells = grid[0] if width > height else grid[1]
    # Pixel p's centre, (p + 1/2) / R, against the padding |W - H| / (2 * max(W, H)), cleared of fractions.
    padding = abs(width - height) * side
    inside = [(2 * min(p, side - 1 - p) + 1) * max(width, height) >= padding for p in range(side)]
    # A token's centre lies at pixel ((2 * index + 1) * R - cells) / (2 * cells), held at the first pixel.
    valid = []
    for index in range(cells):
        left, share = divmod(max((2 * index + 1) * side - cells, 0), 2 * cells)
        right = min(left + 1, side - 1)
        value = (2 * cells - share) * inside[left] + share * inside[right]
        valid.append(value >= threshold * 2 * cells)
    return _spread(valid, width > height, grid)


def visual_valid(width: int, height: int, spec: Preprocessing, mask: PaddingMask) -> NDArray[np.float32]:
    """The padding mask of one picture's visual tokens, as its preprocessing leaves it.

    All ones unless the preprocessing letterboxes and the mask's kind is not "none". A centre crop after the
    letterboxing moves the padding with it: the crop shows a picture of another shape, letterboxed too. The
    crop must not be larger than the letterboxed square, since its black margin would be padding of another
    kind; the exporter refuses such a preprocessing. Where resized and cropped side differ by an odd number
    the crop is half a pixel off centre, which is not followed; nor are the few pixels that a tower leaves
    out at the right and bottom when its patches do not divide the picture.

    Args:
        width, height: of the picture before preprocessing, in pixels.
        spec: the model's preprocessing.
        mask: the rule.

    Returns:
        float32 [rows * cols], row-major: 1 where the token shows the picture, 0 for padding.

    Raises:
        InputError: the size is not positive.
    """
    if not spec.pad_to_square or mask.kind == "none":
        return full_valid(spec.grid)
    wide = width > height
    long, short = max(int(width), int(height)), min(int(width), int(height))
    # Along the axis that is padded: the side of the whole square after resizing, and what the crop leaves.
    edge = spec.resize_shortest_edge or long
    resized = (spec.resize_to or (edge, edge))[0 if wide else 1]
    cropped = (spec.center_crop or spec.image_size)[0 if wide else 1]
    # The picture takes short / long * resized of cropped pixels: cleared of fractions, its shape in the crop.
    long, short = long * cropped, min(short * resized, long * cropped)
    width, height = (long, short) if wide else (short, long)
    if mask.kind == "bilinear":
        return letterbox_valid_bilinear(width, height, spec.grid, cropped, mask.threshold)
    return letterbox_valid(width, height, spec.grid, cropped, mask.threshold)


def full_valid(grid: tuple[int, int]) -> NDArray[np.float32]:
    """The mask of a picture without padding: float32 ones [rows * cols].

    Raises:
        InputError: the grid is not two positive whole numbers.
    """
    _check_grid(grid)
    return np.ones(grid[0] * grid[1], dtype=np.float32)


def _spread(line: list[bool], down: bool, grid: tuple[int, int]) -> NDArray[np.float32]:
    """The mask of the grid from that of one line of cells, which runs down the rows or along the columns."""
    cells = np.array(line, dtype=np.float32)
    return np.broadcast_to(cells[:, None] if down else cells, grid).flatten()


def _check(
    width: int, height: int, grid: tuple[int, int], resolution: float, threshold: float
) -> tuple[int, int]:
    """Refuses what is out of range; returns width and height as Python integers, which do not overflow."""
    _check_grid(grid)
    for name, size in (("width", width), ("height", height), ("resolution", resolution)):
        if not (size > 0 and math.isfinite(size)):
            raise InputError(f"the {name} is {size}: expected a number of pixels above 0; check the picture")
    if not 0 <= threshold <= 1:
        raise InputError(
            f"the padding threshold is {threshold}: expected a share from 0 to 1; 0.5 is the usual one"
        )
    for name, size in (("width", width), ("height", height)):
        _check_whole(name, size)
    return int(width), int(height)


def _check_whole(name: str, size: float) -> None:
    if size != int(size):
        raise InputError(f"the {name} is {size}: expected a whole number of pixels; round it")


def _check_grid(grid: tuple[int, int]) -> None:
    if len(grid) != 2 or not all(isinstance(size, (int, np.integer)) and size > 0 for size in grid):
        raise InputError(
            f"the grid is {tuple(grid)}: expected (rows, cols), two whole numbers above 0; check the "
            "preprocessing's grid"
        )
