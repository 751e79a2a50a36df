"""What the readers of benchmarks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeprune.errors import InputError
from edgeprune.questions.llava import Files, llava_line
from edgeprune.questions.question import Question
from edgeprune.questions.records import Record, read_lines

SHORT = "Answer the question using a single word or phrase."
Reader = Callable[[Files], list[Question]]


def answered_lines(files: Files) -> list[Question]:
    """LLaVA's question file with the reference answer in every line, as `answer` or `answers`."""
    questions = []
    for record in read_lines(files.data):
        found = record.strings("answers") if "answers" in record.values else (record.text("answer"),)
        questions.append(replace(llava_line(files, record), answers=found))
    return questions


def is_lines(files: Files) -> bool:
    return files.data.suffix == ".jsonl"


def answer_to(known: Mapping[str, Record], name: str, where: str, path: Path) -> Record:
    if name not in known:
        raise InputError(
            f"{where}: {path} has no answer to question {name}: expected the annotations of these questions; "
            "check `annotations`"
        )
    return known[name]


def member(content: Any, name: str, path: Path) -> Any:
    if not isinstance(content, dict) or name not in content:
        raise InputError(
            f"{path} has no member {name}: expected a file of this benchmark; check `metric` and the file"
        )
    return content[name]


def first_line(text: str) -> str:
    return text.split("\n")[0].strip()
