"""Confidence intervals by resampling images (B. Efron, The Annals of Statistics 7, 1979; percentiles)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeprune.checks import check_count
from edgeprune.errors import InputError
from edgeprune.evaluation.metrics import Tally

RESAMPLES = 2000
MOST_RESAMPLES = 1_000_000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def check_resampling(resamples: int, seed: int) -> None:
    """Raises InputError for what cannot be drawn; to be asked before the answers are."""
    check_count("resamples", resamples, most=MOST_RESAMPLES)
    check_count("seed", seed, least=0, most=2**63 - 1)


def interval(tally: Tally, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The main figure's interval."""
    return _interval(tally.result()[tally.main], _resampled(tally, resamples, seed))


def paired(tally: Tally, baseline: Tally, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The interval of the difference of two runs on the same questions: every resample is drawn for both.

    Raises:
        InputError: the runs are not of the same questions.
    """
    if tally.counts.shape != baseline.counts.shape or (tally.strata != baseline.strata).any():
        raise InputError(
            "the two runs answer different questions: expected the same ones for a paired comparison; run "
            "both on the same file"
        )
    difference = tally.result()[tally.main] - baseline.result()[baseline.main]
    return _interval(difference, _resampled(tally, resamples, seed) - _resampled(baseline, resamples, seed))


def _resampled(tally: Tally, resamples: int, seed: int) -> NDArray[np.float64]:
    """The main figure [R] of resamples; the same seed draws the same units."""
    check_resampling(resamples, seed)
    rng = np.random.default_rng(seed)
    sums = np.zeros((resamples, tally.counts.shape[1]))
    for stratum in np.unique(tally.strata):
        counts = tally.counts[tally.strata == stratum]
        units = len(counts)
        for row in range(resamples):
            # One at a time: all weights at once would be as large as resamples times units.
            sums[row] += rng.multinomial(units, np.full(units, 1 / units)) @ counts
    return np.asarray(tally.figures(sums)[tally.main])


def _interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))
