"""Padding masks: which visual tokens show the image, and which only the padding around it.

An image of another shape than the vision tower's square input is letterboxed: centred, with padding on
both sides of its short axis. That padding draws attention though it carries nothing, so its tokens get
m = 0 in the debiased score (arXiv 2508.17807).

A mask is float32 [rows * cols], row-major as the vision tower emits its tokens. Both rules below decide
in exact integers: a token on the threshold falls to the same side in every implementation.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgeprune.errors import InputError
from edgeprune.fields import Part

# Pillow's weights are whole numbers of 2^-22: 8 of 32 bits hold the pixel, two are for overflow.
_BITS = 22
# Up to here, weights times 2^23 and their sums fit into 64 bits.
_MAX_SIDE = 1 << 26


class PaddingMask(Part):
    """Which visual tokens show only padding, by an image's size; `none` where images are never padded.

    That says what a token is. Whether a selection goes by it is the plan's `debias`.
    """

    kind: Literal["none", "share", "bilinear"]
    threshold: float = Field(default=0.5, strict=True, ge=0, le=1)


def letterbox_valid(
    width: int, height: int, grid: tuple[int, int], threshold: float = 0.5
) -> NDArray[np.float32]:
    """The padding mask by each token's share of padding.

    Padding takes |W - H| / (2 * max(W, H)), not rounded, of the square on both sides of its short axis
    (arXiv 2508.17807). A token is padding where the padded share of its cell exceeds the threshold. The
    padding of both sides counts where a very elongated image is thinner than a cell.

    Args:
        width, height: of the image before letterboxing, in pixels.
        grid: (rows, cols) of visual tokens.
        threshold: 0 to 1. Published: 0.5 for FastV, HiMAP and TokenCarve, 0.01 for PyramidDrop.

    Returns:
        float32 [rows * cols], 1 where the token shows the image, 0 for padding. All 0 where the image
        is so elongated that no cell passes; the selection then takes padded tokens, lowest index first.

    Raises:
        InputError: a size is not positive or not whole, or the threshold is outside 0..1.
    """
    width, height = _check(width, height, grid, threshold)
    cells = grid[0] if width > height else grid[1]
    # In units of 1 / (2 * max(W, H)) of a cell, where the padding is an integer.
    cell = 2 * max(width, height)
    padding = abs(width - height) * cells
    before = [min(max(padding - index * cell, 0), cell) for index in range(cells)]
    padded = [(first + last) / cell for first, last in zip(before, reversed(before), strict=True)]
    return _spread([share <= threshold for share in padded], width > height, grid)


def letterbox_valid_bilinear(
    width: int, height: int, grid: tuple[int, int], threshold: float = 0.5
) -> NDArray[np.float32]:
    """The padding mask by shrinking the image's own mask, the rule published for SparseVLM.

    The square that the image is letterboxed into, of 1 where the image is and 0 elsewhere, is resized
    to the grid by Pillow's bilinear filter, which is a triangle as wide as two cells, and a token is valid
    where the result is at least the threshold. As published, the image stands (max - min) // 2 pixels
    behind the square's edge, so that an odd difference puts it half a pixel off the middle.

    The arithmetic is Pillow's for 8 bits: each pixel's weight is a whole number of 2^-22, rounded. At the
    published threshold the masks are therefore Pillow's own, also where half a token is padding.

    Args:
        width, height: of the image before letterboxing, in pixels; at most 2^26.
        grid: (rows, cols) of visual tokens.
        threshold: 0 to 1, published 0.5.

    Returns:
        float32 [rows * cols], 1 where the token shows the image, 0 for padding. All 0 where the image
        is too thin to reach any token.

    Raises:
        InputError: a size is not positive, not whole or too large, or the threshold is outside 0..1.
    """
    width, height = _check(width, height, grid, threshold)
    side, short = max(width, height), min(width, height)
    if side > _MAX_SIDE:
        raise InputError(f"the image's longer side is {side} pixels: expected at most {_MAX_SIDE}; crop it")
    cells = grid[0] if width > height else grid[1]
    first = (side - short) // 2
    # In units of 1 / (2 * cells) of a pixel, pixel p's centre and a token's centre are whole numbers, and so
    # is half the triangle's width, which is a cell, or a pixel where those are larger.
    reach = 2 * max(side, cells)
    valid = []
    for index in range(cells):
        centre = (2 * index + 1) * side
        low, high = (max((centre + edge) // (2 * cells), 0) for edge in (-reach, reach))
        pixels = np.arange(low, min(high + 1, side), dtype=np.int64)
        weights = np.maximum(reach - np.abs((2 * pixels + 1) * cells - centre), 0)
        total = int(weights.sum())
        rounded = ((weights << (_BITS + 1)) + total) // (2 * total)
        inside = int(rounded[(pixels >= first) & (pixels < first + short)].sum())
        # All of it is 1, though rounded weights may add up to a little less.
        valid.append(inside == int(rounded.sum()) or inside >= threshold * (1 << _BITS))
    return _spread(valid, width > height, grid)


def _spread(line: list[bool], down: bool, grid: tuple[int, int]) -> NDArray[np.float32]:
    """The mask of the grid from that of one line of cells, which runs down the rows or along the columns."""
    cells = np.array(line, dtype=np.float32)
    return np.broadcast_to(cells[:, None] if down else cells, grid).flatten()


def _check(width: int, height: int, grid: tuple[int, int], threshold: float) -> tuple[int, int]:
    """Refuses what is out of range; returns width and height as Python integers, which do not overflow."""
    _check_grid(grid)
    for name, size in (("width", width), ("height", height)):
        if not (size > 0 and math.isfinite(size)):
            raise InputError(f"the {name} is {size}: expected a number of pixels above 0; check the image")
    if not 0 <= threshold <= 1:
        raise InputError(
            f"the padding threshold is {threshold}: expected a share from 0 to 1; 0.5 is the usual one"
        )
    for name, size in (("width", width), ("height", height)):
        if size != int(size):
            raise InputError(f"the {name} is {size}: expected a whole number of pixels; round it")
    return int(width), int(height)


def _check_grid(grid: tuple[int, int]) -> None:
    if len(grid) != 2 or not all(isinstance(size, (int, np.integer)) and size > 0 for size in grid):
        raise InputError(
            f"the grid is {tuple(grid)}: expected (rows, cols), two whole numbers above 0; check the "
            "tile's grid"
        )
