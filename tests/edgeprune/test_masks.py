"""Padding masks against areas added up cell by cell in exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import InputError
from edgeprune.masks import full_valid, letterbox_valid, letterbox_valid_bilinear

PROPERTY = settings(deadline=None, max_examples=150, derandomize=True)
SIDES = st.one_of(st.integers(1, 4000), st.integers(1, 12))
GRIDS = st.tuples(st.integers(1, 16), st.integers(1, 16))
SQUARES = st.integers(1, 16).map(lambda side: (side, side))
THRESHOLDS = st.one_of(st.sampled_from([0.0, 0.01, 0.25, 0.5, 0.75, 1.0]), st.floats(0, 1))
RULES = pytest.mark.parametrize("rule", [letterbox_valid, letterbox_valid_bilinear])


def area_mask(width: int, height: int, grid: tuple[int, int], side: int, threshold: float) -> np.ndarray:
    """The rule in two dimensions: what a cell has in common with the picture's rectangle, exactly."""
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
    found = letterbox_valid(width, height, grid, side, threshold)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, area_mask(width, height, grid, side, threshold))


@PROPERTY
@given(SIDES, SIDES, st.integers(1, 9), st.integers(1, 40), st.sampled_from([0.25, 0.5, 0.75]))
def test_bilinear_agrees_with_torch(width: int, height: int, cells: int, side: int, threshold: float) -> None:
    torch = pytest.importorskip("torch")
    pad = Fraction(abs(width - height) * side, 2 * max(width, height))
    inside = [pad <= p + Fraction(1, 2) <= side - pad for p in range(side)]
    line = torch.tensor(inside, dtype=torch.float64)
    square = torch.ones(side, side, dtype=torch.float64) * (line[:, None] if width > height else line)
    small = torch.nn.functional.interpolate(square[None, None], (cells, cells), mode="bilinear")[0, 0]
    near = (small - threshold).abs() < 1e-9  # a tie, where torch's floats fall to either side
    wanted = np.where(near.numpy(), True, small.numpy() >= threshold).astype(np.float32)
    found = letterbox_valid_bilinear(width, height, (cells, cells), side, threshold)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted.ravel())


@RULES
@PROPERTY
@given(SIDES, SIDES, GRIDS, st.integers(1, 64), THRESHOLDS)
def test_mask_is_symmetric(
    rule: Any, width: int, height: int, grid: tuple[int, int], side: int, threshold: float
) -> None:
    mask = rule(width, height, grid, side, threshold).reshape(grid)
    np.testing.assert_array_equal(mask, mask[::-1, ::-1])


@RULES
@PROPERTY
@given(SIDES, SIDES, GRIDS, st.integers(1, 64), THRESHOLDS)
def test_transposing_the_picture_transposes_the_mask(
    rule: Any, width: int, height: int, grid: tuple[int, int], side: int, threshold: float
) -> None:
    mask = rule(width, height, grid, side, threshold).reshape(grid)
    transposed = rule(height, width, grid[::-1], side, threshold).reshape(grid[::-1])
    np.testing.assert_array_equal(transposed, mask.T)


