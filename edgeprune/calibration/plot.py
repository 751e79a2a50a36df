"""A calibration as a plot. matplotlib is loaded where one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.calibration.report import Calibration, StageCalibration
from edgeprune.plotting import new_figure, save_figure


def plot(calibration: Calibration, path: Path) -> None:
    """Draws for each stage the mean attention by token index with the trends, and the grid before and after.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: the plot cannot be written.
    """
    about, stages = calibration.fitted_to, calibration.stages
    figure = new_figure(15, 0.6 + 4.4 * len(stages))
    figure.suptitle(f"{about.model}, {about.method}, {about.images} images")
    for number, row in enumerate(figure.subfigures(len(stages), 1, squeeze=False)[:, 0]):
        _plot_stage(row, stages[number], about.grid, debiased=number == 0)
    save_figure(figure, path)


def _plot_stage(row: Any, stage: StageCalibration, grid: tuple[int, int] | None, debiased: bool) -> None:
    fit, mean = stage.fit, stage.attention.mean
    if grid is None or grid[0] * grid[1] != len(mean):
        grid = (1, len(mean))  # places of images of any size have no grid of their own
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
    panel.set_xlabel("place on the curve")
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
