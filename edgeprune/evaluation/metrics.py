"""The official metrics.

Each metric turns answers into a tally: counts per image, and the figures that follow from their sums. So
the same code gives a figure and, from resampled images, its confidence interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeprune.evaluation.answers import (
    evalai_normalised,
    mme_label,
    option_letter,
    plain,
    pope_says_yes,
    scienceqa_letter,
    vqa_normalised,
)
from edgeprune.questions.question import Question, image_key

Floats = NDArray[np.float64]

MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


@dataclass(frozen=True, eq=False)
class Tally:
    """What the answers count for.

    Attributes:
        counts: float64 [U, C], per unit of resampling (an image with all that is asked about it).
        strata: int64 [U]; units are resampled within their stratum.
        figures: from summed counts [..., C] to every figure by its name, each [...].
        main: the name of the figure that a benchmark is known by.
    """

    counts: Floats
    strata: NDArray[np.int64]
    figures: Callable[[Floats], dict[str, Floats]]
    main: str

    def result(self) -> dict[str, float]:
        """The figures of all units together."""
        return {name: float(value) for name, value in self.figures(self.counts.sum(0)).items()}


Metric = Callable[[Sequence[Question], Sequence[str]], Tally]


def exact_match(questions: Sequence[Question], texts: Sequence[str]) -> Tally:
    """Share of answers equal to a reference, in lower case and without a full stop at the end.

    GQA's accuracy, arXiv 1902.09506: by groups, the accuracy of binary and of open questions.
    """
    scores = [
        float(plain(text) in {plain(answer) for answer in question.answers})
        for question, text in zip(questions, texts, strict=True)
    ]
    return _mean(questions, scores, [question.group for question in questions])


def vqa_accuracy(questions: Sequence[Question], texts: Sequence[str]) -> Tally:
    """VQA accuracy: min(matches / 3, 1) against all references but one, averaged over which is left out.

    Answers are normalised only where the references differ. Source: VQA, arXiv 1505.00468, and
    https://visualqa.org/evaluation.html.
    """

    def score(question: Question, text: str) -> float:
        references = [" ".join(answer.replace("\t", " ").split("\n")).strip() for answer in question.answers]
        given = " ".join(text.replace("\t", " ").split("\n")).strip()
        if len(set(references)) > 1:
            references, given = [vqa_normalised(reference) for reference in references], vqa_normalised(given)
        return leave_one_out(given, references)

    return _soft(questions, texts, score)


def textvqa_accuracy(questions: Sequence[Question], texts: Sequence[str]) -> Tally:
    """VQA accuracy on answers normalised by the EvalAI processor.

    TextVQA, arXiv 1904.08920, and VizWiz, arXiv 1802.08218 (https://vizwiz.org/tasks-and-datasets/vqa).
    """

    def score(question: Question, text: str) -> float:
        references = [evalai_normalised(answer) for answer in question.answers]
        return leave_one_out(evalai_normalised(text), references)

    return _soft(questions, texts, score)


def leave_one_out(given: str, references: Sequence[str]) -> float:
    """The mean over references of min(matches among the others / 3, 1).

    With n references of which m match: each of the m sees m - 1 others, each of the rest sees m.
    """
    matches = sum(reference == given for reference in references)
    rest = len(references) - matches
    return (matches * min((matches - 1) / 3, 1.0) + rest * min(matches / 3, 1.0)) / len(references)


def scienceqa_accuracy(questions: Sequence[Question], texts: Sequence[str]) -> Tally:
    """Share of questions whose option letter is right; by itself for those with an image.

    Source: ScienceQA, arXiv 2209.09513, read from answers as LLaVA's evaluation does.
    """
    scores = [
        float(scienceqa_letter(text) == question.answers[0])
        for question, text in zip(questions, texts, strict=True)
    ]
    return _mean(questions, scores, [question.group for question in questions])


def pope_f1(questions: Sequence[Question], texts: Sequence[str]) -> Tally:
    """POPE: precision, recall and F1 of "yes", accuracy, share of yes, each per category and averaged.

    A ratio without cases is 0. Source: POPE, arXiv 2305.10355.
    """
    groups = _names(question.group for question in questions)
    cells = np.zeros((len(questions), len(groups), 4))
    for row, (question, text) in enumerate(zip(questions, texts, strict=True)):
        said, right = pope_says_yes(text), question.answers[0] == "yes"
        cells[row, groups.index(question.group), 2 * (not said) + (said != right)] = 1

    def figures(sums: Floats) -> dict[str, Floats]:
        # Right and wrong "yes", right and wrong "no".
        hit, false_alarm, rejection, miss = np.moveaxis(sums.reshape(*sums.shape[:-1], len(groups), 4), -1, 0)
        total = hit + false_alarm + rejection + miss
        precision, recall = _ratio(hit, hit + false_alarm), _ratio(hit, hit + miss)
        by_group = {
            "F1": _ratio(2 * precision * recall, precision + recall),
            "accuracy": _ratio(hit + rejection, total),
            "precision": precision,
            "recall": recall,
            "yes ratio": _ratio(hit + false_alarm, total),
        }
        found = {name: 100 * values.mean(-1) for name, values in by_group.items()}
        if len(groups) > 1:
            for number, group in enumerate(groups):
                found |= {f"{name} ({group})": 100 * values[..., number] for name, values in by_group.items()}
        return found

    counts, strata = _by_image(questions, cells.reshape(len(questions), -1))
    return Tally(counts, strata, figures, "F1")


def mme_score(questions: Sequence[Question], texts: Sequence[str]) -> Tally:
    """MME: per subtask 100 * accuracy + 100 * accuracy+; the sums of perception and of cognition.

    accuracy+ is the share of images whose two questions are both right. Source: MME, arXiv 2306.13394.
    """
    groups = _names(question.group for question in questions)
    right = [mme_label(text) == q.answers[0] for q, text in zip(questions, texts, strict=True)]
    whole = _all_right(questions, right)
    cells = np.zeros((len(questions), len(groups), 4))
    for row, question in enumerate(questions):
        first, all_right = whole[row]
        cells[row, groups.index(question.group)] = right[row], 1, all_right, first

    def figures(sums: Floats) -> dict[str, Floats]:
        ok, asked, both, images = np.moveaxis(sums.reshape(*sums.shape[:-1], len(groups), 4), -1, 0)
        scores = 100 * _ratio(ok, asked) + 100 * _ratio(both, images)
        cognition = np.array([group in MME_COGNITION for group in groups])
        found = {
            "total": scores.sum(-1),
            "perception": scores[..., ~cognition].sum(-1),
            "cognition": scores[..., cognition].sum(-1),
            "accuracy": 100 * _ratio(ok.sum(-1), asked.sum(-1)),
            "accuracy+": 100 * _ratio(both.sum(-1), images.sum(-1)),
        }
        return found | {f"score ({group})": scores[..., n] for n, group in enumerate(groups)}

    # Within a subtask, so that each of them has its images in every resample.
    strata = [groups.index(question.group) for question in questions]
    counts, own = _by_image(questions, cells.reshape(len(questions), -1), strata)
    return Tally(counts, own, figures, "perception" if set(groups) - set(MME_COGNITION) else "total")


def mmbench_accuracy(questions: Sequence[Question], texts: Sequence[str]) -> Tally:
    """MMBench: share of questions right in every rotation of their options (CircularEval), and in the first.

    Letters are found by matching alone; MMBench asks a language model where that fails, which can only raise
    the figure. Source: MMBench, arXiv 2307.06281.
    """
    right = [
        option_letter(text, question.choices) == question.answers[0]
        for question, text in zip(questions, texts, strict=True)
    ]
    whole = _all_right(questions, right)
    cells = np.zeros((len(questions), 3))
    for row, ok in enumerate(right):
        first, all_right = whole[row]
        cells[row] = all_right, first and ok, first

    def figures(sums: Floats) -> dict[str, Floats]:
        circular, once, asked = np.moveaxis(sums, -1, 0)
        return {"circular accuracy": 100 * _ratio(circular, asked), "accuracy": 100 * _ratio(once, asked)}

    counts, strata = _by_image(questions, cells)
    return Tally(counts, strata, figures, "circular accuracy")


def _all_right(questions: Sequence[Question], right: Sequence[bool]) -> list[tuple[bool, bool]]:
    """For each question: whether it is the first of its unit, and if so whether the whole unit is right."""
    complete: dict[str, bool] = {}
    for question, ok in zip(questions, right, strict=True):
        complete[question.unit] = complete.get(question.unit, True) and ok
    met: set[str] = set()
    found = []
    for question in questions:
        first = question.unit not in met
        met.add(question.unit)
        found.append((first, first and complete[question.unit]))
    return found


def _soft(
    questions: Sequence[Question], texts: Sequence[str], score: Callable[[Question, str], float]
) -> Tally:
    scores = [score(question, text) for question, text in zip(questions, texts, strict=True)]
    return _mean(questions, scores, [question.group for question in questions])


def _mean(questions: Sequence[Question], scores: Sequence[float], by_group: Sequence[str]) -> Tally:
    """Accuracy over all questions, and over each group where there are several."""
    groups = _names(by_group)
    cells = np.zeros((len(questions), len(groups), 2))
    for row, (score, group) in enumerate(zip(scores, by_group, strict=True)):
        cells[row, groups.index(group)] = score, 1

    def figures(sums: Floats) -> dict[str, Floats]:
        right, asked = np.moveaxis(sums.reshape(*sums.shape[:-1], len(groups), 2), -1, 0)
        found = {"accuracy": 100 * _ratio(right.sum(-1), asked.sum(-1))}
        if len(groups) > 1:
            shares = 100 * _ratio(right, asked)
            found |= {f"accuracy ({group or 'other'})": shares[..., n] for n, group in enumerate(groups)}
        return found

    counts, strata = _by_image(questions, cells.reshape(len(questions), -1))
    return Tally(counts, strata, figures, "accuracy")


def _by_image(
    questions: Sequence[Question], cells: Floats, strata: Sequence[int] | None = None
) -> tuple[Floats, NDArray[np.int64]]:
    """Sums of the questions' cells [N, C] over those about one image: [U, C], and the units' strata [U].

    Answers about one image are not independent of each other; those about different ones are.
    """
    own = [0] * len(questions) if strata is None else strata
    keys: dict[tuple[int, str], int] = {}
    unit = [
        keys.setdefault((stratum, image_key(question) or f"question {row}"), len(keys))
        for row, (question, stratum) in enumerate(zip(questions, own, strict=True))
    ]
    sums = np.zeros((len(keys), cells.shape[1]))
    np.add.at(sums, unit, cells)
    return sums, np.array([stratum for stratum, _ in keys], dtype=np.int64)


def _names(groups: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(groups))


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Part / whole, 0 where there is nothing."""
    return np.asarray(np.divide(part, whole, out=np.zeros_like(whole, dtype=float), where=whole != 0))
