"""Calibration, the part that needs no model: what is shown, what was gathered so far, the report."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.curves import BiasCurve, FittedTo
from edgeprune.errors import InputError
from edgeprune.evaluation.formats import PICTURE_ENDINGS, Files, llava_lines
from edgeprune.evaluation.questions import read_text
from edgeprune.files import write_bytes
from edgeprune.fitting import Attention, Fit
from edgeprune.plotting import new_figure, save_figure

DEFAULT_PROMPT = "What is in the picture?"
_SCALARS = ("padding_paid", "total_paid", "padded", "tokens", "samples", "pictures")


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
    if limit is not None and limit < 1:
        raise InputError(f"--limit is {limit}: expected at least 1")
    if images.is_dir():
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
    missing = next((sample.picture for sample in samples if not sample.picture.is_file()), None)
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


class State:
    """What was gathered so far, in a file, so that a run that was stopped goes on.

    Args:
        path: the file.
        settings: everything the sums depend on, JSON values.
        visual_tokens: of a picture.
        restart: begin anew whatever is there.

    Attributes:
        attention: the sums.

    Raises:
        InputError: the file is none of this kind, or of a run with other settings.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], visual_tokens: int, restart: bool = False
    ) -> None:
        self.path = path
        self._settings = json.dumps(dict(settings), sort_keys=True)
        self.attention = Attention.empty(visual_tokens)
        if path.exists() and not restart:
            self._read()

    def save(self) -> None:
        """Writes the sums; the file is complete or as it was before.

        Raises:
            OutputError: it cannot be written.
        """
        content = io.BytesIO()
        names = ("sums", "counts", *_SCALARS)
        arrays: dict[str, Any] = {name: getattr(self.attention, name) for name in names}
        np.savez(content, settings=np.array(self._settings), **arrays)
        write_bytes(self.path, content.getvalue(), "what was measured so far")

    def remove(self) -> None:
        """The run is complete."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        try:
            with np.load(self.path, allow_pickle=False) as found:
                settings = json.loads(str(found["settings"]))
                arrays = {name: np.array(found[name]) for name in ("sums", "counts", *_SCALARS)}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{self.path} is no unfinished calibration ({error}): begin anew with --restart"
            ) from error
        wanted = json.loads(self._settings)
        changed = [
            f"{name} was {settings.get(name)} and is {wanted.get(name)}"
            for name in {**settings, **wanted}
            if settings.get(name) != wanted.get(name)
        ]
        if changed:
            raise InputError(
                f"{self.path} is an unfinished calibration with other settings ({'; '.join(changed)}): "
                "expected the same to go on; give another --output, or begin anew with --restart"
            )
        if {arrays["sums"].shape, arrays["counts"].shape} != {self.attention.sums.shape}:
            raise InputError(f"{self.path} is of another number of visual tokens: begin anew with --restart")
        scalars = {name: arrays[name].item() for name in _SCALARS}
        self.attention = Attention(sums=arrays["sums"], counts=arrays["counts"], **scalars)


@dataclass(frozen=True, eq=False)
class Calibration:
    """The result of a calibration.

    Attributes:
        fitted_to: model, method, layer, grid and number of pictures.
        attention: what was gathered.
        fit: what was fitted.
        curve: the chosen curve, with where it comes from.
    """

    fitted_to: FittedTo
    attention: Attention
    fit: Fit
    curve: BiasCurve

    def to_dict(self) -> dict[str, Any]:
        """Every figure, ready for JSON."""
        fit, attention = self.fit, self.attention
        return {
            **self.fitted_to.model_dump(),
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
                kind: {"error": trend.error, "r_squared": trend.r_squared}
                for kind, trend in fit.trends.items()
            },
            "padding_share_of_attention": attention.padding_share_of_attention,
            "padding_share_of_tokens": attention.padding_share_of_tokens,
            "advice": fit.advice,
            "mean_attention": [None if np.isnan(value) else float(value) for value in attention.mean],
            "samples_per_token": [int(count) for count in attention.counts.sum(0)],
        }


def plot(calibration: Calibration, path: Path) -> None:
    """Draws the mean attention by token index with the trends, and over the grid before and after.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: the picture cannot be written.
    """
    fit, about = calibration.fit, calibration.fitted_to
    mean = calibration.attention.mean
    after = mean * calibration.curve.weights(len(mean))
    figure = new_figure(11, 7.5)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    panel = top.subplots()
    index = np.arange(len(mean))
    panel.plot(index, mean, ".", color="0.55", markersize=4, label="mean attention")
    colors = {"exponential": "tab:red", "cubic": "tab:blue", "smooth": "tab:green"}
    for kind, trend in fit.trends.items():
        used = kind == fit.chosen
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
    panel.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    significant = "significant" if fit.slope.significant else "not significant"
    top.suptitle(
        f"{about.model}, {about.method} before layer {about.layer}, {about.pictures} pictures: "
        f"b = {fit.slope.b:.2e} ± {fit.slope.error:.1e} ({significant})"
    )
    titles = (
        f"as it is, rank correlation with the index {fit.spearman_before:+.2f}",
        f"after the {fit.chosen} curve, {fit.spearman_after:+.2f}",
    )
    for panel, values, title in zip(bottom.subplots(1, 2), (mean, after), titles, strict=True):
        _heat_map(bottom, panel, values.reshape(about.grid), title)
    save_figure(figure, path)


def _heat_map(figure: Any, panel: Any, values: NDArray[np.float64], title: str) -> None:
    """Relative to the mean, so that both maps share a scale."""
    relative = values / np.nanmean(values)
    most = max(2.0, float(np.nanquantile(relative, 0.98)))
    shown = panel.imshow(relative, cmap="viridis", vmin=0, vmax=most)
    panel.set_title(title, fontsize=10)
    panel.set_xticks([])
    panel.set_yticks([])
    figure.colorbar(shown, ax=panel, label="attention over its mean")
