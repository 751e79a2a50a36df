"""All benchmarks by name: how a question file is read, scored, and handed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeprune.checks import check_count
from edgeprune.errors import InputError
from edgeprune.evaluation import formats, metrics, submissions
from edgeprune.questions.llava import Files
from edgeprune.questions.question import Question, check_images


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: the parameter `metric`.
        title: for people.
        read: the reader of its files.
        metric: None where only others can grade.
        submission: writes what they take; None where there is no need.
        ending: of the submission's file name.
        max_new_tokens: enough for its answers.
        note: what a figure is not.
    """

    name: str
    title: str
    read: formats.Reader
    metric: metrics.Metric | None
    submission: submissions.Writer | None = None
    ending: str = "json"
    max_new_tokens: int = 128
    note: str | None = None


_JUDGE = (
    "exact match with the one reference; published figures let a language model judge, which accepts far "
    "more: hand the submission file to such a judge to compare with them"
)
_GRADED_ELSEWHERE = "graded elsewhere: hand in the submission file"

_ALL = (
    Benchmark("exact", "exact match", formats.answered_lines, metrics.exact_match),
    Benchmark("gqa", "GQA", formats.gqa, metrics.exact_match, submissions.gqa),
    Benchmark("mmbench", "MMBench", formats.mmbench, metrics.mmbench_accuracy),
    Benchmark("mmbench-cn", "MMBench (Chinese)", formats.mmbench_cn, metrics.mmbench_accuracy),
    Benchmark("mme", "MME", formats.mme, metrics.mme_score),
    Benchmark(
        "mmvet", "MM-Vet", formats.mmvet, None, submissions.mmvet, max_new_tokens=1024, note=_GRADED_ELSEWHERE
    ),
    Benchmark("pope", "POPE", formats.pope, metrics.pope_f1),
    Benchmark("scienceqa", "ScienceQA", formats.scienceqa, metrics.scienceqa_accuracy),
    Benchmark("textvqa", "TextVQA", formats.textvqa, metrics.textvqa_accuracy),
    Benchmark("vizwiz", "VizWiz", formats.vizwiz, metrics.textvqa_accuracy, submissions.vizwiz),
    Benchmark("vqav2", "VQAv2", formats.vqav2, metrics.vqa_accuracy, submissions.vqav2),
    *(
        Benchmark(name, title, formats.video, metrics.exact_match, submissions.video, "jsonl", note=_JUDGE)
        for name, title in (("tgif-qa", "TGIF-QA"), ("msvd-qa", "MSVD-QA"), ("msrvtt-qa", "MSRVTT-QA"))
    ),
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in _ALL}


def benchmark_by_name(name: str) -> Benchmark:
    """The benchmark called `name`.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    if name not in BENCHMARKS:
        raise InputError(f"unknown metric {name!r}: choose one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def read_questions(benchmark: Benchmark, files: Files, limit: int | None = None) -> list[Question]:
    """The questions of a benchmark, the first `limit` of them, with every image in its place.

    Raises:
        InputError: a file is missing or malformed, or an image is missing; names file and line.
    """
    check_count("frames", files.frames)
    if limit is not None:
        check_count("limit", limit)
    questions = benchmark.read(files)
    if limit is not None:
        questions = _whole_units(questions, limit)
    check_images(questions)
    return questions


def can_score(benchmark: Benchmark, questions: Sequence[Question]) -> bool:
    """Whether there is a metric, and a reference answer to every question."""
    return benchmark.metric is not None and all(question.answers for question in questions)


def _whole_units(questions: list[Question], limit: int) -> list[Question]:
    """The first ones, never a part of what only counts together."""
    kept = questions[:limit]
    if kept and kept[-1].unit:
        kept += [question for question in questions[limit:] if question.unit == kept[-1].unit]
    return kept
