"""Video programs: which frames are seen, their sizes, times and visual tokens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edgeprune.errors import InputError
from edgeprune.image_program import (
    CutTiles,
    GridTokens,
    ImageProgram,
    PackedTokens,
    PatchFeed,
    PatchTokens,
    TileFeed,
)
from edgeprune.image_sizes import BestCanvas, FixedSize, PixelBudget
from edgeprune.layout import PromptLayout
from edgeprune.positions import GridPositions, prompt_positions
from edgeprune.video_program import FrameSampling, FramesBudget, FrameText, VideoProgram
from tests.programs import llava

PATCHES = ImageProgram(
    sizes=(PixelBudget(least=64, most=4096),),
    feed=PatchFeed(size=4, frames=2),
    tokens=PatchTokens(side=2),
)
TILES = ImageProgram(
    sizes=(BestCanvas(canvases=((24, 48),)),),
    cut=CutTiles(thumbnail="first", always=True),
    feed=TileFeed(height=24, width=24),
    tokens=PackedTokens(rows=5, columns=5, most=4),
)
EVEN = FrameSampling(per_second=2.0, least=4, most=768, multiple=2)
ENDS = FrameSampling(per_second=2.0, least=4, most=768, ends=True)


@pytest.mark.parametrize(
    ("total", "rate", "even", "ends"),
    [
        # What transformers' Qwen2VLVideoProcessor and Qwen3VLVideoProcessor (5.24) sample.
        (28, 8.0, [0, 4, 9, 14, 18, 23], [0, 4, 9, 14, 18, 22, 27]),
        (100, 25.0, [0, 12, 25, 37, 50, 62, 75, 87], [0, 14, 28, 42, 57, 71, 85, 99]),
        (5, 30.0, [0, 1, 2, 3], [0, 1, 3, 4]),
    ],
)
def test_frames_are_those_of_the_published_code(
    total: int, rate: float, even: list[int], ends: list[int]
) -> None:
    assert EVEN.indices(total, rate).tolist() == even
    assert ENDS.indices(total, rate).tolist() == ends


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    st.integers(1, 100_000),
    st.floats(0.1, 240),
    st.sampled_from([EVEN, ENDS, FrameSampling(frames=8), FrameSampling(frames=7, multiple=2, ends=True)]),
)
def test_frames_are_there_and_in_order(total: int, rate: float, sampling: FrameSampling) -> None:
    found = sampling.indices(total, rate)
    assert 1 <= len(found) <= min(total, 768)
    assert found[0] == 0
    assert found[-1] < total
    assert (np.diff(found) > 0).all()
    assert len(found) % sampling.multiple == 0 or len(found) == total < sampling.multiple


def test_another_number_of_frames_can_be_asked_for() -> None:
    assert EVEN.changed(None, None) is EVEN
    assert len(EVEN.changed(6, None).indices(100, 25.0)) == 6
    assert len(EVEN.changed(None, 5.0).indices(100, 25.0)) == 20


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        (4, 2.0, "`frames` and `fps` were both given"),
        (0, None, "`frames` is 0: expected a whole number, 1 to 65536"),
        (True, None, "`frames` is True"),
        (2.5, None, r"`frames` is 2\.5"),
        (None, 0, "`fps` is 0: expected a number above 0, at most 1000"),
        (None, math.nan, "`fps` is nan"),
        (None, "2", "`fps` is '2'"),
    ],
)
def test_numbers_that_cannot_be_are_named(frames: Any, fps: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        EVEN.changed(frames, fps)


def test_the_rule_in_words() -> None:
    assert EVEN.describe() == "2 frames a second, 4 to 768"
    assert FrameSampling(frames=8).describe() == "8 frames of each"


def test_one_rule_samples() -> None:
    for fields in ({}, {"frames": 8, "per_second": 2.0}):
        with pytest.raises(ValidationError, match="give exactly one of them"):
            FrameSampling(**fields)


@pytest.mark.parametrize(
    ("frames", "height", "width", "size"),
    [
        # What smart_resize of transformers' Qwen3-VL (5.24) gives for 32 x 32 and this budget.
        (10, 1080, 1920, (192, 352)),
        (2, 20, 700, (64, 1536)),
        (1, 300, 40, (704, 96)),
    ],
)
def test_a_budget_of_all_frames(frames: int, height: int, width: int, size: tuple[int, int]) -> None:
    budget = FramesBudget(least=128 * 32 * 32, most=768 * 32 * 32, multiple=2)
    assert budget.target(frames, height, width, (32, 32)) == size


def test_frames_that_are_too_elongated_are_named() -> None:
    budget = FramesBudget(least=1, most=1 << 20)
    with pytest.raises(InputError, match="the video has 9000 x 40 pixels: expected frames at most 200 times"):
        budget.target(2, 40, 9000, (32, 32))


def test_pairs_of_frames_are_blocks_with_their_time() -> None:
    text = FrameText(prefix="<{seconds} seconds>[", suffix="]")
    video = VideoProgram(sampling=ENDS, size=FramesBudget(least=64, most=4096, multiple=2), text=text)
    # Of an odd number, the last frame stands twice.
    layout = video.layout(PATCHES, 40, 24, np.array([0, 4, 9, 13, 18]), 8.0, 28)
    tokens = layout.blocks[0].tokens
    assert [block.kind for block in layout.blocks] == ["frame"] * 3
    # (0 + 4) / 2 / 8, (9 + 13) / 2 / 8 and 18 / 8 seconds.
    times = ["<0.2 seconds>[", tokens, "]<1.4 seconds>[", tokens, "]<2.2 seconds>[", tokens, "]"]
    assert list(layout.pieces) == times
    assert PATCHES.rows(layout) == layout.tokens
    assert layout.interval == 2 / (5 / 28 * 8.0)


def test_frames_are_resampled_with_one_newline_behind_them() -> None:
    video = VideoProgram(
        sampling=FrameSampling(frames=8), size=FixedSize(height=24, width=24), pool=2, newline=True
    )
    layout = video.layout(TILES, 70, 30, np.arange(3), 24.0, 3)
    assert [(block.grid, block.newline) for block in layout.blocks] == [((3, 3), None)] * 2 + [
        ((3, 3), "end")
    ]
    assert (layout.tokens, layout.tiles, layout.pieces) == (28, 3, (28,))


def test_time_goes_on_in_blocks_without_text_between_them() -> None:
    video = VideoProgram(sampling=EVEN, size=PixelBudget(least=64, most=256))
    layout = video.layout(PATCHES, 16, 8, np.array([0, 6, 12, 18]), 6.0, 24)
    assert layout.interval == 2.0
    rows, columns = layout.blocks[0].grid
    seen = np.array([False] * 3 + [True] * layout.tokens + [False] * 2)
    # Hugging Face: trunc(block * 5 tokens a second * 2 seconds), and text behind the larger side.
    found = prompt_positions(GridPositions(per_second=5.0), seen, PromptLayout((layout,)))
    time = found.ids[0, 3 : 3 + layout.tokens].reshape(2, rows, columns)
    assert [time[block].tolist() for block in (0, 1)] == [[[3] * columns] * rows, [[13] * columns] * rows]
    assert found.ids[:, -2:].tolist() == [[3 + columns, 4 + columns]] * 3
    assert found.following == 14
    # Without a rate, blocks are 1 apart.
    found = prompt_positions(GridPositions(), seen, PromptLayout((layout,)))
    assert found.ids[0, 3 + rows * columns] == 4


@pytest.mark.parametrize(
    ("program", "fields", "message"),
    [
        (llava(24, 4), {"size": PixelBudget(least=1, most=100)}, "frames have any size"),
        (llava(24, 4), {"size": FixedSize(height=24, width=20)}, "output of 24 x 20 pixels"),
        (llava(24, 4), {"size": FixedSize(height=24, width=24), "pool": 2}, "resamples no tiles"),
        (PATCHES, {"size": FixedSize(height=24, width=20)}, "size of 24 x 20 pixels for squares of 8 x 8"),
    ],
)
def test_frames_that_cannot_be_fed_are_named(
    program: ImageProgram, fields: dict[str, Any], message: str
) -> None:
    video = VideoProgram(sampling=FrameSampling(frames=8), **fields)
    assert message in str(video.fault(program))


def test_frames_that_can_be_fed() -> None:
    square = FixedSize(height=24, width=24)
    for program, size in (
        (llava(24, 4), square),
        (PATCHES, PixelBudget(least=64, most=256)),
        (TILES, square),
    ):
        assert VideoProgram(sampling=EVEN, size=size).fault(program) is None
    assert isinstance(llava(24, 4).tokens, GridTokens)
