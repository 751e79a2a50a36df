"""Tiles put together, against the published code's own unpadding and torch's resampling."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension
from transformers.models.llava_next.modeling_llava_next import unpad_image

from edgeprune.image_program import (
    AmongSeveral,
    CutTiles,
    ImageProgram,
    Letterbox,
    PackedTokens,
    TileFeed,
)
from edgeprune.image_sizes import BestCanvas, FixedSize
from edgeprune.packing import pack_taps, resampled, unpadded
from edgeprune.vision_inputs import vision_inputs

PROPERTY = settings(deadline=None, max_examples=200, derandomize=True)
SIDES = st.one_of(st.integers(1, 4000), st.integers(1, 12))
GRIDS = st.tuples(st.integers(1, 40), st.integers(1, 40))
CANVASES = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 5)).map(lambda pair: (24 * pair[0], 24 * pair[1])),
    min_size=1,
    max_size=8,
    unique=True,
)


def program(canvases: list[tuple[int, int]], most: int | None) -> ImageProgram:
    return ImageProgram(
        sizes=(BestCanvas(canvases=tuple(canvases)),),
        cut=CutTiles(thumbnail="first", always=True),
        feed=TileFeed(height=24, width=24),
        tokens=PackedTokens(rows=6, columns=6, most=most),
        several=AmongSeveral(fit=Letterbox(), sizes=(FixedSize(height=24, width=24),)),
    )


@PROPERTY
@given(SIDES, SIDES, GRIDS)
def test_what_is_left_of_a_grid_is_what_the_published_code_leaves(
    width: int, height: int, grid: tuple[int, int]
) -> None:
    numbers = torch.arange(grid[0] * grid[1]).reshape(1, *grid)
    wanted = unpad_image(numbers, (height, width))[0]
    top, left, (rows, columns) = unpadded(width, height, grid)
    assert torch.equal(numbers[0, top : top + rows, left : left + columns], wanted)


@PROPERTY
@given(GRIDS, st.integers(1, 200))
def test_a_resampled_grid_is_that_of_torch(grid: tuple[int, int], most: int) -> None:
    smaller = resampled(grid, most)
    assert smaller == grid or math.prod(smaller) <= most
    if 0 in smaller:
        return
    values = torch.from_numpy(np.random.default_rng(0).normal(size=grid).astype(np.float32))
    wanted = torch.nn.functional.interpolate(values[None, None], smaller, mode="bilinear")[0, 0]
    index, weight = pack_taps(unpadded(grid[1], grid[0], grid), grid, smaller)
    found = (values.flatten().numpy()[index] * weight).sum(axis=-1)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


@PROPERTY
@given(SIDES, SIDES, CANVASES)
def test_canvas_and_place_are_those_of_the_published_code(
    width: int, height: int, canvases: list[tuple[int, int]]
) -> None:
    step = BestCanvas(canvases=tuple(canvases))
    wanted = select_best_resolution((height, width), canvases)
    assert step.target(height, width, (24, 24)) == wanted
    image = np.broadcast_to(np.zeros((3, 1, 1), dtype=np.uint8), (3, height, width))
    size = get_patch_output_size(image, wanted, input_data_format=ChannelDimension.FIRST)
    top, left, *own = step.placed(height, width, wanted)
    assert tuple(own) == size
    assert (top, left) == ((wanted[0] - own[0]) // 2, (wanted[1] - own[1]) // 2)


@PROPERTY
@given(SIDES, SIDES, CANVASES, st.one_of(st.none(), st.integers(1, 9)))
def test_tiles_and_tokens_stay_within_their_bounds(
    width: int, height: int, canvases: list[tuple[int, int]], most: int | None
) -> None:
    ours = program(canvases, most)
    layout = ours.layout(width, height)
    assert layout.tiles <= ours.most_tiles
    assert layout.tokens <= ours.most_tokens
    inputs = vision_inputs(ours, [layout])
    assert inputs["pack_index"].shape == (layout.tokens, 1 if most is None else 4)
    assert inputs["pack_index"].max() <= layout.tiles * 36
    if most is not None:
        np.testing.assert_allclose(inputs["pack_weight"].sum(axis=1), 1, atol=1e-6)
    tiles, tokens = ours.most_of_prompt(3)
    assert tiles >= max(ours.most_tiles, 3)
    assert tokens >= max(ours.most_tokens, 3 * 37)


def test_several_images_are_one_tile_each_with_one_newline() -> None:
    ours = program([(48, 48)], None)
    assert ours.of_prompt(1) is ours
    several = ours.of_prompt(2)
    (block,) = several.layout(30, 60).blocks
    assert (block.grid, block.tokens, block.newline) == ((6, 6), 37, "end")
    # The square shows it in its middle: half of each row, a quarter on both sides being padding.
    assert (block.box.left, block.box.right) == (-0.5, 1.5)
    images = [several.layout(30, 60), several.layout(9, 9)]
    index = vision_inputs(several, images)["pack_index"][:, 0]
    assert index.tolist() == [*range(1, 37), 0, *range(37, 73), 0]
    assert ours.most_of_prompt(2) == (5, 36 + 144 + 12)
    assert ours.most_of_prompt(9) == (9, 9 * 37)
    assert ours.most_of_prompt(0) == (0, 0)


def test_an_image_is_resized_to_fewer_tokens_by_smaller_canvases() -> None:
    ours = program([(24, 24), (48, 48), (72, 72)], None)
    assert [len(ours.layout(70, 70).blocks), ours.layout(70, 70).tokens] == [2, 36 + 18 * 19]
    smaller = ours.shrunken(70, 70, 300)
    assert smaller is not None
    assert smaller.layout(70, 70).tokens == 36 + 12 * 13
