"""Calibration from end to end: a model's own bias curve, from images on the disk to a curve on the disk."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeprune.calibration.fit import KINDS, TrendKind, need_images
from edgeprune.calibration.outputs import Outputs
from edgeprune.calibration.plot import plot as draw
from edgeprune.calibration.report import Calibration, calibration_of
from edgeprune.calibration.samples import Sample, digest, image_numbers, read_samples
from edgeprune.calibration.state import State
from edgeprune.checks import check_count
from edgeprune.debias.curves import COORDINATES, Coordinate, save_curve
from edgeprune.errors import InputError
from edgeprune.files import only_writer, write_text
from edgeprune.optional import export_module
from edgeprune.plotting import need_matplotlib
from edgeprune.progress import Progress, Silent

if TYPE_CHECKING:
    from edgeprune.calibration.measure import Scorer, Subject

_SAVE_EVERY = 16
"""Batches between two writings of the state."""


def calibrate(
    model: str | os.PathLike[str],
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    prompts: str | os.PathLike[str] | None = None,
    method: str = "fastv",
    layer: int | Sequence[int] | None = None,
    trend: TrendKind | None = None,
    coordinate: Coordinate | None = None,
    limit: int | None = None,
    batch: int = 8,
    restart: bool = False,
    plot: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """Measures the attention of a method's scoring rows, fits trends, and writes the first stage's curve.

    Beside the curve it writes a report of every figure, and a plot where one is wanted: see `Outputs`.

    All stages are measured in one pass over the unpruned model; see `edgeprune.calibration.measure`. It runs
    on a GPU where torch has one. A run that was stopped goes on with the same arguments.

    Args:
        model: a folder in Hugging Face's layout, or a hub id.
        images, prompts, limit: see `edgeprune.calibration.samples.read_samples`.
        output: the curve's file, which ends in .json; what an unfinished run gathered lies beside it.
        method, layer: as for `export`.
        trend: the kind to use; None for the one that errs least on images it has not seen.
        coordinate: what the curve's places are: those along an "image", a "block" or a "row" of one, or
            "cell", rows and columns; None for what explains most of the attention of images it has not seen.
            Where all images have as many visual tokens, there is "image" alone.
        batch: images that run together.
        restart: begin anew rather than go on with an unfinished run.
        plot: draw the plot as well, which needs matplotlib.
        progress: told the steps.

    Raises:
        InputError, UnsupportedModelError, OutputError, MissingDependencyError: see their messages.
    """
    check_count("batch", batch)
    if trend is not None and trend not in KINDS:
        raise InputError(f"unknown `trend` {trend!r}: choose one of {', '.join(KINDS)}")
    if coordinate is not None and coordinate not in COORDINATES:
        raise InputError(f"unknown `coordinate` {coordinate!r}: choose one of {', '.join(COORDINATES)}")
    listener = progress or Silent()
    outputs = Outputs.beside(Path(output))
    outputs.check_folder()
    if plot:
        need_matplotlib()
    samples = read_samples(Path(images), None if prompts is None else Path(prompts), limit)
    outputs.check([images, prompts, *{sample.image for sample in samples}])
    numbers = image_numbers(samples)
    count = int(numbers.max()) + 1
    with only_writer(Path(os.path.abspath(output))):
        measure = export_module("calibration.measure")
        subject: Subject = measure.subject_of(model, method, layer, count, listener)
        need_images(count)
        state = _state(subject, samples, outputs.unfinished, restart)
        if state.samples < len(samples):
            listener.step("loading the model")
            scorer: Scorer = measure.Scorer(subject)
            listener.step("measuring attention", len(samples))
            _gather(scorer, samples, numbers, state, batch, listener)
        listener.step("fitting trends")
        found = calibration_of(subject.belongs, subject.plan.stages, state.attention, trend, coordinate)
        write(found, outputs, plot)
        state.remove()
    return found


def _state(subject: Subject, samples: Sequence[Sample], path: Path, restart: bool) -> State:
    """What an earlier run gathered of this, or nothing yet."""
    layers = [stage.layer for stage in subject.plan.stages]
    settings = {
        **subject.belongs.model_dump(mode="json"),
        "layers": layers,
        "samples": digest(samples),
    }
    return State(path, settings, subject.places, len(layers), restart)


def _gather(
    scorer: Scorer,
    samples: Sequence[Sample],
    numbers: NDArray[np.int64],
    state: State,
    batch: int,
    listener: Progress,
) -> None:
    """Measures what is missing, and saves the sums now and then."""
    done = state.samples
    listener.advance(done)
    for turn, start in enumerate(range(done, len(samples), batch), start=1):
        part = samples[start : start + batch]
        try:
            measured = scorer.attention(part)
        except InputError:  # a damaged image: once it is mended, the run goes on from here
            state.save()
            raise
        for sample, number in zip(measured, numbers[start : start + batch], strict=True):
            state.add(sample, int(number))
        if turn % _SAVE_EVERY == 0:
            state.save()
        listener.advance(len(part))
    state.save()


def write(found: Calibration, outputs: Outputs, plot: bool) -> None:
    """Writes the curve, the report of every figure, and the plot where it is wanted.

    Raises:
        OutputError: a file cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    save_curve(found.curve, outputs.curve)
    write_text(outputs.report, json.dumps(found.to_dict(), indent=2) + "\n")
    if plot:
        draw(found, outputs.plot)
