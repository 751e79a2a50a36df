"""Calibration, the part that needs no model: what is shown, and the report."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.checks import check_count
from edgeprune.debias.curves import BiasCurve, FittedTo
from edgeprune.errors import InputError
from edgeprune.evaluation.formats import PICTURE_ENDINGS, Files, llava_lines
from edgeprune.evaluation.questions import read_text
from edgeprune.fitting import Attention, Fit, Trend, TrendKind, fit
from edgeprune.plans import PruningStage, ScoringRows
from edgeprune.plotting import new_figure, save_figure

DEFAULT_PROMPT = "What is in the picture?"


@dataclass(frozen=True)
class Sample:
    """A picture and the question that is asked about it."""

    picture: Path
    prompt: str


def read_samples(images: Path, prompts: Path | None = None, limit: int | None = None) -> list[Sample]:
    """The pictures to calibrate on.

    Args:
        images: a folder of pictures; LLaVA's question file (.jsonl), of one picture per line; or a text file
            with a path per line. Paths in files count from the file's folder.
        prompts: a text file with a question per line, asked in turn; None for one general question, or the
            question file's own.
        limit: use the first ones only.

    Raises:
        InputError: a file or folder is missing, empty or malformed, or a picture is missing.
    """
    if limit is not None:
        check_count("limit", limit)
    if os.path.isdir(images):
        found = sorted(path for path in images.iterdir() if path.suffix.lower() in PICTURE_ENDINGS)
        samples = [Sample(path, DEFAULT_PROMPT) for path in found]
    elif images.suffix == ".jsonl":
        samples = []
        for question in llava_lines(Files(images)):
            picture = question.pictures[0] if len(question.pictures) == 1 else None
            if not isinstance(picture, Path):
                raise InputError(
                    f"{question.where}: {len(question.pictures)} pictures: expected one per question"
                )
            samples.append(Sample(picture, question.prompt))
    else:
        names = [line.strip() for line in read_text(images).splitlines()]
        samples = [Sample(images.parent / name, DEFAULT_PROMPT) for name in names if name]
    if not samples:
        raise InputError(
            f"{images} has no pictures: expected {', '.join(PICTURE_ENDINGS)}; give another folder or file"
        )
    samples = samples[:limit]
    missing = next((sample.picture for sample in samples if not os.path.isfile(sample.picture)), None)
    if missing is not None:
        raise InputError(f"there is no picture {missing}, which {images} names: correct the file")
    if prompts is None:
        return samples
    asked = [line.strip() for line in read_text(prompts).splitlines() if line.strip()]
    if not asked:
        raise InputError(f"{prompts} is empty: expected a question per line")
    return [Sample(sample.picture, asked[n % len(asked)]) for n, sample in enumerate(samples)]


def picture_numbers(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """int64 [N], for each sample the number of its picture, in the order in which they first come."""
    known: dict[Path, int] = {}
    return np.array([known.setdefault(sample.picture, len(known)) for sample in samples], dtype=np.int64)


def digest(samples: Sequence[Sample]) -> str:
    """Short text that changes with the samples and their order."""
    text = "\0".join(f"{sample.picture}\0{sample.prompt}" for sample in samples)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


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
        fitted_to: model, method, first stage's layer, grid and number of pictures.
        stages: what was measured, in the order of the layers.
        fit: what was fitted to the first stage, which alone a method debiases.
        curve: the first stage's chosen curve, with where it comes from.
    """

    fitted_to: FittedTo
    stages: tuple[StageCalibration, ...]
    fit: Fit
    curve: BiasCurve

    def to_dict(self) -> dict[str, Any]:
        """Every figure, ready for JSON."""
        stages = [stage.to_dict() for stage in self.stages]
        return {**self.fitted_to.model_dump(), "advice": self.fit.advice, "stages": stages}


