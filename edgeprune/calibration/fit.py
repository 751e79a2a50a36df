"""Fitting bias curves: from attention by place to a trend, and whether there is one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgeprune.calibration.attention import FOLDS, Attention, Floats, mean_of
from edgeprune.debias.curves import BiasCurve, CubicCurve, ExponentialCurve, TabulatedCurve
from edgeprune.errors import InputError

TrendKind = Literal["exponential", "cubic", "smooth"]
KINDS: tuple[TrendKind, ...] = ("exponential", "cubic", "smooth")

SIGNIFICANT = 0.01
_BANDWIDTHS = (1 / 32, 1 / 16, 1 / 8, 1 / 4)


@dataclass(frozen=True, eq=False)
class Trend:
    """A trend f(i) fitted to the mean attention.

    Attributes:
        kind: of the trend.
        values: float64 [V], f at every index, positive.
        curve: the bias curve that takes it out, w_i = f(0) / f(i).
        error: root of the mean squared error on images that the fit has not seen, as a share of the mean.
        r_squared: share of the variance of the mean attention that it explains.
    """

    kind: TrendKind
    values: Floats = field(repr=False)
    curve: BiasCurve
    error: float
    r_squared: float


@dataclass(frozen=True)
class Slope:
    """The exponential trend's growth, f(i) = a * exp(b * i), and whether it is there at all.

    Attributes:
        b: growth per token.
        error: its standard error over images (delete-a-group jackknife).
        p: probability of so large a slope, either way, if there were none (Student's t).
    """

    b: float
    error: float
    p: float

    @property
    def significant(self) -> bool:
        return self.p < SIGNIFICANT


@dataclass(frozen=True, eq=False)
class Fit:
    """Everything that was fitted.

    Attributes:
        trends: those that could be fitted, by their kind.
        chosen: the one that is used.
        flat_error: `Trend.error` of no trend at all.
        slope: growth and significance.
        explained: share of the variance of single tokens' attention that the chosen trend explains on images
            it has not seen; below 0 where no trend at all errs less. Alike for all coordinates, so that the
            best of them can be told.
        spearman_before, spearman_after: rank correlation of mean attention with the index, as it is and
            multiplied by the chosen curve's weights.
    """

    trends: dict[TrendKind, Trend]
    chosen: TrendKind
    flat_error: float
    slope: Slope
    explained: float
    spearman_before: float
    spearman_after: float

    @property
    def trend(self) -> Trend:
        return self.trends[self.chosen]

    @property
    def advice(self) -> str | None:
        """What to do where position debiasing has nothing to take out; None where it has."""
        if not self.slope.significant:
            return (
                f"attention does not change with the token's index (p = {self.slope.p:.2g}): there is no "
                "recency bias to take out; export with `debias='padding'`"
            )
        if self.trend.error >= self.flat_error:
            return (
                "the trend is there, but on images it was not fitted to no curve is better than none; "
                "export with `debias='padding'`"
            )
        if self.slope.b < 0:
            return (
                "attention falls with the token's index, which is no recency bias: the curve would favour "
                "late tokens; compare it with `debias='padding'` before you use it"
            )
        return None


def need_images(count: int) -> None:
    """Raises InputError where so many images are too few for `fit`."""
    least = 2 * FOLDS
    if count < least:
        raise InputError(
            f"too few images to fit a trend to: found {count}, expected at least {least} and better a few "
            "hundred; add images"
        )


def fit(attention: Attention, kind: TrendKind | None = None) -> Fit:
    """Fits every kind of trend.

    Args:
        attention: of at least 2 * FOLDS images.
        kind: the trend to use; None for the one that errs least on images it has not seen.

    Raises:
        InputError: too few images or indices, no attention at all, or neither the kind nor, without one,
            any can be fitted.
    """
    need_images(attention.images)
    mean = attention.mean
    seen = np.flatnonzero(~np.isnan(mean))
    if len(seen) < 8 or not (mean[seen] > 0).all():
        least_paid = float(np.nanmin(mean)) if len(seen) else 0.0
        raise InputError(
            f"of {len(mean)} visual tokens {len(seen)} ever show an image, with attention from "
            f"{least_paid:.3g} on: expected at least 8, all above 0; use images of more shapes"
        )
    weights = attention.counts.sum(0)
    trends: dict[TrendKind, Trend] = {}
    width, smooth_error = _best_bandwidth(attention)
    for name in KINDS:
        values = _fitted(name, mean, weights, width)
        curve = None if values is None else _curve(name, mean, weights, values)
        if values is None or curve is None:
            continue
        error = smooth_error if name == "smooth" else _held_out_error(attention, name, width)
        trends[name] = Trend(name, values, curve, error, _r_squared(mean, values, weights))
    if not trends:
        raise InputError(
            f"no trend can be fitted to this attention, whose means go from {np.nanmin(mean):.3g} to "
            f"{np.nanmax(mean):.3g}: expected weights within float32's range; use more images"
        )
    if kind is not None and kind not in trends:
        raise InputError(
            f"a {kind} trend cannot be fitted to this attention, it would not stay above 0: choose among "
            f"{', '.join(trends)}"
        )
    chosen = min(trends, key=lambda name: trends[name].error) if kind is None else kind
    corrected = mean * trends[chosen].curve.weights(len(mean))
    flat_error, error = _held_out_error(attention, None, width), trends[chosen].error
    gain = (flat_error**2 - error**2) * float(np.nanmean(mean)) ** 2
    return Fit(
        trends=trends,
        chosen=chosen,
        flat_error=flat_error,
        slope=slope(attention),
        explained=gain / attention.variance if attention.variance > 0 else 0.0,
        spearman_before=spearman(seen, mean[seen]),
        spearman_after=spearman(seen, corrected[seen]),
    )


def spearman(first: Floats | NDArray[np.int64], second: Floats) -> float:
    """Spearman's rank correlation, equal values sharing their mean rank; 0 where one is constant."""
    x, y = _ranks(first) - (len(first) - 1) / 2, _ranks(second) - (len(second) - 1) / 2
    spread = math.sqrt(float((x * x).sum() * (y * y).sum()))
    return float((x * y).sum() / spread) if spread else 0.0


def student_p(t: float, freedom: int) -> float:
    """Two-sided p of Student's t.

    With t = sqrt(n) * tan(a), the tail is the integral of cos(a)^(n - 1) from a to pi / 2.
    """
    if math.isnan(t):
        return 1.0
    start = math.atan(abs(t) / math.sqrt(freedom))

    def integral(lower: float) -> float:
        # Simpson's rule.
        values = np.cos(np.linspace(lower, math.pi / 2, 2001)) ** (freedom - 1)
        inner = 4 * values[1:-1:2].sum() + 2 * values[2:-1:2].sum()
        return float((values[0] + inner + values[-1]) * (math.pi / 2 - lower))

    return min(1.0, integral(start) / integral(0.0))


def _ranks(values: Floats | NDArray[np.int64]) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts + 1) / 2)[inverse])


