"""One bundle on one benchmark: asked, scored, and written down."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeprune.bundle import read_manifest
from edgeprune.choices import run_plan
from edgeprune.evaluation.answering import Asking, Choice, Setting, ask, settings_of
from edgeprune.evaluation.benchmarks import Benchmark, can_score
from edgeprune.evaluation.bootstrap import RESAMPLES, Interval, interval
from edgeprune.evaluation.outputs import Outputs
from edgeprune.evaluation.predictions import PredictionFile
from edgeprune.files import write_text
from edgeprune.progress import Progress, Silent
from edgeprune.questions.question import Question

_PREDICTIONS, _RESULT = "predictions.jsonl", "result.json"
_UNSCORED = "the questions come without reference answers, so nothing is scored here"


@dataclass(frozen=True)
class Evaluation:
    """How a bundle answered a benchmark.

    Attributes:
        benchmark: its title.
        settings: everything that the answers depend on.
        questions: how many were asked.
        plan: what ran, in words.
        predictions: the file of all answers.
        figures: the benchmark's figures by name; none where nothing is scored here.
        main: the name of the main one; None without figures.
        interval: the main figure with its 95 % interval; None without figures.
        submission: the file for those who grade; None where there is no need of one.
        note: what the figures are not, or why there are none; None where nothing has to be said.
    """

    benchmark: str
    settings: Mapping[str, Setting]
    questions: int
    plan: str
    predictions: Path
    figures: Mapping[str, float]
    main: str | None
    interval: Interval | None
    submission: Path | None
    note: str | None

    def to_dict(self) -> dict[str, Any]:
        """Every figure, ready for JSON."""
        return {
            "benchmark": self.benchmark,
            "settings": dict(self.settings),
            "predictions": str(self.predictions),
            "figures": dict(self.figures),
            "main": self.main,
            "interval": None if self.interval is None else asdict(self.interval),
            "submission": None if self.submission is None else str(self.submission),
            "note": self.note,
        }


def evaluation_outputs(benchmark: Benchmark, folder: Path) -> Outputs:
    """The files that `evaluation_of` writes into a folder."""
    submission = _submission(benchmark, folder)
    results = [folder / _RESULT, *([] if submission is None else [submission])]
    return Outputs((folder / _PREDICTIONS,), tuple(results))


def evaluation_of(
    bundle: Path,
    benchmark: Benchmark,
    questions: Sequence[Question],
    asking: Asking,
    folder: Path,
    choice: Choice,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    restart: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Asks a bundle all questions, and scores and writes what can be.

    Args:
        bundle: its folder.
        benchmark, questions, asking: what is asked, and how.
        folder: of the outputs; answers that are in it already are not asked for again.
        choice: of the bundle's runs.
        resamples, seed: of the interval.
        restart: ask everything anew.
        progress: told the steps.

    Raises:
        InputError: an earlier run had other settings.
        EdgepruneError: the bundle cannot be run, or a file cannot be written.
    """
    listener = progress or Silent()
    plan = run_plan(read_manifest(bundle), choice.keep, choice.debias)
    settings = settings_of(bundle, questions, asking, plan)
    with PredictionFile(folder / _PREDICTIONS, settings, questions, restart) as file:
        listener.step(f"asking {benchmark.title}", len(questions))
        ask(bundle, questions, file, asking, choice, listener)
    texts = file.texts()
    tally = None
    if benchmark.metric is not None and can_score(benchmark, questions):
        tally = benchmark.metric(questions, texts)
    submission = _submission(benchmark, folder)
    if benchmark.submission is not None and submission is not None:
        benchmark.submission(questions, texts, submission)
    unscored = _UNSCORED if tally is None else None
    found = Evaluation(
        benchmark=benchmark.title,
        settings=settings,
        questions=len(questions),
        plan=str(settings["plan"]),
        predictions=file.path,
        figures={} if tally is None else tally.result(),
        main=None if tally is None else tally.main,
        interval=None if tally is None else interval(tally, resamples, seed),
        submission=submission,
        note=benchmark.note or unscored,
    )
    write_text(folder / _RESULT, json.dumps(found.to_dict(), indent=2, ensure_ascii=False) + "\n")
    return found


def _submission(benchmark: Benchmark, folder: Path) -> Path | None:
    return None if benchmark.submission is None else folder / f"submission.{benchmark.ending}"