def calibration_of(
    belongs: FittedTo,
    stages: Sequence[PruningStage],
    attention: Sequence[Attention],
    kind: TrendKind | None = None,
) -> Calibration:
    """Fits trends to every stage's attention, and takes the first stage's for the curve.

    Args:
        belongs: whose curve it is.
        stages: the plan's.
        attention: of each stage.
        kind: the trend to use; None for the one that errs least on pictures it has not seen. A later stage
            that it cannot be fitted to, has that one too.

    Raises:
        InputError: nothing can be fitted to the first stage; see `edgeprune.fitting.fit`.
    """
    first = fit(attention[0], kind)
    found = [
        StageCalibration(stage.layer, stage.score_layer, stage.rows, measured, *fitted)
        for stage, measured, fitted in zip(
            stages,
            attention,
            [(first, None), *(_fit_if_possible(later, kind) for later in attention[1:])],
            strict=True,
        )
    ]
    pictures = f"{belongs.pictures} pictures"
    source = f"measured on {belongs.model}, {belongs.method} before layer {belongs.layer}, {pictures}"
    curve = first.trend.curve.model_copy(update={"fitted_to": belongs, "source": source})
    return Calibration(belongs, tuple(found), first, curve)


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
        "trends": {
            kind: {"error": trend.error, "r_squared": trend.r_squared} for kind, trend in fit.trends.items()
        },
    }


def plot(calibration: Calibration, path: Path) -> None:
    """Draws for each stage the mean attention by token index with the trends, and the grid before and after.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: the picture cannot be written.
    """
    about, stages = calibration.fitted_to, calibration.stages
    figure = new_figure(15, 0.6 + 4.4 * len(stages))
    figure.suptitle(f"{about.model}, {about.method}, {about.pictures} pictures")
    for number, row in enumerate(figure.subfigures(len(stages), 1, squeeze=False)[:, 0]):
        _plot_stage(row, stages[number], about.grid, debiased=number == 0)
    save_figure(figure, path)


def _plot_stage(row: Any, stage: StageCalibration, grid: tuple[int, int], debiased: bool) -> None:
    fit, mean = stage.fit, stage.attention.mean
    trends, *maps = row.subplots(1, 3, width_ratios=(2.2, 1, 1))
    _plot_trends(trends, stage)
    if fit is None:
        row.suptitle(f"before layer {stage.layer}: no trend can be fitted")
        _heat_map(row, maps[0], mean.reshape(grid), "as it is")
        maps[1].set_axis_off()
        return
    significant = "significant" if fit.slope.significant else "not significant"
    note = "" if debiased else "; not debiased by the method"
    row.suptitle(
        f"before layer {stage.layer}: b = {fit.slope.b:.2e} ± {fit.slope.error:.1e} ({significant}){note}"
    )
    after = mean * fit.trend.curve.weights(len(mean))
    for panel, values, title in zip(
        maps,
        (mean, after),
        (
            f"as it is, rank correlation {fit.spearman_before:+.2f}",
            f"without the {fit.chosen} trend, {fit.spearman_after:+.2f}",
        ),
        strict=True,
    ):
        _heat_map(row, panel, values.reshape(grid), title)


def _plot_trends(panel: Any, stage: StageCalibration) -> None:
    fit, mean = stage.fit, stage.attention.mean
    index = np.arange(len(mean))
    panel.plot(index, mean, ".", color="0.55", markersize=4, label="mean attention")
    colors = {"exponential": "tab:red", "cubic": "tab:blue", "smooth": "tab:green"}
    for kind, trend in fit.trends.items() if fit else ():
        used = fit is not None and kind == fit.chosen
        panel.plot(
            index,
            trend.values,
            color=colors[kind],
            linewidth=2.5 if used else 1.2,
            linestyle="-" if used else "--",
            label=f"{kind}, R² {trend.r_squared:.2f}{', chosen' if used else ''}",
        )
    panel.set_xlabel("visual token's index")
    panel.set_ylabel("attention")
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.25)
    panel.legend(frameon=False, fontsize=8)


def _heat_map(figure: Any, panel: Any, values: NDArray[np.float64], title: str) -> None:
    """Relative to the mean, so that both maps share a scale."""
    relative = values / (np.nanmean(values) or 1.0)
    most = max(2.0, float(np.nanquantile(relative, 0.98)))
    shown = panel.imshow(relative, cmap="viridis", vmin=0, vmax=most)
    panel.set_title(title, fontsize=10)
    panel.set_xticks([])
    panel.set_yticks([])
    figure.colorbar(shown, ax=panel, label="attention over its mean")
