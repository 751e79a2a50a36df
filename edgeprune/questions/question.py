"""A question of a benchmark, and the images that it is about."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeprune.errors import InputError


@dataclass(frozen=True)
class EncodedImage:
    """An image inside a question file, as base64 text."""

    text: str = field(repr=False)

    def read(self) -> bytes:
        """The encoded file's bytes.

        Raises:
            InputError: the text is not base64.
        """
        try:
            return base64.b64decode(self.text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(
                f"an image is not base64 text ({error}): use an undamaged question file"
            ) from error


Image = Path | EncodedImage


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: as in its file.
        where: its file and line or entry, for messages.
        prompt: what the model is asked, without image tokens.
        images: the images it is about, in order.
        answers: the reference answers; none where grading is remote.
        group: subtask, category or answer type that is reported by itself; empty where there is none.
        unit: questions that only count together share it (an image's pair in MME, the rounds in MMBench).
        choices: texts of the options A, B, ...
        is_video: whether the images are frames of one video, in order.
        asked_token: the visual token that shows what is asked about, by its number among those of all images;
            None where the file does not say.
        fields: what a submission needs beyond these.
    """

    id: str | int
    where: str
    prompt: str
    images: tuple[Image, ...] = ()
    answers: tuple[str, ...] = ()
    group: str = ""
    unit: str = ""
    choices: tuple[str, ...] = ()
    is_video: bool = False
    asked_token: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


def image_key(question: Question) -> str:
    """The same for questions about the same images; empty without images."""
    return "|".join(
        str(image)
        if isinstance(image, Path)
        else hashlib.sha256(image.text.encode("ascii", "replace")).hexdigest()
        for image in question.images
    )


def check_images(questions: Sequence[Question]) -> None:
    """Looks for every image before the first question is asked.

    Raises:
        InputError: an image is missing; the message names it and the question.
    """
    seen: set[Path] = set()
    for question in questions:
        for image in question.images:
            if not isinstance(image, Path) or image in seen:
                continue
            if not os.path.isfile(image):
                raise InputError(
                    f"{question.where}: there is no image {image}: expected every image that is asked "
                    "about; give the right folder with `images`"
                )
            seen.add(image)
