"""Intervals: their width, their pairing, their seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprune.errors import InputError
from edgeprune.evaluation.bootstrap import check_resampling, interval, paired
from edgeprune.evaluation.comparison import Grid
from edgeprune.evaluation.metrics import Tally, exact_match, mme_score
from edgeprune.questions.question import Question

RIGHT = np.random.default_rng(0).random(400) < 0.7


def asked(images: int = 400) -> list[Question]:
    return [
        Question(id=n, where="", prompt="", images=(Path(f"{n % images}"),), answers=("x",))
        for n in range(400)
    ]


def tally(right: np.ndarray[tuple[int], np.dtype[np.bool_]], images: int = 400) -> Tally:
    return exact_match(asked(images), ["x" if ok else "y" for ok in right])


def test_the_interval_is_as_wide_as_the_binomial_says() -> None:
    found = interval(tally(RIGHT))
    share = RIGHT.mean()
    expected = 100 * 1.96 * np.sqrt(share * (1 - share) / 400)
    assert found.value == pytest.approx(100 * share)
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.1)


def test_pictures_are_resampled_not_questions() -> None:
    """Ten answers about an image that are right or wrong together are worth one."""
    alike = np.tile(RIGHT[:40], 10)
    wide, narrow = interval(tally(alike, images=40)), interval(tally(alike))
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(np.sqrt(10), rel=0.2)


def test_pairing_leaves_only_what_differs() -> None:
    better = RIGHT.copy()
    better[np.flatnonzero(~RIGHT)[:20]] = True
    found = paired(tally(better), tally(RIGHT))
    assert found.value == pytest.approx(5)
    assert found.excludes_zero
    alone = interval(tally(RIGHT))
    assert found.high - found.low < 0.7 * (alone.high - alone.low)


def test_a_run_does_not_differ_from_itself() -> None:
    found = paired(tally(RIGHT), tally(RIGHT))
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert not found.excludes_zero


def test_the_seed_decides() -> None:
    assert interval(tally(RIGHT), seed=1) == interval(tally(RIGHT), seed=1)
    assert interval(tally(RIGHT), seed=1) != interval(tally(RIGHT), seed=2)


def test_subtasks_are_resampled_apart() -> None:
    """A subtask of one image is in every resample, so a sum over subtasks never loses it."""
    questions = [
        Question(id=0, where="", prompt="", images=(Path(name),), answers=("yes",), group=name, unit=name)
        for name in ("color", "count")
    ]
    found = interval(mme_score(questions, ["yes", "yes"]))
    assert found.value == found.low == found.high == 400


def test_other_questions_cannot_be_paired() -> None:
    with pytest.raises(InputError, match=r"different questions.*same ones"):
        paired(tally(RIGHT), tally(RIGHT, images=40))


@pytest.mark.parametrize(
    ("resamples", "seed", "message"),
    [
        (0, 0, "`resamples` is 0: expected a whole number from 1 to 1000000"),
        (10**12, 0, "`resamples` is 1000000000000"),
        (2.5, 0, "`resamples` is 2.5"),
        (True, 0, "`resamples` is True"),
        (9, -1, "`seed` is -1: expected a whole number from 0"),
        (9, 10**30, "`seed` is 1000"),
    ],
)
def test_what_cannot_be_drawn_is_refused(resamples: Any, seed: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_resampling(resamples, seed)
    with pytest.raises(InputError, match=message):
        interval(tally(RIGHT), resamples, seed)
    with pytest.raises(InputError, match=message):  # so that nothing is asked before
        Grid(resamples=resamples, seed=seed)
