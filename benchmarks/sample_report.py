"""The statistics and the document of `sample_accuracy.py`: tables, JSON, plot."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import MissingDependencyError, OutputError

NAME = "sample-accuracy"
BASELINE = "FastV"
CHANCE = 1 / 8
"""Of guessing among the words that may answer a question."""
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
_RESAMPLES = 1000
# Drawn in this order; the measured curves are in the tables only, the plot is full without them.
_STYLES = {
    "random": ("0.6", "s", ":"),
    "random among content": ("0.35", "D", ":"),
    BASELINE: ("tab:red", "o", "-"),
    "FastV + position": ("tab:orange", "^", "--"),
    "FastV + padding": ("tab:blue", "v", "-"),
    "FastV + both": ("tab:green", "P", "--"),
}


@dataclass(frozen=True)
class Figure:
    """The accuracy with one selection. Errors are standard errors; see `mean_and_error`.

    Attributes:
        name: the selection's name.
        layer: pruned before this layer; None where nothing is pruned.
        keep: keep ratio.
        accuracy, error: share of questions answered right.
        difference, difference_error: paired difference of accuracy from plain FastV, or None.
        padding: share of kept visual tokens that are padding, or None.
        target: share of questions for which the token that shows the thing asked about is kept, or None.
    """

    name: str
    layer: int | None
    keep: float
    accuracy: float
    error: float
    difference: float | None
    difference_error: float | None
    padding: float | None
    target: float | None


@dataclass(frozen=True)
class Trend:
    """The sample model's recency bias: f(i) = a * exp(b * i) fitted to its mean attention by token index.

    Attributes:
        layer: the pruning layer; its score is measured.
        b: growth per token, least squares on the logarithm.
        error: standard error of b over pictures, by resampling them.
        explained: share of the logarithm's variance over tokens that the trend explains (R squared).
        tokens: how many visual tokens a picture has.
        pictures: how many pictures were measured.
    """

    layer: int
    b: float
    error: float
    explained: float
    tokens: int
    pictures: int


@dataclass(frozen=True)
class Report:
    """All that one run measured, and how.

    Attributes:
        command: repeats the run.
        questions, pictures: asked, and drawn.
        seeds, curve_seeds: first and last seed of the pictures asked about, and of those the curve is from.
        machine: its kind.
        versions: of the packages that matter.
        minutes, cpu_minutes: the run took; the first depends on what else the machine did.
        padding: share of the pictures' visual tokens that are padding.
        unpruned: accuracy without pruning.
        figures: accuracy by layer, keep ratio and selection.
        trends: measured recency bias per layer.
    """

    command: str
    questions: int
    pictures: int
    seeds: tuple[int, int]
    curve_seeds: tuple[int, int]
    machine: str
    versions: dict[str, str]
    minutes: float
    cpu_minutes: float
    padding: float
    unpruned: Figure
    figures: tuple[Figure, ...]
    trends: tuple[Trend, ...]


def mean_and_error(values: NDArray[np.float64], picture: NDArray[np.int64]) -> tuple[float, float]:
    """Mean over questions and its standard error over pictures.

    Answers about one picture are not independent, so the error is that of the mean of the pictures' means;
    every picture is asked about equally often.

    Args:
        values: float64 [N], one per question.
        picture: int64 [N], the number 0..P-1 of the picture it is about, P at least 2.
    """
    counts = np.bincount(picture)
    means = np.bincount(picture, values) / counts
    return float(values.mean()), float(means.std(ddof=1) / np.sqrt(len(means)))


def fit_trend(layer: int, attention: NDArray[np.float64], valid: NDArray[np.float32]) -> Trend:
    """Fits the exponential trend (arXiv 2508.17807) to the mean attention by token index.

    Args:
        layer: the pruning layer, for the record.
        attention: float64 [P, V], each picture's attention by visual token.
        valid: float32 [P, V], the padding masks; padded tokens are left out.
    """
    rng = np.random.default_rng(0)
    pictures, tokens = attention.shape
    once = np.ones((1, pictures))
    drawn = rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=_RESAMPLES).astype(float)
    ((b,), (explained,)), (resampled, _) = (_slopes(w, attention, valid) for w in (once, drawn))
    return Trend(layer, float(b), float(resampled.std(ddof=1)), float(explained), tokens, pictures)


def _slopes(
    weights: NDArray[np.float64], attention: NDArray[np.float64], valid: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Slope and R squared of log mean attention by index, [R] each, for R weightings of P pictures."""
    seen = weights @ valid
    use = seen > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(use, np.log(weights @ (attention * valid) / seen), 0.0)
    index = np.broadcast_to(np.arange(valid.shape[1], dtype=float), logs.shape)
    count = use.sum(1, keepdims=True)
    x = np.where(use, index - (index * use).sum(1, keepdims=True) / count, 0.0)
    y = np.where(use, logs - logs.sum(1, keepdims=True) / count, 0.0)
    slope = (x * y).sum(1) / (x * x).sum(1)
    return slope, slope**2 * (x * x).sum(1) / (y * y).sum(1)


