"""Choosing tokens: as transformers' own processors do, seeds, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import InputError
from edgeprune.manifest import Generation
from edgeprune.runtime.sampling import Sampler, SamplingOptions, chosen_by

LOGITS = np.log(np.array([0.1, 0.4, 0.15, 0.3, 0.05], dtype=np.float32))


def sampler(seed: int | None = None, **options: Any) -> Sampler:
    return Sampler(chosen_by(Generation(), SamplingOptions(**options)), seed=seed)


def draw(times: int, **options: Any) -> list[int]:
    one = sampler(**options)
    return [one.pick(LOGITS) for _ in range(times)]


def test_greedy_takes_the_likeliest_and_of_equal_ones_the_first() -> None:
    assert sampler().pick(LOGITS) == 1
    assert sampler().pick(np.array([0.0, 2.0, 2.0], dtype=np.float32)) == 1


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
        assert {sampler(temperature=1e-30, seed=s).pick(logits) for s in range(20)} == {0}
    ties = np.array([-np.inf, 5.0, 5.0], dtype=np.float32)
    assert {sampler(temperature=1e-3, seed=s).pick(ties) for s in range(20)} == {1, 2}


@pytest.mark.parametrize(
    ("name", "expected", "values"),
    [
        ("do_sample", "True or False", [0, "yes"]),
        (
            "temperature",
            "a number of at least 0",
            [-0.1, float("nan"), float("inf"), 1e-320, 1e300, "hot", True],
        ),
        ("top_k", "a whole number of at least 0", [-1, 1.5, True, "all"]),
        ("top_p", "a number above 0 and at most 1", [0, -0.5, 1.01, float("nan"), "all", True]),
        ("min_p", "a number from 0 to 1", [-0.1, 1.1, float("nan"), True]),
        ("repetition_penalty", "a number above 0", [0, -1, float("inf"), 1e-320, 1e300, "no"]),
        ("no_repeat_ngram_size", "a whole number of at least 0", [-1, 2.5]),
    ],
)
def test_an_option_out_of_range_is_refused(name: str, expected: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InputError, match=rf"`{name}` is .*: expected {expected}"):
            chosen_by(Generation(), SamplingOptions(**{name: value}))  # type: ignore[misc]


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(InputError, match="`top_q` is no option: expected one of do_sample, temperature"):
        chosen_by(Generation(), {"top_q": 1})  # type: ignore[typeddict-unknown-key]


@pytest.mark.parametrize("seed", [-1, 1.5, "seed", True])
def test_a_seed_that_is_no_whole_number_is_refused(seed: Any) -> None:
    with pytest.raises(InputError, match=r"`seed` is .* expected a whole number"):
        Sampler(Generation(), seed=seed)


DRAWING = Generation(do_sample=True, temperature=0.7, top_k=3)


@pytest.mark.parametrize(
    ("defaults", "given", "draws"),
    [
        (Generation(), {}, False),
        (DRAWING, {}, True),
        (DRAWING, {"do_sample": False}, False),
        (DRAWING, {"temperature": 0}, False),
        (DRAWING, {"temperature": None}, True),
        (Generation(), {"temperature": 0.5}, True),
        (Generation(), {"top_k": 5}, True),
        (Generation(), {"repetition_penalty": 1.2}, False),
        (Generation(), {"do_sample": True}, True),
    ],
)
def test_when_tokens_are_drawn(defaults: Generation, given: SamplingOptions, draws: bool) -> None:
    assert chosen_by(defaults, given).do_sample == draws


def test_what_is_not_said_is_the_checkpoint_s() -> None:
    found = chosen_by(DRAWING, {"top_p": 0.9})
    assert (found.temperature, found.top_k, found.top_p) == (0.7, 3, 0.9)


def test_what_changes_nothing_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    chosen_by(Generation(), {"do_sample": False, "top_p": 0.5, "min_p": 0.1})
    assert caplog.messages == [
        "`top_p`, `min_p` changes nothing where the likeliest token is taken (`do_sample=False`)"
    ]


OPTIONS = st.builds(
    Generation,
    do_sample=st.booleans(),
    temperature=st.floats(0.2, 3),
    top_k=st.integers(0, 14),
    top_p=st.floats(0.05, 1),
    min_p=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([0.5, 1.0, 1.05, 1.3, 5.0]),
    no_repeat_ngram_size=st.integers(0, 4),
)


@pytest.mark.slow
@given(how=OPTIONS, prompt=st.lists(st.integers(0, 11), max_size=30), seed=st.integers(0, 99))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_the_same_tokens_are_possible_as_with_transformers(
    how: Generation, prompt: list[int], seed: int
) -> None:
    """Its processors, in the order of `generate`, leave the same tokens and probabilities."""
    import torch
    from transformers.generation import logits_process as processors

    logits = np.random.default_rng(seed).normal(0, 3, 12).astype(np.float32)
    scores, ids = torch.from_numpy(logits.copy())[None], torch.tensor([prompt], dtype=torch.int64)
    if prompt and how.repetition_penalty != 1:
        scores = processors.RepetitionPenaltyLogitsProcessor(how.repetition_penalty)(ids, scores)
    if how.no_repeat_ngram_size:
        scores = processors.NoRepeatNGramLogitsProcessor(how.no_repeat_ngram_size)(ids, scores)
    if not torch.isfinite(scores).any():
        return
    ours = Sampler(how, prompt, seed=0)
    if not how.do_sample:
        assert ours.pick(logits) == int(scores.argmax())
        return
    scores = processors.TemperatureLogitsWarper(how.temperature)(ids, scores)
    if how.top_k:
        scores = processors.TopKLogitsWarper(how.top_k)(ids, scores)
    if how.top_p < 1:
        scores = processors.TopPLogitsWarper(how.top_p)(ids, scores)
    scores = processors.MinPLogitsWarper(how.min_p)(ids, scores)
    wanted = scores.double().softmax(-1)[0].numpy()
    # The inverse of the distribution at even steps: as often as its probability, in place of chance.
    found = np.zeros(12)
    for at in (np.arange(400) + 0.5) / 400:
        one = Sampler(how, prompt)
        one._rng = type("Even", (), {"random": staticmethod(lambda at=at: at)})()  # type: ignore[assignment]
        found[one.pick(logits)] += 1 / 400
    assert np.abs(found - wanted).max() <= 1 / 400 + 1e-9
