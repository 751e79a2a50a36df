"""Asks a bundle the questions of a benchmark, without drawing, and writes every answer down.

Penalties for repetition that the checkpoint asks for act all the same, as in Hugging Face's `generate`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeprune.bundle import read_manifest
from edgeprune.checks import check_count
from edgeprune.debias.selection import kept_count
from edgeprune.errors import InputError
from edgeprune.evaluation.benchmarks import Benchmark
from edgeprune.evaluation.predictions import Prediction, PredictionFile
from edgeprune.files import read_regular
from edgeprune.image_program import ImageProgram
from edgeprune.manifest import MANIFEST_NAME
from edgeprune.plans import Keep, PruningPlan
from edgeprune.progress import Progress, Silent
from edgeprune.questions.question import EncodedImage, Question

if TYPE_CHECKING:
    from edgeprune.runtime.batching import PromptInputs
    from edgeprune.runtime.growing import Picker
    from edgeprune.runtime.images import ImageLike
    from edgeprune.runtime.model import Model
    from edgeprune.runtime.session import Generated

QUESTION_PLACE, IMAGES_PLACE = "{question}", "{images}"

Mask = Callable[[NDArray[np.float32], int], NDArray[np.float32]]
"""From a prompt's padding mask float32 [V] and its question's number, the mask that the graph gets."""

Setting: TypeAlias = "str | int | None"
"""Something that answers depend on, as JSON has it."""


@dataclass(frozen=True)
class Asking:
    """How questions are asked.

    Attributes:
        max_new_tokens: at most so many per answer; None is what the benchmark has enough with.
        template: the prompt around a question, with {question} and {images}; None for the model's own chat
            template.
        batch: questions that run together at most.
        backend, threads: of the runtime.
    """

    max_new_tokens: int | None = None
    template: str | None = None
    batch: int = 8
    backend: str = "auto"
    threads: int | None = None

    def check(self) -> None:
        """Raises InputError for what cannot be asked."""
        if self.max_new_tokens is not None:
            check_count("max_new_tokens", self.max_new_tokens)
        check_count("batch", self.batch)
        if self.threads is not None:
            check_count("threads", self.threads)
        if self.template is not None and not (
            QUESTION_PLACE in self.template and IMAGES_PLACE in self.template
        ):
            raise InputError(
                f"the prompt template is {self.template!r:.80}: expected one with {IMAGES_PLACE} where the "
                f"images go and {QUESTION_PLACE} where the question goes"
            )

    def of(self, benchmark: Benchmark) -> Asking:
        """The same, with the benchmark's length of answers where none is set."""
        longest = benchmark.max_new_tokens if self.max_new_tokens is None else self.max_new_tokens
        return replace(self, max_new_tokens=longest)

    @property
    def longest(self) -> int:
        """The length of answers, which has to be set: see `of`."""
        if self.max_new_tokens is None:
            raise ValueError("no `max_new_tokens`: expected a number; take that of a benchmark by `of`")
        return self.max_new_tokens


@dataclass(frozen=True)
class Choice:
    """What the runs of a bundle choose.

    Attributes:
        keep, debias: as for `edgeprune.choices.run_plan`.
        mask: puts another padding mask in the place of an image's own; None leaves it.
        resize: the share, in steps of 1/10000, of its visual tokens that an image is resized to; None leaves
            its size.
    """

    keep: Keep = None
    debias: str | None = None
    mask: Mask | None = None
    resize: int | None = None


