"""Plots as PNG files. matplotlib is loaded where one is drawn, and never opens a window."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from edgeprune.errors import MissingDependencyError
from edgeprune.files import write_bytes


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
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, metadata={"Software": None})
    write_bytes(path, content.getvalue(), "the plot")


def _classes() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("drawing a plot", "matplotlib", "plot") from error
    return FigureCanvasAgg, Figure