def _fitted(kind: TrendKind, mean: Floats, weights: Floats, width: float) -> Floats | None:
    """The trend at every index; None where it does not stay above 0."""
    index = np.arange(len(mean), dtype=np.float64)
    if kind == "exponential":
        a, b = _exponential(mean, weights)
        return np.asarray(a * np.exp(b * index))
    if kind == "cubic":
        values = np.asarray(np.polynomial.Polynomial(_cubic(mean, weights))(index))
        return values if (values > 0).all() else None
    return _smoothed(mean, weights, width * len(mean))


def _exponential(mean: Floats, weights: Floats) -> tuple[float, float]:
    """A and b of a * exp(b * i): weighted least squares on the attention itself, by Gauss-Newton steps.

    They start from the least squares on its logarithm, and are shortened while they do not help.
    """
    seen = ~np.isnan(mean) & (mean > 0)
    index, y, w = np.flatnonzero(seen).astype(np.float64), mean[seen], weights[seen]
    line = np.polynomial.Polynomial.fit(index, np.log(y), 1, w=np.sqrt(w)).convert().coef
    at = np.array([line[0], line[1] if len(line) > 1 else 0.0])

    def loss(parameters: Floats) -> float:
        with np.errstate(over="ignore"):
            return float((w * (y - np.exp(parameters[0] + parameters[1] * index)) ** 2).sum())

    for _ in range(100):
        f = np.exp(at[0] + at[1] * index)
        jacobian = np.stack([f, f * index], axis=1) * np.sqrt(w)[:, None]
        step = np.linalg.lstsq(jacobian, (y - f) * np.sqrt(w), rcond=None)[0]
        while loss(at + step) > loss(at) and np.abs(step).max() > 1e-15:
            step /= 2
        at = at + step
        if np.abs(step * [1.0, len(mean)]).max() < 1e-10:
            break
    return math.exp(at[0]), float(at[1])


