"""Padding masks against areas added up cell by cell in exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeprune.debias.masks import letterbox_valid, letterbox_valid_bilinear
from edgeprune.errors import InputError

PROPERTY = settings(deadline=None, max_examples=150, derandomize=True)
SIDES = st.one_of(st.integers(1, 4000), st.integers(1, 12))
GRIDS = st.tuples(st.integers(1, 16), st.integers(1, 16))
THRESHOLDS = st.one_of(st.sampled_from([0.0, 0.01, 0.25, 0.5, 0.75, 1.0]), st.floats(0, 1))
RULES = pytest.mark.parametrize("rule", [letterbox_valid, letterbox_valid_bilinear])


def area_mask(width: int, height: int, grid: tuple[int, int], side: int, threshold: float) -> np.ndarray:
    """The rule in two dimensions: what a cell has in common with the image's rectangle, exactly."""
    scale = Fraction(side, max(width, height))
    left, top = (side - width * scale) / 2, (side - height * scale) / 2
    rows, cols = grid
    down, across = Fraction(side, rows), Fraction(side, cols)
    mask = []
    for r in range(rows):
        for c in range(cols):
            tall = min((r + 1) * down, side - top) - max(r * down, top)
            wide = min((c + 1) * across, side - left) - max(c * across, left)
            padded = 1 - max(tall, Fraction(0)) * max(wide, Fraction(0)) / (down * across)
            mask.append(float(padded) <= threshold)
    return np.array(mask, dtype=np.float32)


@PROPERTY
@given(SIDES, SIDES, GRIDS, st.integers(1, 700), THRESHOLDS)
def test_share_agrees_with_areas(
    width: int, height: int, grid: tuple[int, int], side: int, threshold: float
) -> None:
    found = letterbox_valid(width, height, grid, threshold)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, area_mask(width, height, grid, side, threshold))


