"""What a calibration came to: a fit of every stage, the curve, and every figure for a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeprune.calibration.attention import Attention
from edgeprune.calibration.fit import Fit, Trend, TrendKind, fit
from edgeprune.debias.curves import BiasCurve, Coordinate, FittedTo
from edgeprune.errors import InputError
from edgeprune.plans import PruningStage, ScoringRows


@dataclass(frozen=True, eq=False)
class StageCalibration:
    """What was measured at one pruning stage.

    Attributes:
        layer: the stage is before it.
        score_layer: the layer whose attention was measured.
        rows: whose attention.
        attention: what was gathered.
        fit: what was fitted; None where nothing could be, which only a later stage's may be.
        fault: why not.
    """

    layer: int
    score_layer: int | None
    rows: ScoringRows
    attention: Attention
    fit: Fit | None
    fault: str | None = None

    @property
    def exponential(self) -> Trend | None:
        return self.fit.trends.get("exponential") if self.fit else None

    def to_dict(self) -> dict[str, Any]:
        """Every figure, ready for JSON."""
        attention = self.attention
        return {
            "layer": self.layer,
            "score_layer": self.score_layer,
            "rows": self.rows.value,
            **(_figures(self.fit) if self.fit else {"fault": self.fault}),
            "padding_share_of_attention": attention.padding_share_of_attention,
            "padding_share_of_tokens": attention.padding_share_of_tokens,
            "mean_attention": [None if np.isnan(value) else float(value) for value in attention.mean],
            "samples_per_token": [int(count) for count in attention.counts.sum(0)],
        }


@dataclass(frozen=True, eq=False)
class Calibration:
    """The result of a calibration.

    Attributes:
        fitted_to: model, method, first stage's layer, grid and number of images.
        stages: what was measured, in the order of the layers, by the coordinate of the curve.
        fit: what was fitted to the first stage, which alone a method debiases.
        explained: for each coordinate that was measured what the first stage's chosen trend explains, see
            `Fit.explained`; None where nothing could be fitted.
        curve: the first stage's chosen curve, with where it comes from.
    """

    fitted_to: FittedTo
    stages: tuple[StageCalibration, ...]
    fit: Fit
    explained: dict[Coordinate, float | None]
    curve: BiasCurve

    def to_dict(self) -> dict[str, Any]:
        """Every figure, ready for JSON."""
        stages = [stage.to_dict() for stage in self.stages]
        return {
            **self.fitted_to.model_dump(),
            "advice": self.fit.advice,
            "coordinate": self.curve.coordinate,
            "explained": self.explained,
            "stages": stages,
        }


def calibration_of(
    belongs: FittedTo,
    stages: Sequence[PruningStage],
    attention: Mapping[Coordinate, Sequence[Attention]],
    kind: TrendKind | None = None,
    coordinate: Coordinate | None = None,
) -> Calibration:
    """Fits trends to every stage's attention, and takes the first stage's for the curve.

    Args:
        belongs: whose curve it is.
        stages: the plan's.
        attention: of each stage, by each coordinate.
        kind: the trend to use; None for the one that errs least on images it has not seen. A later stage
            that it cannot be fitted to, has that one too.
        coordinate: where the curve begins anew; None for what explains most of the first stage's attention.

    Raises:
        InputError: nothing can be fitted to the first stage, see `edgeprune.calibration.fit.fit`; or the
            coordinate was not measured.
    """
    if coordinate is not None and coordinate not in attention:
        raise InputError(
            f"`coordinate` is {coordinate}, and this model's images are measured by "
            f"{', '.join(attention)} alone: choose one of these, or leave it out"
        )
    fits: dict[Coordinate, Fit] = {}
    fault: InputError | None = None
    for name, of_stages in attention.items():
        try:
            fits[name] = fit(of_stages[0], kind)
        except InputError as error:
            if name == coordinate:
                raise
            fault = error
    if fault is not None and not fits:
        raise fault
    best = max(fits, key=lambda name: fits[name].explained) if coordinate is None else coordinate
    first = fits[best]
    found = [
        StageCalibration(stage.layer, stage.score_layer, stage.rows, measured, *fitted)
        for stage, measured, fitted in zip(
            stages,
            attention[best],
            [(first, None), *(_fit_if_possible(later, kind) for later in attention[best][1:])],
            strict=True,
        )
    ]
    images = f"{belongs.images} images"
    source = f"measured on {belongs.model}, {belongs.method} before layer {belongs.layer}, {images}"
    curve = first.trend.curve.model_copy(update={"coordinate": best, "fitted_to": belongs, "source": source})
    explained = {name: fits[name].explained if name in fits else None for name in attention}
    return Calibration(belongs, tuple(found), first, explained, curve)


def _fit_if_possible(attention: Attention, kind: TrendKind | None) -> tuple[Fit | None, str | None]:
    """A later stage's fit, or why there is none: it is there to be read, and must not cost the curve."""
    try:
        return fit(attention, kind), None
    except InputError as error:
        return (None, str(error)) if kind is None else _fit_if_possible(attention, None)


def _figures(fit: Fit) -> dict[str, Any]:
    return {
        "chosen": fit.chosen,
        "b": fit.slope.b,
        "b_error": fit.slope.error,
        "p": fit.slope.p,
        "significant": fit.slope.significant,
        "last_over_first": float(fit.trend.values[-1] / fit.trend.values[0]),
        "spearman_before": fit.spearman_before,
        "spearman_after": fit.spearman_after,
        "flat_error": fit.flat_error,
        "explained": fit.explained,
        "trends": {
            kind: {"error": trend.error, "r_squared": trend.r_squared} for kind, trend in fit.trends.items()
        },
    }