@PROPERTY
@given(SIDES, SIDES, GRIDS, st.integers(1, 64), THRESHOLDS, THRESHOLDS)
def test_masks_are_monotone_in_the_threshold(
    width: int, height: int, grid: tuple[int, int], side: int, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    size = (width, height, grid, side)
    assert (letterbox_valid(*size, low) <= letterbox_valid(*size, high)).all()  # more padding is tolerated
    assert (letterbox_valid_bilinear(*size, low) >= letterbox_valid_bilinear(*size, high)).all()


@RULES
@PROPERTY
@given(SIDES, GRIDS, st.integers(1, 64), THRESHOLDS)
def test_a_square_picture_has_no_padding(
    rule: Any, width: int, grid: tuple[int, int], side: int, threshold: float
) -> None:
    assert rule(width, width, grid, side, threshold).all()


@PROPERTY
@given(SIDES, SIDES, SQUARES, st.integers(1, 700), st.floats(0.1, 5000))
def test_the_share_does_not_depend_on_the_resolution(
    width: int, height: int, grid: tuple[int, int], one: int, other: float
) -> None:
    np.testing.assert_array_equal(
        letterbox_valid(width, height, grid, one), letterbox_valid(width, height, grid, other)
    )


@RULES
def test_a_wide_picture_is_padded_above_and_below(rule: Any) -> None:
    mask = rule(640, 320, (8, 8), 336).reshape(8, 8)
    assert mask[:, 0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert (mask == mask[:, :1]).all()


def test_a_share_on_the_threshold_is_valid_and_above_it_is_padding() -> None:
    # Padding of 1/8 of the side is half a cell of 4.
    assert letterbox_valid(4, 3, (4, 4), 336, 0.5).all()
    assert letterbox_valid(4, 3, (4, 4), 336, 0.499)[:4].tolist() == [0] * 4
    assert letterbox_valid(400, 299, (4, 4), 336, 0.5)[:4].tolist() == [0] * 4


@RULES
def test_the_default_threshold_is_one_half(rule: Any) -> None:
    def masks(*threshold: float) -> list[list[float]]:
        # Every height at two sides: among them are values just below and just above one half.
        sizes = [(side, height) for side in (185, 199) for height in range(1, side)]
        return [rule(*size, (24, 24), size[0], *threshold).tolist() for size in sizes]

    assert masks() == masks(0.5)
    assert masks() != masks(0.45)
    assert masks() != masks(0.55)


def test_a_picture_thinner_than_a_cell_counts_padding_of_both_sides() -> None:
    # 60 of 100 in one centre cell of 5: 40 % of it is padding, 20 % on either side.
    assert letterbox_valid(500, 60, (5, 5), 336, 0.4)[10:15].tolist() == [1] * 5
    assert letterbox_valid(500, 60, (5, 5), 336, 0.3)[10:15].tolist() == [0] * 5
    assert letterbox_valid(500, 60, (5, 5), 336, 0.4).sum() == 5


@RULES
def test_nothing_is_valid_in_an_extremely_elongated_picture(rule: Any) -> None:
    assert rule(100000, 1, (24, 24), 336).tolist() == [0] * 576


def test_narrow_integers_do_not_overflow() -> None:
    size = (np.uint16(3000), np.uint16(4000))
    for rule in (letterbox_valid, letterbox_valid_bilinear):
        np.testing.assert_array_equal(rule(*size, (24, 24), 336), rule(3000, 4000, (24, 24), 336))


def test_full_valid() -> None:
    mask = full_valid((2, 3))
    assert mask.dtype == np.float32
    assert mask.tolist() == [1] * 6


@RULES
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, (2, 2), 8), r"the width is 0: expected a number of pixels above 0; check"),
        ((4, -1, (2, 2), 8), r"the height is -1: expected"),
        ((4, 4, (2, 2), 0), r"the resolution is 0: expected"),
        ((4, 4, (2, 2), math.nan), r"the resolution is nan: expected"),
        ((4, 4, (2, 2), math.inf), r"the resolution is inf: expected"),
        ((4.5, 4, (2, 2), 8), r"the width is 4.5: expected a whole number of pixels; round it"),
        ((4, 4.5, (2, 2), 8), r"the height is 4.5: expected a whole number of pixels; round it"),
        (
            (4, 4, (0, 2), 8),
            r"the grid is \(0, 2\): expected \(rows, cols\), two whole numbers above 0; check",
        ),
        ((4, 4, (2, 2, 2), 8), r"the grid is \(2, 2, 2\)"),
        ((4, 4, (2, 2.5), 8), r"the grid is \(2, 2.5\)"),
        ((4, 4, (2, 2), 8, 1.1), r"the padding threshold is 1.1: expected a share from 0 to 1; 0.5"),
        ((4, 4, (2, 2), 8, -0.1), r"the padding threshold is -0.1"),
        ((4, 4, (2, 2), 8, math.nan), r"the padding threshold is nan"),
    ],
)
def test_masks_refuse(rule: Any, arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rule(*arguments)


def test_bilinear_refuses_half_a_pixel() -> None:
    with pytest.raises(InputError, match=r"the resolution is 33.5: expected a whole number of pixels"):
        letterbox_valid_bilinear(4, 3, (2, 2), 33.5)  # type: ignore[arg-type]


def test_full_valid_refuses_an_empty_grid() -> None:
    with pytest.raises(InputError, match=r"the grid is \(2, 0\)"):
        full_valid((2, 0))
