"""A comparison as table, JSON and plot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeprune.evaluation.bootstrap import Interval
from edgeprune.evaluation.comparison import RANDOM, RANDOM_CONTENT, RESIZE, UNPRUNED, Comparison, Outcome
from edgeprune.files import write_text
from edgeprune.plotting import new_figure, save_figure

_COLORS = {"none": "tab:red", "position": "tab:orange", "padding": "tab:blue", "both": "tab:green"}
_BASELINES = {RESIZE: ("tab:purple", "x"), RANDOM: ("0.6", "s"), RANDOM_CONTENT: ("0.35", "s")}
_MARKERS = {"none": "o", "position": "^", "padding": "v", "both": "P"}
_LINES = {"none": "-", "position": ":", "padding": "--", "both": "-."}


def write(comparison: Comparison, folder: Path) -> None:
    """Writes comparison.md and comparison.json.

    Raises:
        OutputError: a file cannot be written.
    """
    write_text(folder / "comparison.md", markdown(comparison))
    write_text(folder / "comparison.json", json.dumps(comparison.to_dict(), indent=2) + "\n")


def interval_text(value: Interval) -> str:
    return f"{value.value:.1f} ({value.low:.1f} to {value.high:.1f})"


def difference_text(value: Interval | None) -> str:
    """A difference with its sign; in bold where its interval leaves out 0."""
    if value is None:
        return ""
    text = f"{value.value:+.1f} ({value.low:+.1f} to {value.high:+.1f})"
    return f"**{text}**" if value.excludes_zero else text


def markdown(comparison: Comparison) -> str:
    """Tables for a document."""
    unpruned = next(outcome for outcome in comparison.outcomes if outcome.way.name == UNPRUNED)
    parts = [
        f"{comparison.questions} questions about {comparison.images} images, "
        f"{comparison.visual_tokens:g} visual tokens each on average. Unpruned {comparison.figure}: "
        f"**{interval_text(unpruned.main)}**. In parentheses 95 % intervals from {comparison.resamples} "
        "resamples of the images.\n",
        f"{comparison.figure} by keep ratio:\n",
        _table(comparison, lambda outcome: interval_text(outcome.main)),
    ]
    if any(outcome.difference for outcome in comparison.outcomes):
        parts += [
            "Difference from the same method without debias, paired; bold where the interval leaves out 0:\n",
            _table(comparison, lambda outcome: difference_text(outcome.difference)),
        ]
    if any(outcome.added for outcome in comparison.outcomes):
        parts += [
            "What position adds to padding, the difference between both and padding alone, likewise:\n",
            _table(comparison, lambda outcome: difference_text(outcome.added)),
        ]
    parts += [
        "Visual tokens kept by each stage, means of dropped ones not counted / of the first stage's, % "
        "padding:\n",
        _table(comparison, _kept_text),
    ]
    if any(outcome.asked for outcome in comparison.outcomes):
        parts += [
            "Of the questions, % whose asked token is still there after each stage:\n",
            _table(comparison, asked_text),
        ]
    parts += [f"Left out: {reason}.\n" for reason in comparison.left_out]
    return "\n".join(parts)


def _kept_text(outcome: Outcome) -> str:
    kept = ", ".join(f"{count:.0f}" for count in outcome.kept)
    # A random selection among content has no padding, and in the other a mask was imposed too.
    return f"{kept} / {100 * outcome.padding:.0f}"


def asked_text(outcome: Outcome) -> str:
    """The shares of questions whose asked token stays, in per cent; empty where no question names one."""
    return ", ".join(f"{100 * share:.0f}" for share in outcome.asked or ())


def _table(comparison: Comparison, cell: Callable[[Outcome], str]) -> str:
    """A row per way, a column per keep ratio; ways without any content are left out."""
    found = {(outcome.way.name, outcome.way.keep): outcome for outcome in comparison.outcomes}
    keeps = _keeps(comparison)
    rows = ["| keep | " + " | ".join(f"{keep:g}" for keep in keeps) + " |", "|---|" + "---:|" * len(keeps)]
    for name in dict.fromkeys(name for name, keep in found if keep is not None):
        cells = [cell(found[name, keep]) if (name, keep) in found else "" for keep in keeps]
        if any(cells):
            rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _keeps(comparison: Comparison) -> list[float]:
    keeps = {outcome.way.keep for outcome in comparison.outcomes}
    return sorted((keep for keep in keeps if keep is not None), reverse=True)


def plot(comparison: Comparison, path: Path) -> None:
    """Draws the main figure over the keep ratio, a panel per method.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: the plot cannot be written.
    """
    methods = list(
        dict.fromkeys(
            outcome.way.method
            for outcome in comparison.outcomes
            if outcome.way.name not in (UNPRUNED, *_BASELINES)
        )
    )
    columns = min(3, len(methods))
    rows = -(-len(methods) // columns)
    figure = new_figure(max(8.0, 1 + 4.2 * columns), 1.2 + 3.4 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    handles: dict[str, Any] = {}
    for panel, method in zip(panels, methods, strict=False):
        handles |= _panel(panel, comparison, method)
    for panel in panels[len(methods) :]:
        panel.set_visible(False)
    for panel in panels[::columns]:
        panel.set_ylabel(comparison.figure)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(
        f"{comparison.benchmark}, {comparison.questions} questions; bars: 95 % intervals over images"
    )
    save_figure(figure, path)


def _panel(panel: Any, comparison: Comparison, method: str) -> dict[str, Any]:
    """Draws one method beside the baselines; returns what the legend names."""
    handles: dict[str, Any] = {}
    names = [
        *_BASELINES,
        *(f"{method}{end}" for end in ("", " + position", " + padding", " + both")),
    ]
    for name in names:
        found = sorted(
            (o for o in comparison.outcomes if o.way.name == name and o.way.keep is not None),
            key=lambda outcome: outcome.way.keep or 0.0,
        )
        if not found:
            continue
        debias = "none" if name in _BASELINES else name.removeprefix(method).removeprefix(" + ") or "none"
        style = {
            "color": _COLORS[debias],
            "marker": _MARKERS[debias],
            "linestyle": _LINES[debias],
        }
        if name in _BASELINES:
            style = dict(zip(style, (*_BASELINES[name], ":"), strict=True))
        label = name if name in _BASELINES else "method" if debias == "none" else f"method + {debias}"
        middle = [outcome.main.value for outcome in found]
        handles[label] = panel.errorbar(
            [outcome.way.keep for outcome in found],
            middle,
            yerr=(
                [max(0.0, o.main.value - o.main.low) for o in found],
                [max(0.0, o.main.high - o.main.value) for o in found],
            ),
            markersize=5,
            capsize=3,
            **style,
        )
    unpruned = next(outcome for outcome in comparison.outcomes if outcome.way.name == UNPRUNED)
    handles[UNPRUNED] = panel.axhline(unpruned.main.value, color="black", linewidth=1.2)
    keeps = _keeps(comparison)
    panel.set_xticks(keeps, [f"{keep:g}" for keep in keeps])
    panel.set_xlabel("keep ratio")
    panel.set_title(method)
    panel.grid(alpha=0.25)
    return handles