class Bundle:
    """A loaded bundle, asked in batches.

    Args:
        folder: the bundle.
        asking: how.
        choice: of its runs.

    Raises:
        InputError: the bundle has no chat template, and none is given. Also as `load`.
    """

    def __init__(self, folder: Path, asking: Asking, choice: Choice | None = None) -> None:
        from edgeprune.runtime import load
        from edgeprune.runtime.prompt import PromptEncoder
        from edgeprune.runtime.sampling import Sampler, chosen_by

        options = {} if asking.threads is None else {"threads": asking.threads}
        self._model: Model = load(folder, asking.backend, **options)
        manifest = self._model.manifest
        if asking.template is None and manifest.prompt.chat_template is None:
            raise InputError(
                f"the bundle {folder} has no chat template that questions could go through: give the "
                f"`template` that the model knows, with {IMAGES_PLACE} and {QUESTION_PLACE} in their places, "
                f"such as 'USER: {IMAGES_PLACE}{QUESTION_PLACE} ASSISTANT:'"
            )
        self._words = PromptEncoder(folder, manifest.prompt, manifest.model.max_positions)
        self._prompt = manifest.prompt
        how = chosen_by(manifest.generation, {"do_sample": False})
        self._picker: Callable[[PromptInputs], Picker] = lambda prompt: Sampler(how, prompt.input_ids).pick
        chosen = choice or Choice()
        self._asking, self._mask, self._resize = asking, chosen.mask, chosen.resize
        self._plan = self._model.plan(chosen.keep, chosen.debias)

    def answer(self, numbered: Sequence[tuple[int, Question]]) -> list[tuple[int, Prediction]]:
        """Answers questions, each with its number.

        Raises:
            InputError: an image or a prompt cannot be used; names the question.
        """
        prepared = [self._prepare(question) for _, question in numbered]
        inputs = [
            prompt if self._mask is None else replace(prompt, imposed=self._mask(prompt.visual_valid, number))
            for (number, _), prompt in zip(numbered, prepared, strict=True)
        ]
        generated = self._model.session.generate(
            inputs,
            [self._picker(prompt) for prompt in inputs],
            self._asking.longest,
            batch_size=self._asking.batch,
            plan=self._plan,
        )
        return [
            (number, self._prediction(question, prompt.visual_valid, reply))
            for (number, question), prompt, reply in zip(numbered, prepared, generated, strict=True)
        ]

    def _prepare(self, question: Question) -> PromptInputs:
        images = [image.read() if isinstance(image, EncodedImage) else image for image in question.images]
        prompt, video = question.prompt, self._prompt.video_place if question.is_video else None
        if self._asking.template is not None:
            places = f"{self._prompt.place}\n" * len(images) if video is None else f"{video}\n"
            prompt = self._asking.template.replace(IMAGES_PLACE, places).replace(QUESTION_PLACE, prompt)
        try:
            if video is None:
                prepared = self._model.prepare(prompt, *self._sized(images))
            else:
                prepared = self._model.prepare(prompt, videos=[images])
        except InputError as error:
            raise InputError(f"{question.where}: {error}") from error
        asked, visual = self._asked(question), len(prepared.visual_valid)
        if asked is not None and not 0 <= asked < visual:
            raise InputError(
                f"{question.where}: asked_token is {asked}: expected a number from 0 to {visual - 1}, as the "
                "images have so many visual tokens; correct the file, or leave it out"
            )
        return prepared

    def _asked(self, question: Question) -> int | None:
        """The asked token; of an image that is resized it is another one, which nobody names."""
        return question.asked_token if self._resize is None else None

    def _sized(self, images: Sequence[ImageLike]) -> tuple[Sequence[ImageLike], list[ImageProgram] | None]:
        """Images, and the programs that resize them where they are to have fewer visual tokens."""
        if self._resize is None:
            return images, None
        from edgeprune.runtime.images import load_image

        program = self._model.manifest.image_program.of_prompt(len(images))
        loaded = [load_image(image) for image in images]
        programs = []
        for image in loaded:
            height, width = image.shape[:2]
            fewer = kept_count(program.layout(width, height).tokens, self._resize)
            programs.append(program.shrunken(width, height, fewer) or program)
        return loaded, programs

    def _prediction(self, question: Question, valid: NDArray[np.float32], reply: Generated) -> Prediction:
        # By the image's own mask: an imposed one says nothing about padding.
        padded = int((valid[reply.stages[0].kept_visual] == 0).sum()) if reply.stages else 0
        return Prediction(
            text=self._words.decode(reply.token_ids).strip(),
            visual_tokens=len(valid),
            kept=tuple(stage.kept for stage in reply.stages),
            padded_kept=padded,
            new_tokens=len(reply.token_ids),
            asked_kept=None
            if (asked := self._asked(question)) is None
            else tuple(asked in stage.kept_visual for stage in reply.stages),
        )


def settings_of(
    bundle: Path,
    questions: Sequence[Question],
    asking: Asking,
    plan: PruningPlan | None = None,
    selection: str = "by the plan",
) -> dict[str, Setting]:
    """Everything an answer depends on, for the header of its file.

    Args:
        bundle: its folder.
        questions, asking: what is asked, and how.
        plan: the one that runs; None for the bundle's.
        selection: how tokens are selected.

    The bundle counts by its manifest, which holds the hashes of all its files; questions by their texts.
    """
    manifest = read_manifest(bundle)
    texts = hashlib.sha256()
    for question in questions:
        asked = "" if question.asked_token is None else f"{question.asked_token}\0"
        texts.update(f"{question.id}\0{question.prompt}\0{asked}".encode("utf-8", "surrogatepass"))
    return {
        "model": manifest.model.source,
        "plan": (plan or manifest.plan).describe(),
        "bundle": hashlib.sha256(read_regular(bundle / MANIFEST_NAME)).hexdigest()[:16],
        "selection": selection,
        "questions": len(questions),
        "question_texts": texts.hexdigest()[:16],
        "template": asking.template,
        "max_new_tokens": asking.longest,
    }


def ask(
    bundle: Path,
    questions: Sequence[Question],
    file: PredictionFile,
    asking: Asking,
    choice: Choice | None = None,
    progress: Progress | None = None,
) -> None:
    """Answers every question that has no answer yet. The bundle is loaded only if there is one."""
    listener = progress or Silent()
    missing = file.missing
    listener.advance(len(questions) - len(missing))
    if not missing:
        return
    model = Bundle(bundle, asking, choice)
    for start in range(0, len(missing), asking.batch):
        numbers = missing[start : start + asking.batch]
        file.append(model.answer([(number, questions[number]) for number in numbers]))
        listener.advance(len(numbers))
