"""What the vision graph reads beside `pixel_values`: numbers that follow from the images' layouts alone.

A graph whose shapes do not depend on data is handed what its model's own code would compute of the images'
sizes. A graph that reads tiles and gives their tokens in order needs nothing. One that puts tiles together
gets:

- `pack_index` int64 [visual, 1 or 4]: what each visual token is made of; 0 is the newline, n the (n - 1)th
  of the tiles' tokens, tile by tile;
- `pack_weight` float32 [visual, 4]: how much of each; where images may be resampled, else each is one.

One whose videos have a tower of their own gets `token_row` int64 [visual]: the number of each visual token
among those of all tiles, and behind them those of all frames.

One that reads patches gets its rows, one for each visual token's square of patches, window by window where
its layers have windows, and further inputs, int64 where nothing else is said:

- `patch_position` [visual, patches of a square, 2]: each patch's row and column in its block;
- `block_slots` [blocks, slots]: the rows of each block, whose patches see each other; -1 fills up;
- `block_place` [visual]: where in the slots of all blocks each row stands;
- `window_slots`, `window_place`: the same of windows, which have `window` x `window` slots;
- `token_row` [visual]: the row of each visual token, in the layout's order;
- `table_index`, `table_weight` (float32) [visual, patches of a square, 4]: the entries of the table of
  learned positions that each patch's position is a weighted sum of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.image_program import ImageProgram, PackedTokens, PatchFeed
from edgeprune.interface import (
    BLOCK_PLACE,
    BLOCK_SLOTS,
    FRAME_VALUES,
    PACK_INDEX,
    PACK_WEIGHT,
    PATCH_POSITION,
    TABLE_INDEX,
    TABLE_WEIGHT,
    TOKEN_ROW,
    WINDOW_PLACE,
    WINDOW_SLOTS,
)
from edgeprune.layout import ImageLayout
from edgeprune.packing import Unpadded, pack_taps, unpadded
from edgeprune.video_program import VideoProgram


def vision_inputs(
    program: ImageProgram, images: Sequence[ImageLayout], video: VideoProgram | None = None
) -> dict[str, NDArray[Any]]:
    """The further inputs of the vision graph, by name, as `interface.vision_interface` states them, but for
    `frame_values`.

    Args:
        program: of the bundle.
        images: of one run, in the order of their `pixel_values`; videos among them.
        video: of the bundle; None for none.
    """
    if video is not None and video.own_tower:
        return {TOKEN_ROW: _rows_of_two_towers(images, program.tokens_per_tile)}
    if isinstance(program.tokens, PackedTokens):
        return _pack(program.tokens, images)
    if not isinstance(program.feed, PatchFeed):
        return {}
    feed, side = program.feed, program.unit[0] // program.feed.size
    grids = [block.grid for image in images for block in image.blocks]
    windows = [windows_of(grid, feed.window) for grid in grids]
    orders = [np.concatenate(of_grid) for of_grid in windows]
    positions = [_patch_position(grid, side)[order] for grid, order in zip(grids, orders, strict=True)]
    slots, place = _segments([len(order) for order in orders])
    found: dict[str, NDArray[Any]] = {
        PATCH_POSITION: np.concatenate(positions),
        BLOCK_SLOTS: slots,
        BLOCK_PLACE: place,
    }
    if feed.window is not None:
        lengths = [len(window) for of_grid in windows for window in of_grid]
        found[WINDOW_SLOTS], found[WINDOW_PLACE] = _segments(lengths, feed.window**2)
        firsts = np.cumsum([0, *(len(order) for order in orders[:-1])])
        rows = [first + np.argsort(order) for first, order in zip(firsts, orders, strict=True)]
        found[TOKEN_ROW] = np.concatenate(rows).astype(np.int64)
    if feed.table is not None:
        taps = [_table_taps(*pair, side, feed.table) for pair in zip(positions, grids, strict=True)]
        found[TABLE_INDEX] = np.concatenate([index for index, _ in taps])
        found[TABLE_WEIGHT] = np.concatenate([weight for _, weight in taps])
    return found


def _rows_of_two_towers(images: Sequence[ImageLayout], per_tile: int) -> NDArray[np.int64]:
    blocks = [block for image in images for block in image.blocks]
    # At least those of one tile: the tower of images is fed something always.
    of_tiles = max(per_tile, sum(block.tokens for block in blocks if block.kind != "frame"))
    first = {False: 0, True: of_tiles}
    rows = [np.empty(0, dtype=np.int64)]
    for block in blocks:
        is_frame = block.kind == "frame"
        rows.append(first[is_frame] + np.arange(block.tokens, dtype=np.int64))
        first[is_frame] += block.tokens
    return np.concatenate(rows)


def _pack(tokens: PackedTokens, images: Sequence[ImageLayout]) -> dict[str, NDArray[Any]]:
    """What puts tiles together; the blocks of each image are its tiles in order."""
    newline = np.array([1, 0, 0, 0], dtype=np.float32)
    index: list[NDArray[np.int64]] = [np.empty((0, 4), dtype=np.int64)]
    weight: list[NDArray[np.float32]] = [np.empty((0, 4), dtype=np.float32)]
    first = 1
    for image in images:
        for block in image.blocks:
            down, across = block.tiles
            whole = (down * tokens.rows, across * tokens.columns)
            # By row and column of the whole grid, the number of a token among those of all tiles.
            number = np.arange(first, first + whole[0] * whole[1])
            number = number.reshape(down, across, *tokens.grid).swapaxes(1, 2).reshape(-1)
            first += len(number)
            left = unpadded(*image.size, whole) if block.newline == "rows" else Unpadded(0, 0, whole)
            taps, shares = pack_taps(left, whole, block.grid)
            index.append(block.with_newlines(number[taps], 0))
            weight.append(block.with_newlines(shares, newline))
    if tokens.most is None:
        return {PACK_INDEX: np.concatenate(index)[:, :1]}
    return {PACK_INDEX: np.concatenate(index), PACK_WEIGHT: np.concatenate(weight)}


def frame_feed(
    program: ImageProgram, video: VideoProgram | None, frames: Sequence[NDArray[Any]] = ()
) -> dict[str, NDArray[Any]]:
    """`frame_values`, [frames, 3, height, width], where frames have a tower of their own; else nothing.

    A tower is fed something always, as no runtime computes layers of nothing: of no video one black frame.

    Args:
        program, video: of the bundle.
        frames: of each video.
    """
    if video is None or not video.own_tower:
        return {}
    return {FRAME_VALUES: something(program, frames)}


def something(program: ImageProgram, rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Rows of pixel values, or one of zeros where there is none, float32 or as they are."""
    dtype = rows[0].dtype if rows else np.dtype(np.float32)
    found = np.concatenate([np.empty((0, *program.row_shape), dtype=dtype), *rows])
    return found if len(found) else np.zeros((1, *program.row_shape), dtype=dtype)


