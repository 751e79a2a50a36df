"""Where a benchmark lies, and LLaVA's question file, the form that most of them are handed on in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeprune.errors import InputError
from edgeprune.questions.question import Question
from edgeprune.questions.records import Record, read_lines

# Of the formats that are read; what else lies in a folder is passed over.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class Files:
    """Where a benchmark lies.

    Attributes:
        data: the question file, for MME its folder.
        images: the folder of images; for videos, of a folder of frames per video.
        annotations: reference answers, where they are in another file.
        frames: of each video, how many to show.
    """

    data: Path
    images: Path | None = None
    annotations: Path | None = None
    frames: int = 8

    def image(self, name: str) -> Path:
        """An image's path."""
        return self.folder / name

    @property
    def folder(self) -> Path:
        """The folder of images; by default where the question file lies."""
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


def llava_lines(files: Files) -> list[Question]:
    """LLaVA's question file: question_id, text, image (one, a list, or none); a category groups.

    An `asked_token`, which is not LLaVA's, says which visual token shows what is asked about.
    """
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
        images=tuple(files.image(name) for name in names),
        asked_token=record.number("asked_token") if "asked_token" in record.values else None,
        group=str(record.values.get("category", "")),
        fields={"image": names[0] if names else ""},
    )


def without_image_token(text: str) -> str:
    return text.replace("<image>", "").strip()
