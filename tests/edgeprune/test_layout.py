"""Layouts: blocks, padding masks against those of letterboxes, places against tiled bias curves."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.debias.curves import ExponentialCurve, curve_table
from edgeprune.debias.masks import PaddingMask, letterbox_valid, letterbox_valid_bilinear
from edgeprune.errors import InputError
from edgeprune.image_program import GridTokens, ImageProgram, Letterbox, TileFeed
from edgeprune.image_sizes import FixedSize, ShortestEdge
from edgeprune.layout import WHOLE, Block, Box, ImageLayout, PromptLayout
from tests.programs import LETTERBOX, internvl, llava, smolvlm

PROPERTY = settings(deadline=None, max_examples=200, derandomize=True)
SIDES = st.one_of(st.integers(1, 4000), st.integers(1, 12))
THRESHOLDS = st.one_of(st.sampled_from([0.0, 0.01, 0.25, 0.5, 0.75, 1.0]), st.floats(0, 1))
KINDS = st.sampled_from(["share", "bilinear"])
SHARE = PaddingMask(kind="share", threshold=0.5)
BILINEAR = PaddingMask(kind="bilinear", threshold=0.5)


def box(top: Any, left: Any, bottom: Any, right: Any) -> Box:
    return Box(Fraction(top), Fraction(left), Fraction(bottom), Fraction(right))


def one(block: Block, size: tuple[int, int] = (10, 10)) -> PromptLayout:
    return PromptLayout((ImageLayout(size, (block,), (block.tokens,)),))


def line(*counts: int) -> PromptLayout:
    """Images of one row of so many tokens each."""
    return PromptLayout(tuple(ImageLayout((1, 1), (Block((1, n)),), (n,)) for n in counts))


@st.composite
def letterboxes(draw: st.DrawFn) -> tuple[ImageProgram, tuple[int, int]]:
    """A letterbox, resized by its edge or to a fixed size, with or without a crop, and that size."""
    side = st.integers(1, 400)
    if draw(st.booleans()):
        edge = draw(side)
        resized, step = (edge, edge), ShortestEdge(edge=edge)
    else:
        resized = draw(st.tuples(side, side))
        step = FixedSize(height=resized[0], width=resized[1])
    crop = draw(st.one_of(st.none(), st.tuples(*(st.integers(1, length) for length in resized))))
    output = crop or resized
    grid = draw(st.tuples(*(st.integers(1, min(length, 16)) for length in output)))
    program = ImageProgram(
        fit=Letterbox(),
        sizes=(step,),
        crop=crop,
        feed=TileFeed(height=output[0], width=output[1]),
        tokens=GridTokens(rows=grid[0], columns=grid[1]),
    )
    return program, resized


@PROPERTY
@given(SIDES, SIDES, letterboxes(), KINDS, THRESHOLDS)
def test_padding_masks_are_those_of_a_letterbox(
    width: int,
    height: int,
    letterbox: tuple[ImageProgram, tuple[int, int]],
    kind: Literal["share", "bilinear"],
    threshold: float,
) -> None:
    """A crop shows a letterboxed image of another shape: its sides are multiplied until they are whole."""
    program, resized = letterbox
    axis = 0 if width > height else 1
    whole, shown = resized[axis], program.feed.size[axis]
    shown, whole = shown // math.gcd(whole, shown), whole // math.gcd(whole, shown)
    long = max(width, height) * shown
    short = min(min(width, height) * whole, long)
    rule = letterbox_valid if kind == "share" else letterbox_valid_bilinear
    sides = (long, short) if width > height else (short, long)
    expected = rule(*sides, program.tokens.grid, threshold)
    layout = PromptLayout((program.layout(width, height),))
    found = layout.valid(PaddingMask(kind=kind, threshold=threshold))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    assert layout.valid(PaddingMask(kind="none")).all()


@PROPERTY
@given(SIDES, SIDES, THRESHOLDS)
def test_padding_masks_of_llava_15(width: int, height: int, threshold: float) -> None:
    layout = PromptLayout((llava(fit=LETTERBOX).layout(width, height),))
    for kind, rule in (("share", letterbox_valid), ("bilinear", letterbox_valid_bilinear)):
        mask = PaddingMask(kind=kind, threshold=threshold)  # type: ignore[arg-type]
        np.testing.assert_array_equal(layout.valid(mask), rule(width, height, (24, 24), threshold))


@PROPERTY
@given(SIDES, SIDES)
def test_boxes_of_a_letterbox_lie_in_its_square(width: int, height: int) -> None:
    boxes = PromptLayout((llava(fit=LETTERBOX).layout(width, height),)).boxes()
    assert boxes.dtype == np.float64
    assert boxes.shape == (576, 4)
    # In pixels of the square around the image, which a cell divides into 24.
    side = max(width, height)
    pixels = boxes * [height, width, height, width]
    shift = np.array([side - height, side - width] * 2) / 2
    row, column = np.divmod(np.arange(576), 24)
    expected = np.stack([row, column, row + 1, column + 1], axis=1) * side / 24
    np.testing.assert_allclose(pixels + shift, expected, rtol=1e-9, atol=1e-9 * side)


def test_padding_on_one_side_and_on_both_axes() -> None:
    """By hand: of 2 x 2 cells, each a quarter of a box that reaches out by half the image."""
    below = one(Block((2, 1), box(0, 0, "3/2", 1)))
    # The second cell shows the image from 3/4 to 1, a third of it.
    np.testing.assert_array_equal(below.valid(PaddingMask(kind="share", threshold=0.5)), [1, 0])
    np.testing.assert_array_equal(below.valid(PaddingMask(kind="share", threshold=0.67)), [1, 1])
    corner = one(Block((2, 2), box("-1/2", "-1/2", 1, 1)))
    # Cells of 3/4: the upper ones show a third of their height, the left ones of their width.
    shares = {
        threshold: corner.valid(PaddingMask(kind="share", threshold=threshold))
        for threshold in (0.5, 0.7, 0.9)
    }
    np.testing.assert_array_equal(shares[0.5], [0, 0, 0, 1])
    np.testing.assert_array_equal(shares[0.7], [0, 1, 1, 1])
    np.testing.assert_array_equal(shares[0.9], [1, 1, 1, 1])


@pytest.mark.parametrize(
    "outside", [box(0, 0, "3/2", 1), box("-1/2", "-1/2", "3/2", "3/2"), box(-1, 0, 0, 1)]
)
def test_a_bilinear_mask_is_of_letterboxes_alone(outside: Box) -> None:
    with pytest.raises(
        InputError, match=r"padding mask is bilinear, and an image is padded .*: expected a letter"
    ):
        one(Block((2, 2), outside)).valid(BILINEAR)


def test_a_box_beside_the_image_shows_nothing() -> None:
    np.testing.assert_array_equal(one(Block((1, 2), box(-2, 0, -1, 1))).valid(SHARE), [0, 0])


def test_newline_tokens_show_nothing_and_count() -> None:
    layout = one(Block((2, 2), box("-1/2", 0, "3/2", 1), newline="rows"))
    assert layout.tokens == 6
    boxes = layout.boxes()
    np.testing.assert_array_equal(np.isnan(boxes).all(axis=1), [False, False, True] * 2)
    np.testing.assert_array_equal(
        boxes[[0, 1, 3]], [[-0.5, 0, 0.5, 0.5], [-0.5, 0.5, 0.5, 1], [0.5, 0, 1.5, 0.5]]
    )
    for mask in (PaddingMask(kind="share", threshold=0.1), PaddingMask(kind="bilinear", threshold=0.9)):
        np.testing.assert_array_equal(layout.valid(mask), [0, 0, 1] * 2)


def test_boxes_of_tiles_share_their_edges() -> None:
    boxes = PromptLayout((internvl(most=6).layout(300, 200),)).boxes().reshape(7, 16, 16, 4)
    np.testing.assert_array_equal(boxes[0, :, -1, 3], boxes[1, :, 0, 1])
    np.testing.assert_array_equal(boxes[0, -1, :, 2], boxes[3, 0, :, 0])
    np.testing.assert_array_equal(boxes[6, 0, 0], [0, 0, 1 / 16, 1 / 16])
    assert (boxes >= 0).all()
    assert (boxes <= 1).all()


def test_several_images() -> None:
    images = (internvl(most=6).layout(300, 200), llava().layout(10, 10), internvl(most=1).layout(5, 5))
    layout = PromptLayout(images)
    sizes = [7 * 256, 576, 256]
    assert layout.tokens == sum(sizes)
    assert layout.image_of.dtype == np.int64
    np.testing.assert_array_equal(layout.image_of, np.repeat(range(3), sizes))
    np.testing.assert_array_equal(layout.block_of, np.repeat(range(9), [256] * 7 + [576, 256]))


def test_no_image() -> None:
    layout = PromptLayout(())
    assert layout.tokens == 0
    assert layout.boxes().shape == (0, 4)
    for values in (layout.image_of, layout.block_of, layout.places(3), layout.valid(SHARE)):
        assert values.shape == (0,)
    assert layout.valid(SHARE).dtype == np.float32
    assert {layout.places(3).dtype, layout.image_of.dtype} == {np.dtype(np.int64)}


def test_text() -> None:
    image = ImageLayout((4, 4), (Block((1, 2)), Block((1, 1))), ("<a>", 2, "|", 1, "<b>"))
    assert image.text("*") == "<a>**|*<b>"
    with pytest.raises(ValueError, match="the pieces have 2 visual tokens, and the blocks 3"):
        ImageLayout((4, 4), (Block((1, 3)),), ("<a>", 2))


@pytest.mark.parametrize(("tokens", "images"), [(576, 1), (576, 3), (1, 2), (7, 4)])
def test_places_are_those_of_a_tiled_curve(tokens: int, images: int) -> None:
    """A curve with as many places as an image has tokens is read as it stands, anew for each image."""
    curve = ExponentialCurve(b=0.003, num_tokens=tokens)
    places = line(*[tokens] * images).places(tokens)
    assert places.dtype == np.int64
    np.testing.assert_array_equal(places, np.tile(np.arange(1, tokens + 1), images))
    np.testing.assert_array_equal(curve_table(curve, tokens)[places], np.tile(curve.weights(), images))


@PROPERTY
@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(1, 80))
def test_places_by_relative_position(counts: list[int], count: int) -> None:
    places = line(*counts).places(count)
    expected = []
    for tokens in counts:
        for index in range(tokens):
            share = Fraction(index, max(tokens - 1, 1)) * (count - 1)
            expected.append(1 + int(share + Fraction(1, 2)))
    np.testing.assert_array_equal(places, expected)
    starts = np.cumsum([0, *counts[:-1]])
    assert (places[starts] == 1).all()
    assert places.max() <= count


def test_no_curve_has_no_places() -> None:
    np.testing.assert_array_equal(line(3, 2).places(0), [0] * 5)
    with pytest.raises(InputError, match="has -1 places: expected 0 for none, or more"):
        line(3).places(-1)


def test_places_begin_anew_where_asked() -> None:
    blocks = (Block((2, 2)), Block((1, 3), newline="rows"))
    layout = PromptLayout((ImageLayout((4, 4), blocks, (8,)), ImageLayout((4, 4), blocks[:1], (4,))))
    np.testing.assert_array_equal(layout.places(8), [*range(1, 9), 1, 3, 6, 8])
    np.testing.assert_array_equal(layout.places(4, "block"), [1, 2, 3, 4] * 3)
    np.testing.assert_array_equal(layout.places(4, "row"), [1, 4, 1, 4, 1, 2, 3, 4, 1, 4, 1, 4])
    # Each block's first and last row and column; a newline token as the last of its row.
    np.testing.assert_array_equal(layout.places(4, "cell"), [1, 2, 3, 4, 1, 2, 2, 2, 1, 2, 3, 4])


def test_taken_tokens() -> None:
    """What a merging tower leaves: facts are those of the tokens, places count those that are left."""
    layout = PromptLayout(tuple(llava(28, cells=4, fit=LETTERBOX).layout(*size) for size in ((8, 4), (4, 8))))
    taken = layout.take([0, 5, 6, 15, 16, 22, 24, 31])
    np.testing.assert_array_equal(taken.image_of, [0] * 4 + [1] * 4)
    np.testing.assert_array_equal(taken.boxes(), layout.boxes()[[0, 5, 6, 15, 16, 22, 24, 31]])
    np.testing.assert_array_equal(taken.valid(SHARE), [0, 1, 1, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(taken.places(4), [1, 2, 3, 4] * 2)
    again = taken.take(np.array([1, 2, 5]))
    assert again.tokens == 3
    np.testing.assert_array_equal(again.boxes(), layout.boxes()[[5, 6, 22]])
    np.testing.assert_array_equal(again.places(2), [1, 2, 1])
    assert layout.take([]).tokens == 0


@pytest.mark.parametrize("places", [[1, 1], [2, 1], [-1], [3], [[0]]])
def test_only_tokens_that_are_there_are_taken(places: list[Any]) -> None:
    with pytest.raises(InputError, match="of 3 visual tokens some are to be taken that are not there"):
        line(3).take(places)


@PROPERTY
@given(SIDES, SIDES, st.sampled_from([internvl(), smolvlm(1456, 364)]))
def test_tiles_cover_the_image_once(width: int, height: int, program: ImageProgram) -> None:
    layout = program.layout(width, height)
    tiles = [block.box for block in layout.blocks if block.kind == "tile"]
    assert sum((one.bottom - one.top) * (one.right - one.left) for one in tiles) == 1
    assert tiles[0].top == tiles[0].left == 0
    assert tiles[-1].bottom == tiles[-1].right == 1
    thumbnails = [block.box for block in layout.blocks if block.kind == "thumbnail"]
    assert thumbnails == ([WHOLE] if len(tiles) > 1 else [])
    assert PromptLayout((layout,)).valid(SHARE).all()
