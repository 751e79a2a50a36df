"""What the vision graph reads beside the pixels, against transformers' own functions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.image_program import ImageProgram, PatchFeed, PatchTokens, TileFeed
from edgeprune.image_sizes import PixelBudget
from edgeprune.layout import Block, ImageLayout
from edgeprune.vision_inputs import vision_inputs, windows_of
from tests.manifests import make_manifest

torch = pytest.importorskip("torch")
vision_utils = pytest.importorskip("transformers.vision_utils")

GRIDS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3)
PATCH, SIDE = 14, 2


def program(window: int | None = None, table: int | None = None) -> ImageProgram:
    return ImageProgram(
        sizes=(PixelBudget(least=784, most=1 << 20),),
        feed=PatchFeed(size=PATCH, frames=2, window=window, table=table),
        tokens=PatchTokens(side=SIDE),
    )


def layouts(grids: list[tuple[int, int]]) -> list[ImageLayout]:
    return [ImageLayout((1, 1), (Block(grid),), (grid[0] * grid[1],)) for grid in grids]


def grid_thw(grids: list[tuple[int, int]]) -> torch.Tensor:
    return torch.tensor([[1, rows * SIDE, columns * SIDE] for rows, columns in grids])


def segments(slots: np.ndarray) -> list[list[int]]:
    return [[row for row in segment if row >= 0] for segment in slots.tolist()]


@settings(deadline=None, max_examples=30)
@given(GRIDS)
def test_without_windows_patches_stand_as_transformers_has_them(grids: list[tuple[int, int]]) -> None:
    found = vision_inputs(program(), layouts(grids))
    expected = vision_utils.get_vision_position_ids(grid_thw(grids), SIDE).numpy()
    np.testing.assert_array_equal(found["patch_position"].reshape(-1, 2), expected)
    ends = vision_utils.get_vision_cu_seqlens(grid_thw(grids)).numpy() // SIDE**2
    wanted = [list(range(a, b)) for a, b in pairwise(ends)]
    assert segments(found["block_slots"]) == wanted
    flat = found["block_slots"].reshape(-1)
    np.testing.assert_array_equal(flat[found["block_place"]], np.arange(ends[-1]))


@settings(deadline=None, max_examples=30)
@given(GRIDS, st.integers(1, 4))
def test_windows_are_those_of_transformers(grids: list[tuple[int, int]], window: int) -> None:
    found = vision_inputs(program(window=window), layouts(grids))
    thw = grid_thw(grids)
    order, ends = vision_utils.get_vision_window_index(thw, SIDE, window * SIDE * PATCH, PATCH)
    np.testing.assert_array_equal(found["token_row"], order.argsort().numpy())
    bounds = ends.numpy() // SIDE**2
    wanted = [list(range(a, b)) for a, b in pairwise(bounds)]
    assert segments(found["window_slots"]) == wanted
    flat = found["window_slots"].reshape(-1)
    np.testing.assert_array_equal(flat[found["window_place"]], np.arange(bounds[-1]))
    position = vision_utils.get_vision_position_ids(thw, SIDE).reshape(-1, SIDE**2, 2)
    np.testing.assert_array_equal(found["patch_position"], position[order].numpy())


@settings(deadline=None, max_examples=30)
@given(GRIDS, st.integers(2, 48))
def test_entries_of_the_table_are_those_of_transformers(grids: list[tuple[int, int]], table: int) -> None:
    found = vision_inputs(program(table=table), layouts(grids))
    index, weight = vision_utils.get_vision_interpolation_indices_and_weights(
        grid_thw(grids), table, "bilinear", align_corners=True, spatial_merge_size=SIDE
    )
    np.testing.assert_array_equal(found["table_index"].reshape(-1, 4), index.numpy())
    np.testing.assert_array_equal(found["table_weight"].reshape(-1, 4), weight.numpy())


@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.integers(1, 4))
def test_windows_hold_every_token_once(grid: tuple[int, int], window: int) -> None:
    found = windows_of(grid, window)
    assert sorted(np.concatenate(found).tolist()) == list(range(grid[0] * grid[1]))
    assert max(map(len, found)) <= window**2


def test_a_graph_that_reads_tiles_needs_nothing() -> None:
    tiles = make_manifest().image_program
    assert isinstance(tiles.feed, TileFeed)
    assert vision_inputs(tiles, [tiles.layout(10, 10)]) == {}
