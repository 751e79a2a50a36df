"""Choosing tokens: greedy, temperature, top_p, seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeprune.errors import InputError
from edgeprune.runtime.sampling import Sampler

LOGITS = np.log(np.array([0.1, 0.4, 0.15, 0.3, 0.05], dtype=np.float32))


def draw(times: int, **options: Any) -> list[int]:
    sampler = Sampler(**options)
    return [sampler.pick(LOGITS) for _ in range(times)]


def test_greedy_takes_the_likeliest_and_of_equal_ones_the_first() -> None:
    assert Sampler().pick(LOGITS) == 1
    assert Sampler().pick(np.array([0.0, 2.0, 2.0], dtype=np.float32)) == 1


def test_temperature_draws_by_probability() -> None:
    counts = np.bincount(draw(20_000, temperature=1.0, seed=1), minlength=5) / 20_000
    np.testing.assert_allclose(counts, np.exp(LOGITS), atol=0.015)


def test_temperature_sharpens_and_flattens() -> None:
    powers = np.exp(LOGITS.astype(np.float64)) ** 2
    counts = np.bincount(draw(20_000, temperature=0.5, seed=2), minlength=5) / 20_000
    np.testing.assert_allclose(counts, powers / powers.sum(), atol=0.015)


@pytest.mark.parametrize(
    ("top_p", "allowed"),
    [(0.01, {1}), (0.39, {1}), (0.5, {1, 3}), (0.8, {1, 2, 3}), (0.9, {0, 1, 2, 3}), (1.0, {0, 1, 2, 3, 4})],
)
def test_top_p_takes_the_fewest_tokens_that_reach_it(top_p: float, allowed: set[int]) -> None:
    assert set(draw(2_000, temperature=1.0, top_p=top_p, seed=3)) == allowed


def test_within_top_p_tokens_keep_their_proportions() -> None:
    counts = np.bincount(draw(20_000, temperature=1.0, top_p=0.6, seed=4), minlength=5) / 20_000
    np.testing.assert_allclose(counts, [0, 0.4 / 0.7, 0, 0.3 / 0.7, 0], atol=0.015)


def test_a_seed_repeats_and_another_differs() -> None:
    assert draw(50, temperature=1.0, seed=7) == draw(50, temperature=1.0, seed=7)
    assert draw(50, temperature=1.0, seed=7) != draw(50, temperature=1.0, seed=8)
    assert draw(50, temperature=1.0) != draw(50, temperature=1.0)


def test_extreme_logits_neither_overflow_nor_draw_the_impossible() -> None:
    logits = np.array([3e38, -np.inf, 0.0, -3e38], dtype=np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert {Sampler(temperature=1e-30, seed=s).pick(logits) for s in range(20)} == {0}
    ties = np.array([-np.inf, 5.0, 5.0], dtype=np.float32)
    assert {Sampler(temperature=1e-3, seed=s).pick(ties) for s in range(20)} == {1, 2}


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf"), "hot", None, True])
def test_a_temperature_out_of_range_is_refused(temperature: Any) -> None:
    with pytest.raises(InputError, match=r"the temperature is .* expected a number of at least 0"):
        Sampler(temperature=temperature)


@pytest.mark.parametrize("top_p", [0, -0.5, 1.01, float("nan"), "all", None, True])
def test_top_p_out_of_range_is_refused(top_p: Any) -> None:
    with pytest.raises(InputError, match=r"top_p is .* expected a number above 0 and at most 1"):
        Sampler(temperature=1.0, top_p=top_p)


@pytest.mark.parametrize("seed", [-1, 1.5, "seed", True])
def test_a_seed_that_is_no_whole_number_is_refused(seed: Any) -> None:
    with pytest.raises(InputError, match=r"the seed is .* expected a whole number"):
        Sampler(seed=seed)