def _cubic(mean: Floats, weights: Floats) -> Floats:
    """c0 to c3, weighted least squares."""
    seen = ~np.isnan(mean)
    fitted = np.polynomial.Polynomial.fit(np.flatnonzero(seen), mean[seen], 3, w=np.sqrt(weights[seen]))
    coefficients = fitted.convert().coef
    return np.asarray(np.pad(coefficients, (0, 4 - len(coefficients))))


def _smoothed(mean: Floats, weights: Floats, width: float) -> Floats | None:
    """Local lines under a Gaussian of the given standard deviation in tokens; None if not above 0."""
    seen = np.flatnonzero(~np.isnan(mean))
    offset = seen[None] - np.arange(len(mean))[:, None]
    near = np.exp(-0.5 * (offset / max(width, 1.0)) ** 2) * weights[seen]
    s0, s1, s2 = (np.asarray((near * offset**power).sum(1)) for power in (0, 1, 2))
    t0, t1 = (np.asarray((near * offset**power) @ mean[seen]) for power in (0, 1))
    spread = s0 * s2 - s1 * s1
    with np.errstate(divide="ignore", invalid="ignore"):
        values = (s2 * t0 - s1 * t1) / spread
    return values if np.isfinite(values).all() and (values > 0).all() else None


def _curve(kind: TrendKind, mean: Floats, weights: Floats, values: Floats) -> BiasCurve | None:
    """The curve of a fitted trend; None where its weights leave float32's range."""
    try:
        if kind == "exponential":
            return ExponentialCurve(b=_exponential(mean, weights)[1], num_tokens=len(mean))
        if kind == "cubic":
            c0, c1, c2, c3 = map(float, _cubic(mean, weights))
            return CubicCurve(coefficients=(c0, c1, c2, c3), num_tokens=len(mean))
        return TabulatedCurve(weights=tuple(map(float, values[0] / values)))
    except InputError:
        return None


def _best_bandwidth(attention: Attention) -> tuple[float, float]:
    """The smoothing width, as a share of the tokens, with the least held-out error, and that error."""
    errors = {width: _held_out_error(attention, "smooth", width) for width in _BANDWIDTHS}
    best = min(errors, key=lambda width: errors[width])
    return best, errors[best]


def _held_out_error(attention: Attention, kind: TrendKind | None, width: float) -> float:
    """Fits to all folds but one, and takes the error on that one; None stands for a constant."""
    squares = count = 0.0
    overall = float(np.nanmean(attention.mean))
    sums, counts = attention.sums.sum(0), attention.counts.sum(0)
    for fold in range(len(attention.sums)):
        own, seen_by = attention.counts[fold], counts - attention.counts[fold]
        rest = mean_of(sums - attention.sums[fold], seen_by)
        if kind is None:
            values: Floats | None = np.full(len(rest), np.nansum(rest * seen_by) / seen_by.sum())
        else:
            values = _fitted(kind, rest, seen_by, width)
        if values is None:
            return math.inf
        there = own > 0
        apart = mean_of(attention.sums[fold], own)[there] - values[there]
        squares += float((own[there] * apart**2).sum())
        count += float(own.sum())
    return math.sqrt(squares / count) / overall


def _r_squared(mean: Floats, values: Floats, weights: Floats) -> float:
    seen = ~np.isnan(mean)
    w, y, f = weights[seen], mean[seen], values[seen]
    total = float((w * (y - np.average(y, weights=w)) ** 2).sum())
    return 1 - float((w * (y - f) ** 2).sum()) / total if total else 0.0


def slope(attention: Attention) -> Slope:
    """B of all images, with its error from leaving out one fold at a time (R. Miller, 1974)."""
    sums, counts = attention.sums.sum(0), attention.counts.sum(0)
    b = _exponential(attention.mean, counts)[1]
    without: Sequence[float] = [
        _exponential(
            mean_of(sums - attention.sums[fold], counts - attention.counts[fold]),
            counts - attention.counts[fold],
        )[1]
        for fold in range(len(attention.sums))
    ]
    folds = len(without)
    error = math.sqrt((folds - 1) / folds * float(((np.array(without) - np.mean(without)) ** 2).sum()))
    t = b / error if error else (math.inf if b else math.nan)
    return Slope(b, error, student_p(t, folds - 1))
