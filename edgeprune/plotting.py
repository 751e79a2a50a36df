"""Plots as PNG files. matplotlib is loaded where one is drawn, and never opens a window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeprune.errors import MissingDependencyError, OutputError


def need_matplotlib() -> None:
    """Raises MissingDependencyError where plots cannot be drawn; before the work rather than after it."""
    _classes()


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, in inches.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    canvas, figure = _classes()
    made = figure(figsize=(width, height), layout="constrained")
    canvas(made)
    return made


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure as PNG.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        figure.savefig(path, dpi=120, metadata={"Software": None})
    except OSError as error:
        raise OutputError(
            f"the plot cannot be written to {path} ({error.strerror}): choose a file in a folder that exists"
        ) from error


def _classes() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("drawing a plot", "matplotlib", "plot") from error
    return FigureCanvasAgg, Figure
