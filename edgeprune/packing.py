"""The tiles of an image put together again, as its visual tokens: without their padding, and not too many.

The tiles' grids form one grid. What lies in rows, or columns, of nothing but padding is left out of it. What
is then left may be resampled to fewer tokens. Floats are computed in the order in which the published models
compute them: another order rounds otherwise.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Grids up to this share of sqrt(tokens allowed) stay as they are.
_TOLERATED = 1.1


class Unpadded(NamedTuple):
    """What is left of a grid of (rows, columns): those from `top` and from `left` on."""

    top: int
    left: int
    grid: tuple[int, int]


def unpadded(width: int, height: int, grid: tuple[int, int]) -> Unpadded:
    """What is left of a grid over a canvas, with an image of this shape in its middle.

    Args:
        width, height: of the image, in pixels.
        grid: (rows, columns).
    """
    rows, columns = grid
    if width / height > columns / rows:
        shown = int(round(height * (columns / width), 7))
        top = (rows - shown) // 2
        return Unpadded(top, 0, (rows - 2 * top, columns))
    shown = int(round(width * (rows / height), 7))
    left = (columns - shown) // 2
    return Unpadded(0, left, (rows, columns - 2 * left))


def resampled(grid: tuple[int, int], most: int | None) -> tuple[int, int]:
    """The grid that one of (rows, columns) is resampled to, where it should have at most `most` tokens.

    Where it has less than a fifth more it stays.
    """
    rows, columns = grid
    ratio = 0.0 if most is None else math.sqrt(rows * columns / most)
    return (int(rows // ratio), int(columns // ratio)) if ratio > _TOLERATED else grid


def most_packed(grid: tuple[int, int], most: int | None) -> int:
    """No image of such a grid is packed into more visual tokens, newlines included."""
    rows, columns = grid
    whole = rows * columns
    return rows + (whole if most is None else min(whole, math.ceil(most * _TOLERATED**2)))


def pack_taps(
    left: Unpadded, whole: tuple[int, int], grid: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Which cells of the whole grid each cell of a resampled one is the weighted sum of.

    Bilinear, by the centres of cells.

    Args:
        left: of the whole grid.
        whole: its (rows, columns).
        grid: of the resampled one.

    Returns:
        int64 and float32 [rows, columns, 4], cells of the whole grid in row-major order, and weights.
    """
    (rows, down), (columns, across) = map(_taps, grid, left.grid)
    index = (left.top + rows)[:, None, :, None] * whole[1] + (left.left + columns)[None, :, None, :]
    weight = down[:, None, :, None] * across[None, :, None, :]
    return index.reshape(*grid, 4), weight.reshape(*grid, 4)


def _taps(cells: int, of: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Along one axis: int64 and float32 [cells, 2]."""
    scale = np.float32(of) / np.float32(max(cells, 1))
    source = scale * (np.arange(cells, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    source = np.maximum(source, np.float32(0))
    low = np.minimum(source.astype(np.int64), max(of - 1, 0))
    share = source - low.astype(np.float32)
    index = np.stack([low, np.minimum(low + 1, max(of - 1, 0))], axis=-1)
    return index, np.stack([np.float32(1) - share, share], axis=-1).astype(np.float32)