def windows_of(grid: tuple[int, int], window: int | None) -> list[NDArray[np.int64]]:
    """The numbers, in row-major order, of the visual tokens of each window of a grid of (rows, columns).

    Windows stand in row-major order, and those at the lower and right edges may be smaller. Without windows
    the whole grid is one.
    """
    rows, columns = grid
    number = np.arange(rows * columns, dtype=np.int64).reshape(grid)
    down, across = (rows, columns) if window is None else (window, window)
    return [
        number[top : top + down, left : left + across].reshape(-1)
        for top in range(0, rows, down)
        for left in range(0, columns, across)
    ]


def _segments(
    lengths: Sequence[int], width: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Slots [segments, width] and places [sum of lengths] of segments of consecutive rows."""
    size = np.asarray(lengths, dtype=np.int64)[:, None]
    slot = np.arange(int(size.max()) if width is None else width, dtype=np.int64)
    filled = slot < size
    first = np.cumsum(size, axis=0) - size
    return np.where(filled, first + slot, -1), np.flatnonzero(filled).astype(np.int64)


def _patch_position(grid: tuple[int, int], side: int) -> NDArray[np.int64]:
    """int64 [tokens, side * side, 2], the squares in row-major order and the patches in each."""
    token = np.stack(np.divmod(np.arange(grid[0] * grid[1]), grid[1]), axis=-1)
    patch = np.stack(np.divmod(np.arange(side * side), side), axis=-1)
    position: NDArray[np.int64] = (token[:, None] * side + patch).astype(np.int64)
    return position


def _table_taps(
    position: NDArray[np.int64], grid: tuple[int, int], side: int, table: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Bilinear taps, corners on corners, into a square table: which entries, int64 [tokens, patches, 4], and
    how much of each, float32.

    In float32 and in the order of the published code, as another one rounds otherwise.
    """
    index, weight = [], []
    for axis in range(2):
        size = np.float32(max(grid[axis] * side - 1, 1))
        source = position[..., axis].astype(np.float32) * np.float32(table - 1) / size
        floor = np.floor(source)
        taps = floor.astype(np.int64)[..., None] + np.arange(2)
        away = np.abs(source[..., None] - floor[..., None] - np.arange(2, dtype=np.float32))
        index.append(np.clip(taps, 0, table - 1))
        weight.append(np.maximum(np.float32(1) - away, np.float32(0)))
    shape = (*position.shape[:-1], 4)
    taps = index[0][..., :, None] * table + index[1][..., None, :]
    shares = weight[0][..., :, None] * weight[1][..., None, :]
    return taps.reshape(shape), shares.astype(np.float32).reshape(shape)