def pillow_mask(width: int, height: int, grid: tuple[int, int]) -> np.ndarray:
    """The published rule by Pillow itself: the image's 0/1 mask in its square, resized to the grid."""
    side = max(width, height)
    mask = Image.new("L", (side, side), 0)
    mask.paste(Image.new("L", (width, height), 1), ((side - width) // 2, (side - height) // 2))
    small = np.asarray(mask.resize(grid[::-1], Image.Resampling.BILINEAR))
    return (small.flatten() >= 0.5).astype(np.float32)


@PROPERTY
@given(st.integers(1, 1200), st.integers(1, 1200), st.one_of(GRIDS, st.just((24, 24)), st.just((27, 27))))
def test_bilinear_is_pillows_resize(width: int, height: int, grid: tuple[int, int]) -> None:
    found = letterbox_valid_bilinear(width, height, grid)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, pillow_mask(width, height, grid))


@pytest.mark.parametrize("side", [24, 97, 240, 336, 500, 640])
@pytest.mark.parametrize("cells", [24, 27])
def test_bilinear_is_pillows_resize_for_every_height(side: int, cells: int) -> None:
    for short in range(1, side):
        # What one column of the square holds decides: the others are the same.
        line = np.zeros((side, 1), dtype=np.uint8)
        line[(side - short) // 2 :][:short] = 1
        wanted = np.asarray(Image.fromarray(line).resize((1, cells), Image.Resampling.BILINEAR))[:, 0]
        np.testing.assert_array_equal(letterbox_valid_bilinear(side, short, (cells, 1)), wanted)


def test_bilinear_where_half_a_token_is_padding() -> None:
    """On the threshold Pillow's rounding decides, in whole rows."""
    ties = [(side, side * (12 - k) // 12) for side in (96, 240, 480, 1200, 1920) for k in (1, 3, 5, 7)]
    for width, height in ties:
        found = letterbox_valid_bilinear(width, height, (12, 12))
        np.testing.assert_array_equal(found, pillow_mask(width, height, (12, 12)))


@RULES
@PROPERTY
@given(SIDES, SIDES, GRIDS, THRESHOLDS)
def test_mask_is_symmetric(
    rule: Any, width: int, height: int, grid: tuple[int, int], threshold: float
) -> None:
    if rule is letterbox_valid_bilinear:
        height += (width - height) % 2  # of an odd difference, one side gets more; see below
    mask = rule(width, height, grid, threshold).reshape(grid)
    np.testing.assert_array_equal(mask, mask[::-1, ::-1])


@RULES
@PROPERTY
@given(SIDES, SIDES, GRIDS, THRESHOLDS)
def test_transposing_the_picture_transposes_the_mask(
    rule: Any, width: int, height: int, grid: tuple[int, int], threshold: float
) -> None:
    mask = rule(width, height, grid, threshold).reshape(grid)
    transposed = rule(height, width, grid[::-1], threshold).reshape(grid[::-1])
    np.testing.assert_array_equal(transposed, mask.T)


@PROPERTY
@given(SIDES, SIDES, GRIDS, THRESHOLDS, THRESHOLDS)
def test_masks_are_monotone_in_the_threshold(
    width: int, height: int, grid: tuple[int, int], one: float, other: float
) -> None:
    low, high = sorted((one, other))
    size = (width, height, grid)
    assert (letterbox_valid(*size, low) <= letterbox_valid(*size, high)).all()  # more padding is tolerated
    assert (letterbox_valid_bilinear(*size, low) >= letterbox_valid_bilinear(*size, high)).all()


@RULES
@PROPERTY
@given(SIDES, GRIDS, THRESHOLDS)
def test_a_square_picture_has_no_padding(
    rule: Any, width: int, grid: tuple[int, int], threshold: float
) -> None:
    assert rule(width, width, grid, threshold).all()


@RULES
def test_a_wide_picture_is_padded_above_and_below(rule: Any) -> None:
    mask = rule(640, 320, (8, 8)).reshape(8, 8)
    assert mask[:, 0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert (mask == mask[:, :1]).all()


def test_a_share_on_the_threshold_is_valid_and_above_it_is_padding() -> None:
    # Padding of 1/8 of the side is half a cell of 4.
    assert letterbox_valid(4, 3, (4, 4), 0.5).all()
    assert letterbox_valid(4, 3, (4, 4), 0.499)[:4].tolist() == [0] * 4
    assert letterbox_valid(400, 299, (4, 4), 0.5)[:4].tolist() == [0] * 4


@RULES
def test_the_default_threshold_is_one_half(rule: Any) -> None:
    def masks(*threshold: float) -> list[list[float]]:
        # Every height at two sides: among them are values just below and just above one half.
        sizes = [(side, height) for side in (185, 199) for height in range(1, side)]
        return [rule(*size, (24, 24), *threshold).tolist() for size in sizes]

    assert masks() == masks(0.5)
    assert masks() != masks(0.45)
    assert masks() != masks(0.55)


def test_a_picture_thinner_than_a_cell_counts_padding_of_both_sides() -> None:
    # 60 of 100 in one centre cell of 5: 40 % of it is padding, 20 % on either side.
    assert letterbox_valid(500, 60, (5, 5), 0.4)[10:15].tolist() == [1] * 5
    assert letterbox_valid(500, 60, (5, 5), 0.3)[10:15].tolist() == [0] * 5
    assert letterbox_valid(500, 60, (5, 5), 0.4).sum() == 5


@RULES
def test_nothing_is_valid_in_an_extremely_elongated_picture(rule: Any) -> None:
    assert rule(100000, 1, (24, 24)).tolist() == [0] * 576


def test_narrow_integers_do_not_overflow() -> None:
    size = (np.uint16(3000), np.uint16(4000))
    for rule in (letterbox_valid, letterbox_valid_bilinear):
        np.testing.assert_array_equal(rule(*size, (24, 24)), rule(3000, 4000, (24, 24)))


@RULES
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, (2, 2)), r"the width is 0: expected a number of pixels above 0; check"),
        ((4, -1, (2, 2)), r"the height is -1: expected"),
        ((math.nan, 4, (2, 2)), r"the width is nan: expected a number of pixels above 0"),
        ((4, math.inf, (2, 2)), r"the height is inf: expected"),
        ((4.5, 4, (2, 2)), r"the width is 4.5: expected a whole number of pixels; round it"),
        ((4, 4.5, (2, 2)), r"the height is 4.5: expected a whole number of pixels; round it"),
        (
            (4, 4, (0, 2)),
            r"the grid is \(0, 2\): expected \(rows, cols\), two whole numbers above 0; check",
        ),
        ((4, 4, (2, 2, 2)), r"the grid is \(2, 2, 2\)"),
        ((4, 4, (2, 2.5)), r"the grid is \(2, 2.5\)"),
        ((4, 4, (2, 2), 1.1), r"the padding threshold is 1.1: expected a share from 0 to 1; 0.5"),
        ((4, 4, (2, 2), -0.1), r"the padding threshold is -0.1"),
        ((4, 4, (2, 2), math.nan), r"the padding threshold is nan"),
    ],
)
def test_masks_refuse(rule: Any, arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rule(*arguments)


def test_bilinear_refuses_what_its_integers_cannot_hold() -> None:
    with pytest.raises(InputError, match=r"longer side is 67108865 pixels: expected at most 67108864; crop"):
        letterbox_valid_bilinear(1, 2**26 + 1, (2, 2))


def test_bilinear_puts_an_odd_difference_as_published() -> None:
    """3 pixels of padding around 5: one in front, two behind."""
    assert letterbox_valid_bilinear(8, 5, (8, 1)).tolist() == [0, 1, 1, 1, 1, 1, 0, 0]
