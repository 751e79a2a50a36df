"""Fits on attention that is made with a known trend, or with none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeprune.calibration.attention import FOLDS, Attention
from edgeprune.calibration.fit import fit, slope, spearman, student_p
from edgeprune.debias.curves import CubicCurve, ExponentialCurve, TabulatedCurve
from edgeprune.errors import InputError

V = 144
INDEX = np.arange(V)


def add(to: Attention, paid: Any, valid: Any, image: NDArray[np.int64]) -> None:
    """Adds images whose tokens are the places in order."""
    places = np.tile(np.arange(paid.shape[1]), (len(paid), 1))
    to.add(paid.astype(np.float32), valid.astype(np.float32), places, image)


def images(
    trend: NDArray[np.float64], count: int = 400, noise: float = 1.0, seed: int = 0, letterboxed: bool = True
) -> Attention:
    """Images whose attention is the trend times noise of mean 1; padding gets ten times as much."""
    rng = np.random.default_rng(seed)
    paid = trend * rng.gamma(1 / noise**2, noise**2, (count, V)) if noise else np.tile(trend, (count, 1))
    valid = np.ones((count, V), dtype=np.float32)
    if letterboxed:
        rows = valid.reshape(count, 12, 12)
        for number in range(count):
            pad = number % 4
            rows[number, :pad] = rows[number, 12 - pad :] = 0
    paid = np.where(valid == 0, 10 * paid, paid)
    found = Attention.empty(V)
    for start in range(0, count, 7):  # in uneven parts, as batches come
        part = slice(start, start + 7)
        add(found, paid[part], valid[part], np.arange(count)[part])
    return found


@pytest.mark.parametrize("b", [0.02, 0.004, -0.01])
def test_a_known_growth_is_recovered_within_a_percent(b: float) -> None:
    found = fit(images(0.003 * np.exp(b * INDEX), noise=0.1))
    assert found.slope.b == pytest.approx(b, rel=0.01)
    assert abs(found.slope.b - b) < 4 * found.slope.error
    curve = found.trends["exponential"].curve
    assert isinstance(curve, ExponentialCurve)
    assert curve.b == pytest.approx(b, rel=0.01)
    assert curve.num_tokens == V
    assert found.slope.significant
    assert found.trends["exponential"].r_squared > 0.9


def test_padding_is_left_out_of_the_mean() -> None:
    trend = 0.003 * np.exp(0.004 * INDEX)
    assert images(trend, noise=0).mean == pytest.approx(trend, rel=1e-6)


def test_tokens_of_one_place_share_its_mean() -> None:
    """Images may have more or fewer tokens than there are places. A padded one does not count."""
    found = Attention.empty(3)
    paid = np.array([[1, 3, 50, 4]], dtype=np.float32)
    valid = np.array([[1, 1, 0, 1]], dtype=np.float32)
    found.add(paid, valid, np.array([[0, 0, 0, 2]]), np.array([0]))
    assert found.mean == pytest.approx([2, np.nan, 4], nan_ok=True)
    assert found.counts.sum(0).tolist() == [2, 0, 1]


def test_padding_shares() -> None:
    """0, 1, 2 and 3 of 12 rows on both sides, in turn; ten times the attention of other tokens."""
    found = images(np.ones(V), noise=0)
    assert found.padding_share_of_tokens == pytest.approx(0.25)
    assert found.padding_share_of_attention == pytest.approx(10 * 0.25 / (10 * 0.25 + 0.75))


def test_without_a_trend_it_says_so() -> None:
    found = fit(images(np.full(V, 0.003)))
    assert not found.slope.significant
    assert found.advice is not None
    assert "`debias='padding'`" in found.advice


def test_p_is_uniform_without_a_trend() -> None:
    """Of 60 runs without a trend, about 6 have p below 0.1, and none is called significant beyond chance."""
    p = [slope(images(np.full(V, 1.0), count=60, seed=seed)).p for seed in range(60)]
    assert 1 <= sum(value < 0.1 for value in p) <= 13
    assert sum(value < 0.01 for value in p) <= 3


def test_the_error_of_the_slope_is_its_spread_over_runs() -> None:
    runs = [slope(images(np.full(V, 1.0), count=60, seed=seed)) for seed in range(40)]
    spread = np.std([run.b for run in runs])
    assert np.mean([run.error for run in runs]) == pytest.approx(spread, rel=0.3)


def test_samples_of_one_image_share_a_fold() -> None:
    """Asking about each image five times tells nothing new, so the error must not shrink."""
    rng = np.random.default_rng(1)
    paid = rng.gamma(1.0, 1.0, (60, V)).astype(np.float32)
    once, often = Attention.empty(V), Attention.empty(V)
    add(once, paid, np.ones_like(paid), np.arange(60))
    repeated = np.repeat(paid, 5, axis=0)
    add(often, repeated, np.ones_like(repeated), np.repeat(np.arange(60), 5))
    assert (often.samples, often.images) == (300, 60)
    assert slope(often).error == pytest.approx(slope(once).error, rel=1e-6)


def test_a_falling_trend_is_no_recency() -> None:
    advice = fit(images(np.exp(-0.01 * INDEX))).advice
    assert advice is not None
    assert "falls" in advice


def test_a_rising_trend_needs_no_advice() -> None:
    assert fit(images(np.exp(0.01 * INDEX))).advice is None


def test_spearman_before_and_after() -> None:
    found = fit(images(np.exp(0.01 * INDEX), noise=0.5))
    assert found.spearman_before > 0.95
    assert abs(found.spearman_after) < 0.3


def test_the_trend_that_errs_least_on_other_images_is_chosen() -> None:
    assert fit(images(np.exp(0.02 * INDEX))).chosen == "exponential"
    bowl = 1 + 3 * (INDEX / V - 0.5) ** 2 + 2 * (INDEX / V - 0.3) ** 3
    assert fit(images(bowl, noise=0.2)).chosen == "cubic"
    steps = np.where(INDEX < 50, 1.0, 3.0) + (INDEX > 110)
    assert fit(images(steps, noise=0.2)).chosen == "smooth"


def test_a_kind_can_be_asked_for() -> None:
    assert fit(images(np.exp(0.02 * INDEX)), "smooth").trend.kind == "smooth"


def test_curves_take_the_trend_out() -> None:
    trend = 1 + (INDEX / V) ** 2
    found = fit(images(trend, noise=0.1))
    for kind, tolerance in (("cubic", 0.02), ("smooth", 0.05)):
        weights = found.trends[kind].curve.weights(V)
        assert weights * trend == pytest.approx(np.full(V, trend[0]), rel=tolerance)
    assert isinstance(found.trends["cubic"].curve, CubicCurve)
    assert isinstance(found.trends["smooth"].curve, TabulatedCurve)


def test_tokens_that_no_image_shows_are_left_out_of_the_fit() -> None:
    trend = np.exp(0.01 * INDEX)
    found = Attention.empty(V)
    valid = np.ones((60, V), dtype=np.float32)
    valid[:, :24] = valid[:, -24:] = 0
    add(found, np.where(valid == 0, 7.0, trend), valid, np.arange(60))
    assert np.isnan(found.mean[:24]).all()
    assert fit(found).slope.b == pytest.approx(0.01, rel=1e-3)


def test_a_cubic_below_zero_is_no_choice() -> None:
    """Close to 0 in the middle and high at the end, so that the cubic dips below."""
    found = images(1e-4 + 5.0 * (INDEX > 125), noise=0)
    assert "cubic" not in fit(found).trends
    with pytest.raises(InputError, match="a cubic trend cannot be fitted"):
        fit(found, "cubic")


def test_too_few_images() -> None:
    with pytest.raises(InputError, match=f"too few images .* found 39, expected at least {2 * FOLDS}"):
        fit(images(np.ones(V), count=39))


def test_too_few_tokens() -> None:
    found = Attention.empty(V)
    valid = np.zeros((40, V), dtype=np.float32)
    valid[:, :7] = 1
    add(found, np.ones((40, V)), valid, np.arange(40))
    with pytest.raises(InputError, match="of 144 visual tokens 7 ever show an image"):
        fit(found)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_what_is_no_attention(value: float) -> None:
    paid = np.ones((1, V), dtype=np.float32)
    paid[0, 3] = value
    with pytest.raises(InputError, match="negative or no numbers"):
        add(Attention.empty(V), paid, np.ones_like(paid), np.arange(1))


def test_spearman_of_known_ranks() -> None:
    assert spearman(np.arange(5), np.array([1.0, 4.0, 9.0, 16.0, 25.0])) == pytest.approx(1)
    assert spearman(np.arange(5), np.array([5.0, 4.0, 3.0, 2.0, 1.0])) == pytest.approx(-1)
    # 1 - 6 * sum of squared differences / (n^3 - n), differences 1, 1, 0, 1, 1.
    assert spearman(np.arange(5), np.array([2.0, 1.0, 3.0, 5.0, 4.0])) == pytest.approx(1 - 24 / 120)
    assert spearman(np.arange(4), np.array([1.0, 1.0, 2.0, 2.0])) == pytest.approx(2 / math.sqrt(5))
    assert spearman(np.arange(4), np.ones(4)) == 0


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [(0.0, 19, 1.0), (2.093, 19, 0.05), (2.861, 19, 0.01), (12.706, 1, 0.05), (-2.228, 10, 0.05)],
)
def test_student_p_as_tabulated(t: float, freedom: int, p: float) -> None:
    assert student_p(t, freedom) == pytest.approx(p, rel=2e-3)


def test_attention_beyond_every_trend() -> None:
    """No weight of float32 takes out a growth by 170 powers of e."""
    found = images(np.exp(np.linspace(-85, 85, V)), noise=0, letterboxed=False)
    with pytest.raises(InputError, match=r"no trend can be fitted .* from 1.22e-37 to 8.22e\+36"):
        fit(found)
