"""Prediction files in the form that a benchmark's own grader takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeprune.evaluation.answers import evalai_normalised, plain
from edgeprune.files import write_text
from edgeprune.questions.question import Question

Writer = Callable[[Sequence[Question], Sequence[str], Path], None]


def vqav2(questions: Sequence[Question], texts: Sequence[str], path: Path) -> None:
    """The list of question_id and answer that VQA's server takes (https://visualqa.org/challenge.html).

    The server wants every question of the whole test split, so the questions have to be those.
    """
    _write(
        [
            {"question_id": question.id, "answer": evalai_normalised(text)}
            for question, text in zip(questions, texts, strict=True)
        ],
        path,
    )


def vizwiz(questions: Sequence[Question], texts: Sequence[str], path: Path) -> None:
    """The list of image and answer that VizWiz' server takes (https://vizwiz.org/tasks-and-datasets/vqa)."""
    _write(
        [
            {"image": question.fields["image"], "answer": evalai_normalised(text)}
            for question, text in zip(questions, texts, strict=True)
        ],
        path,
    )


def mmvet(questions: Sequence[Question], texts: Sequence[str], path: Path) -> None:
    """The object by v1_N that MM-Vet's grader takes (https://github.com/yuweihao/MM-Vet)."""
    found = {}
    for question, text in zip(questions, texts, strict=True):
        name = str(question.id)
        found[name if name.startswith("v1_") else f"v1_{name}"] = text
    _write(found, path)


def gqa(questions: Sequence[Question], texts: Sequence[str], path: Path) -> None:
    """The list of questionId and prediction that GQA's own evaluation reads."""
    _write(
        [
            {"questionId": str(question.id), "prediction": plain(text)}
            for question, text in zip(questions, texts, strict=True)
        ],
        path,
    )


def video(questions: Sequence[Question], texts: Sequence[str], path: Path) -> None:
    """Lines of id, question, answer and pred, as the judges of open-ended video answers read them."""
    lines = [
        {"id": question.id, "question": question.prompt, "answer": question.answers[0], "pred": text}
        for question, text in zip(questions, texts, strict=True)
    ]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _write(value: object, path: Path) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")
