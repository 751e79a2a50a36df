"""What the readers share: where a benchmark lies, and LLaVA's question file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune.errors import InputError
from edgeprune.evaluation.questions import Question, Record, read_lines

SHORT = "Answer the question using a single word or phrase."
PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Files:
    """Where a benchmark lies.

    Attributes:
        data: the question file, for MME its folder.
        images: the folder of pictures; for videos, of a folder of frames per video.
        annotations: reference answers, where they are in another file.
        frames: of each video, how many to show.
    """

    data: Path
    images: Path | None = None
    annotations: Path | None = None
    frames: int = 8

    def picture(self, name: str) -> Path:
        """A picture's path."""
        return self.folder / name

    @property
    def folder(self) -> Path:
        """The folder of pictures; by default where the question file lies."""
        return self.images if self.images is not None else self.data.parent

    def answers(self, what: str) -> Path:
        """The path of the reference answers.

        Raises:
            InputError: it was not given.
        """
        if self.annotations is None:
            raise InputError(
                f"{self.data} holds no reference answers: give {what} with `annotations`, or only predict "
                "where the benchmark is graded elsewhere"
            )
        return self.annotations


Reader = Callable[[Files], list[Question]]


def llava_lines(files: Files) -> list[Question]:
    """LLaVA's question file: question_id, text, image (one, a list, or none); a category groups."""
    return [llava_line(files, record) for record in read_lines(files.data)]


def llava_line(files: Files, record: Record) -> Question:
    image = record.values.get("image", [])
    names = [image] if isinstance(image, str) else image
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"{record.where}: image is {image!r:.60}: expected a file name, or a list of them")
    return Question(
        id=record.identity("question_id"),
        where=record.where,
        prompt=without_image_token(record.text("text")),
        pictures=tuple(files.picture(name) for name in names),
        group=str(record.values.get("category", "")),
        fields={"image": names[0] if names else ""},
    )


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


def without_image_token(text: str) -> str:
    return text.replace("<image>", "").strip()


def first_line(text: str) -> str:
    return text.split("\n")[0].strip()
