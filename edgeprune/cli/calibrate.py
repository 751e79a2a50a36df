"""`edgeprune calibrate`: measure a model's own bias curve."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeprune.cli.output import Json, print_fields, print_json, print_reason, print_table, progress_on_stderr
from edgeprune.cli.pruning import Layer, Method, read_layers

if TYPE_CHECKING:
    from edgeprune.calibration import Calibration, StageCalibration


class TrendName(str, Enum):
    """The kinds of trends, and the choice among them."""

    AUTO = "auto"
    EXPONENTIAL = "exponential"
    CUBIC = "cubic"
    SMOOTH = "smooth"


class CoordinateName(str, Enum):
    """The coordinates of a curve, and the choice among them."""

    AUTO = "auto"
    IMAGE = "image"
    BLOCK = "block"
    ROW = "row"
    CELL = "cell"


def calibrate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model folder in Hugging Face's layout, or a hub id.")
    ],
    images: Annotated[
        Path,
        typer.Option(
            metavar="DIR|FILE",
            help="A few hundred images: a folder, a list of paths, or a question file (.jsonl).",
        ),
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Questions, one per line, asked in turn; by default a general one."
        ),
    ] = None,
    method: Method = "fastv",
    layer: Layer = None,
    trend: Annotated[
        TrendName, typer.Option(help="The trend to use; auto takes what errs least on unseen images.")
    ] = TrendName.AUTO,
    coordinate: Annotated[
        CoordinateName,
        typer.Option(help="What the curve's places are; auto takes what explains most on unseen images."),
    ] = CoordinateName.AUTO,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The curve, for `export --curve`.")
    ] = Path("curve.json"),
    limit: Annotated[int | None, typer.Option(metavar="N", help="Use only the first images.")] = None,
    batch: Annotated[int, typer.Option(metavar="N", help="Images that run together.")] = 8,
    no_plot: Annotated[bool, typer.Option("--no-plot", help="Do not draw the plot.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew rather than go on with an unfinished run.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fit a bias curve to a model's own attention.

    Runs the model's layers over images, unpruned, and takes the mean of the attention that every stage of the
    method scores by, padded tokens left out. Writes the first stage's curve, all figures beside it
    (.report.json) and a plot (.png). The same command goes on after an interruption.

    `edgeprune calibrate llava --images images -o curve.json`
    """
    from edgeprune.calibration import Outputs, run

    with progress_on_stderr() as progress:
        found = run.calibrate(
            model,
            images,
            output,
            prompts=prompts,
            method=method,
            layer=read_layers(layer),
            trend=None if trend is TrendName.AUTO else trend.value,
            coordinate=None if coordinate is CoordinateName.AUTO else coordinate.value,
            limit=limit,
            batch=batch,
            restart=restart,
            plot=not no_plot,
            progress=progress,
        )
    if as_json:
        print_json("calibrate", found.to_dict())
        return
    _print(found)
    outputs = Outputs.beside(output)
    written = [outputs.curve, outputs.report, *([] if no_plot else [outputs.plot])]
    print(f"written: {', '.join(map(str, written))}")


def _print(found: Calibration) -> None:
    fit, first = found.fit, found.stages[0]
    rows = [
        [
            f"{kind} (chosen)" if kind == fit.chosen else kind,
            f"{trend.error:.4f}",
            f"{trend.r_squared:.3f}",
        ]
        for kind, trend in fit.trends.items()
    ]
    rows.append(["none", f"{fit.flat_error:.4f}", ""])
    print_table(["trend", "error on unseen images", "R²"], rows)
    values, attention = fit.trend.values, first.attention
    significant = "significant" if fit.slope.significant else "not significant"
    print_fields(
        [
            ("curve", found.curve.describe()),
            *([("places by", _coordinates(found))] if len(found.explained) > 1 else []),
            (
                "b",
                f"{fit.slope.b:.3e} ± {fit.slope.error:.1e} per token, p = {fit.slope.p:.2g}, {significant}",
            ),
            ("last over first", f"{values[-1] / values[0]:.3f} by the chosen trend"),
            (
                "rank correlation",
                f"{fit.spearman_before:+.3f} with the index, {fit.spearman_after:+.3f} after the curve",
            ),
            (
                "padding",
                f"{attention.padding_share_of_attention:.1%} of the attention, "
                f"{attention.padding_share_of_tokens:.1%} of the tokens",
            ),
        ]
    )
    if len(found.stages) > 1:
        _print_stages(found.stages)
    if fit.advice is not None:
        print_reason("note", fit.advice)


def _coordinates(found: Calibration) -> str:
    """The coordinates, and what each explains."""
    shares = (
        f"{name} nothing fits" if share is None else f"{name} {share:.1%}"
        for name, share in found.explained.items()
    )
    return f"{found.curve.coordinate}; explained of unseen attention: by {', '.join(shares)}"


def _print_stages(stages: tuple[StageCalibration, ...]) -> None:
    rows = [[f"before layer {stage.layer}", *_trend(stage), *_padding(stage)] for stage in stages]
    print_table(
        [
            "stage",
            "b per token",
            "significant",
            "R² exp.",
            "rank before",
            "after",
            "padding",
            "of tokens",
        ],
        rows,
    )
    for stage in stages:
        if stage.fault is not None:
            print(f"note: before layer {stage.layer}: {stage.fault}")


def _trend(stage: StageCalibration) -> list[str]:
    fit, exponential = stage.fit, stage.exponential
    if fit is None:
        return ["not fitted", "", "", "", ""]
    return [
        f"{fit.slope.b:.2e} ± {fit.slope.error:.1e}",
        "yes" if fit.slope.significant else "no",
        "" if exponential is None else f"{exponential.r_squared:.3f}",
        f"{fit.spearman_before:+.3f}",
        f"{fit.spearman_after:+.3f}",
    ]


def _padding(stage: StageCalibration) -> list[str]:
    attention = stage.attention
    return [f"{attention.padding_share_of_attention:.1%}", f"{attention.padding_share_of_tokens:.1%}"]
