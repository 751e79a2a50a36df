"""Evaluations from end to end: question files and a model on the disk in, results on the disk out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from edgeprune.errors import InputError
from edgeprune.evaluation import report
from edgeprune.evaluation.answering import Asking, Choice
from edgeprune.evaluation.benchmarks import Benchmark, benchmark_by_name, read_questions
from edgeprune.evaluation.bootstrap import RESAMPLES, check_resampling
from edgeprune.evaluation.comparison import Comparison, Grid, comparison_of, comparison_outputs
from edgeprune.evaluation.exporting import Bundles, Pruning
from edgeprune.evaluation.outputs import Outputs, inputs_of
from edgeprune.evaluation.single import Evaluation, evaluation_of, evaluation_outputs
from edgeprune.files import alone_in, make_folder, refuse_same
from edgeprune.manifest import MANIFEST_NAME
from edgeprune.optional import export_module
from edgeprune.plotting import need_matplotlib
from edgeprune.progress import Progress, Silent
from edgeprune.questions.llava import Files
from edgeprune.questions.question import Question

PathLike: TypeAlias = "str | os.PathLike[str]"


def evaluate(
    target: PathLike,
    benchmark: str,
    data: PathLike,
    *,
    images: PathLike | None = None,
    annotations: PathLike | None = None,
    frames: int = 8,
    limit: int | None = None,
    pruning: Pruning | None = None,
    asking: Asking | None = None,
    output: PathLike | None = None,
    cache: PathLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    restart: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Asks a bundle, or a model that is exported for it, the questions of a benchmark.

    Answers are written as they come: the same call goes on after an interruption.

    Args:
        target: a bundle; or a model, a folder or a hub id, of which the needed bundle is exported.
        benchmark: its name, one of `edgeprune.evaluation.benchmarks.BENCHMARKS`.
        data: the question file, for MME its folder.
        images: the folder of images, for videos of a folder of frames per video; None is the data's.
        annotations: the reference answers, where the data has none.
        frames: of each video, how many are shown.
        limit: ask the first questions only.
        pruning: of a model, None for the unpruned one; of a bundle `keep` and `debias` alone.
        asking: how; None is the model's own chat template and the benchmark's length of answers.
        output: the folder for answers and results; None is `eval-BENCHMARK` in the current one.
        cache: where exported bundles are kept; None is in the output.
        resamples, seed: of the images, for the 95 % interval.
        restart: ask everything anew.
        progress: told the steps.

    Raises:
        InputError, UnsupportedModelError, OutputError: see their messages.
    """
    listener, chosen = progress or Silent(), pruning or Pruning()
    found = benchmark_by_name(benchmark)
    folder = _folder(output, benchmark)
    check_resampling(resamples, seed)
    is_bundle = _is_bundle(target)
    fixed = [name for name in chosen.given if name not in ("`keep`", "`debias`")]
    if is_bundle and fixed:
        raise InputError(
            f"{target} is a bundle, in which {', '.join(fixed)} is settled: give the model folder instead, "
            "or leave it out"
        )
    chosen.check()
    task = _task(found, _files(data, images, annotations, frames), limit, asking)
    read = [None if chosen.curve is None else Path(chosen.curve)]
    with _alone(folder, target, task, evaluation_outputs(found, folder), read):
        bundle, choice = Path(target), Choice(chosen.keep, chosen.debias)
        if not is_bundle:
            bundle, choice = _bundles(target, cache, folder, listener).of(chosen.resolved()), Choice()
        return evaluation_of(
            bundle,
            found,
            task.questions,
            task.asking,
            folder,
            choice,
            resamples=resamples,
            seed=seed,
            restart=restart,
            progress=listener,
        )


def compare(
    model: PathLike,
    benchmark: str,
    data: PathLike,
    grid: Grid | None = None,
    *,
    images: PathLike | None = None,
    annotations: PathLike | None = None,
    frames: int = 8,
    limit: int | None = None,
    asking: Asking | None = None,
    output: PathLike | None = None,
    cache: PathLike | None = None,
    restart: bool = False,
    plot: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Asks a model the questions of a benchmark, pruned in several ways side by side.

    Args:
        model: a folder or a hub id, of which the needed bundles are exported.
        grid: what to compare; None is `Grid()`.
        plot: draw comparison.png as well, which needs matplotlib.
        benchmark, data, images, annotations, frames, limit, asking, output, cache, restart, progress: as for
            `evaluate`.

    Raises:
        InputError, UnsupportedModelError, OutputError, MissingDependencyError: see their messages.
    """
    listener, chosen = progress or Silent(), grid or Grid()
    found = benchmark_by_name(benchmark)
    folder = _folder(output, benchmark)
    if _is_bundle(model):
        raise InputError(
            f"{model} is a bundle: expected a model folder, of which the bundles of a comparison are "
            "exported; give that"
        )
    chosen.check()
    if plot:
        need_matplotlib()
    task = _task(found, _files(data, images, annotations, frames), limit, asking)
    read = [None if chosen.curve is None else Path(chosen.curve)]
    with _alone(folder, model, task, comparison_outputs(chosen, folder), read):
        comparison = comparison_of(
            _bundles(model, cache, folder, listener),
            found,
            task.questions,
            task.asking,
            chosen,
            folder,
            restart,
            listener,
        )
        report.write(comparison, folder)
        if plot:
            report.plot(comparison, folder / "comparison.png")
    return comparison


@dataclass(frozen=True)
class _Task:
    """What is asked, and how."""

    files: Files
    questions: list[Question]
    asking: Asking


def _files(data: PathLike, images: PathLike | None, annotations: PathLike | None, frames: int) -> Files:
    return Files(
        Path(data),
        None if images is None else Path(images),
        None if annotations is None else Path(annotations),
        frames,
    )


def _task(benchmark: Benchmark, files: Files, limit: int | None, asking: Asking | None) -> _Task:
    chosen = (asking or Asking()).of(benchmark)
    chosen.check()
    return _Task(files, read_questions(benchmark, files, limit), chosen)


def _folder(output: PathLike | None, benchmark: str) -> Path:
    return Path(f"eval-{benchmark}" if output is None else output)


def _is_bundle(target: PathLike) -> bool:
    return os.path.isfile(Path(target) / MANIFEST_NAME)


@contextmanager
def _alone(
    folder: Path, target: PathLike, task: _Task, outputs: Outputs, read: list[Path | None]
) -> Iterator[None]:
    """The output folder, made and held; nothing of it is an input, or somebody else's."""
    # Answers in a bundle would be in the way of the next export to it.
    refuse_same([folder], [target])
    outputs.check([*inputs_of(task.files, task.questions), *read])
    make_folder(folder)
    with alone_in(folder):
        yield


def _bundles(model: PathLike, cache: PathLike | None, folder: Path, progress: Progress) -> Bundles:
    found: Path = export_module("exporter.pipeline").resolve_model(model, progress)
    return Bundles(found, folder / "bundles" if cache is None else Path(cache), progress)
