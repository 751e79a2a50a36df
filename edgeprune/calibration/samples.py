"""What a model is calibrated on: images, and the question that is asked about each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeprune.checks import check_count
from edgeprune.errors import InputError
from edgeprune.questions.llava import IMAGE_ENDINGS, Files, llava_lines
from edgeprune.questions.records import read_text

DEFAULT_PROMPT = "What is in the image?"


@dataclass(frozen=True)
class Sample:
    """An image and the question that is asked about it."""

    image: Path
    prompt: str


def read_samples(images: Path, prompts: Path | None = None, limit: int | None = None) -> list[Sample]:
    """The images to calibrate on.

    Args:
        images: a folder of images; LLaVA's question file (.jsonl), of one image per line; or a text file
            with a path per line. Paths in files count from the file's folder.
        prompts: a text file with a question per line, asked in turn; None for one general question, or the
            question file's own.
        limit: use the first ones only.

    Raises:
        InputError: a file or folder is missing, empty or malformed, or an image is missing.
    """
    if limit is not None:
        check_count("limit", limit)
    if os.path.isdir(images):
        found = sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGE_ENDINGS)
        samples = [Sample(path, DEFAULT_PROMPT) for path in found]
    elif images.suffix == ".jsonl":
        samples = []
        for question in llava_lines(Files(images)):
            image = question.images[0] if len(question.images) == 1 else None
            if not isinstance(image, Path):
                raise InputError(
                    f"{question.where}: {len(question.images)} images: expected one per question"
                )
            samples.append(Sample(image, question.prompt))
    else:
        names = [line.strip() for line in read_text(images).splitlines()]
        samples = [Sample(images.parent / name, DEFAULT_PROMPT) for name in names if name]
    if not samples:
        raise InputError(
            f"{images} has no images: expected {', '.join(IMAGE_ENDINGS)}; give another folder or file"
        )
    samples = samples[:limit]
    missing = next((sample.image for sample in samples if not os.path.isfile(sample.image)), None)
    if missing is not None:
        raise InputError(f"there is no image {missing}, which {images} names: correct the file")
    if prompts is None:
        return samples
    asked = [line.strip() for line in read_text(prompts).splitlines() if line.strip()]
    if not asked:
        raise InputError(f"{prompts} is empty: expected a question per line")
    return [Sample(sample.image, asked[n % len(asked)]) for n, sample in enumerate(samples)]


def image_numbers(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """int64 [N], for each sample the number of its image, in the order in which they first come."""
    known: dict[Path, int] = {}
    return np.array([known.setdefault(sample.image, len(known)) for sample in samples], dtype=np.int64)


def digest(samples: Sequence[Sample]) -> str:
    """Short text that changes with the samples and their order."""
    text = "\0".join(f"{sample.image}\0{sample.prompt}" for sample in samples)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