def write(report: Report, folder: Path) -> None:
    """Writes the document's measured part, the JSON and the plot into `folder`.

    Raises:
        OutputError: a file cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    document = folder / f"{NAME}.md"
    try:
        earlier = document.read_text(encoding="utf-8") if document.exists() else None
        document.write_text(updated(earlier, markdown(report)), encoding="utf-8")
        (folder / f"{NAME}.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
        _plot(report, folder / f"{NAME}.png")
    except OSError as error:
        raise OutputError(
            f"{error.filename or folder} cannot be written ({error.strerror}): choose another folder"
        ) from error


def updated(earlier: str | None, measured: str) -> str:
    """A document with `measured` between its markers; what stands outside them is kept."""
    block = f"{BEGIN}\n\n{measured}\n{END}"
    if earlier is None or BEGIN not in earlier or END not in earlier:
        return f"# Accuracy of the pruned sample model\n\n{block}\n"
    before, _, rest = earlier.partition(BEGIN)
    return before + block + rest.partition(END)[2]


def markdown(report: Report) -> str:
    """The measured part of the document."""
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    parts = [
        f"    {report.command}\n",
        f"took {report.minutes:.0f} minutes ({report.cpu_minutes:.0f} of CPU time) on {report.machine}, "
        f"with {versions}.\n",
        f"{report.questions} questions about {report.pictures} pictures (seeds {report.seeds[0]} to "
        f"{report.seeds[1]}). {report.padding:.0%} of the visual tokens are padding. "
        f"Unpruned: **{_percent(report.unpruned.accuracy, report.unpruned.error)}** right. "
        f"Guessing: {CHANCE:.1%}.\n",
        f"![accuracy over the keep ratio]({NAME}.png)\n",
    ]
    for layer in _layers(report):
        title = f"Pruned before layer {layer}"
        parts += [f"## {title}\n", "Accuracy in %, with its standard error:\n"]
        parts.append(_table(report, layer, lambda f: _percent(f.accuracy, f.error)))
        parts.append(f"Difference from {BASELINE} in percentage points, paired; bold beyond two errors:\n")
        parts.append(_table(report, layer, _difference))
        parts.append("Of the kept tokens, % padding / of the questions, % whose answer's token is kept:\n")
        parts.append(
            _table(report, layer, lambda f: f"{100 * (f.padding or 0):.0f} / {100 * (f.target or 0):.0f}")
        )
    parts.append("## The sample model's own recency bias\n")
    parts.append(_trends(report))
    return "\n".join(parts)


def _layers(report: Report) -> list[int]:
    return list(dict.fromkeys(figure.layer for figure in report.figures if figure.layer is not None))


def _keeps(report: Report) -> list[float]:
    return sorted({figure.keep for figure in report.figures}, reverse=True)


def _table(report: Report, layer: int, cell: Any) -> str:
    """A row per selection, a column per keep ratio."""
    keeps = _keeps(report)
    found = {(figure.name, figure.keep): figure for figure in report.figures if figure.layer == layer}
    rows = ["| keep | " + " | ".join(f"{keep:g}" for keep in keeps) + " |", "|---|" + "---:|" * len(keeps)]
    for name in dict.fromkeys(name for name, _ in found):
        cells = [cell(found[name, keep]) for keep in keeps]
        if any(cells):
            rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _percent(share: float, error: float) -> str:
    return f"{100 * share:.1f} ± {100 * error:.1f}"


def _difference(figure: Figure) -> str:
    if figure.difference is None or figure.difference_error is None:
        return ""
    text = f"{100 * figure.difference:+.1f} ± {100 * figure.difference_error:.1f}"
    return f"**{text}**" if abs(figure.difference) > 2 * figure.difference_error else text


def _trends(report: Report) -> str:
    rows = [
        "| pruned before layer | b per token | b / error | last token over first | R² |",
        "|---|---:|---:|---:|---:|",
    ]
    for trend in report.trends:
        ratio = np.exp(trend.b * (trend.tokens - 1))
        rows.append(
            f"| {trend.layer} | {trend.b:.2e} ± {trend.error:.1e} | {trend.b / trend.error:.1f} "
            f"| {ratio:.2f} | {trend.explained:.2f} |"
        )
    pictures = report.trends[0].pictures
    return (
        "\n".join(rows)
        + f"\n\nFrom {pictures} tuning pictures (seeds {report.curve_seeds[0]} to {report.curve_seeds[1]}), "
        f"error by resampling pictures {_RESAMPLES} times.\n"
    )


def _plot(report: Report, path: Path) -> None:
    """Accuracy over the keep ratio, a panel per layer."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise MissingDependencyError("drawing the plot", "matplotlib", "dev") from error
    layers = _layers(report)
    canvas = Canvas(figsize=(1 + 4.6 * len(layers), 4.6), layout="constrained")
    FigureCanvasAgg(canvas)
    panels = canvas.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    keeps = _keeps(report)
    for panel, layer in zip(panels, layers, strict=True):
        unpruned = panel.axhline(
            100 * report.unpruned.accuracy, color="black", linewidth=1.2, label="unpruned"
        )
        chance = panel.axhline(100 * CHANCE, color="black", linewidth=0.8, linestyle=":", label="guessing")
        lines = []
        for name, (color, marker, line) in _STYLES.items():
            chosen = sorted(
                (f for f in report.figures if f.layer == layer and f.name == name), key=lambda f: f.keep
            )
            lines.append(
                panel.errorbar(
                    [f.keep for f in chosen],
                    [100 * f.accuracy for f in chosen],
                    yerr=[100 * f.error for f in chosen],
                    color=color,
                    marker=marker,
                    linestyle=line,
                    markersize=5,
                    capsize=3,
                    label=name,
                )
            )
        panel.set_title(f"pruned before layer {layer}")
        panel.set_xlabel("keep ratio")
        panel.set_xticks(keeps, [f"{keep:g}" for keep in keeps])
        panel.set_ylim(0, 102)
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("questions answered right, %")
    canvas.legend(
        handles=[unpruned, *lines, chance], loc="outside lower center", ncols=2 * len(layers), frameon=False
    )
    canvas.suptitle(f"Sample model, {report.questions} held-out questions; bars: one standard error")
    canvas.savefig(path, dpi=120, metadata={"Software": None})
