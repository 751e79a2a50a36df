"""From a prompt and its images to what a session takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from edgeprune.debias.masks import PaddingMask
from edgeprune.image_program import ImageProgram
from edgeprune.layout import PromptLayout
from edgeprune.positions import PositionRule, prompt_positions
from edgeprune.runtime.batching import PromptInputs
from edgeprune.runtime.images import ImageLike, load_image
from edgeprune.runtime.messages import PromptLike
from edgeprune.runtime.programs import run_program
from edgeprune.runtime.prompt import PromptEncoder


@dataclass(frozen=True)
class Preparation:
    """What a model does with prompts before its graphs run.

    Attributes:
        encoder: of its prompts.
        program: of its images.
        mask: how padding masks are made.
        positions: of tokens.
        dtype: of the pixel values that the vision graph reads.
        tower_tokens: of so many visual tokens, how many the prompt holds.
    """

    encoder: PromptEncoder
    program: ImageProgram
    mask: PaddingMask
    positions: PositionRule
    tower_tokens: Callable[[int], int]
    dtype: type[np.float32 | np.float16] = np.float32

    def prepare(
        self,
        prompt: PromptLike,
        images: Sequence[ImageLike],
        programs: Sequence[ImageProgram] | None = None,
    ) -> PromptInputs:
        """A prompt and its images as the session takes them.

        Args:
            prompt: a string or messages.
            images: in the order of its image places.
            programs: of each image, where it is to be resized otherwise than `program` says.

        Raises:
            InputError: an image or the prompt cannot be used.
        """
        started = perf_counter()
        program = self.program.of_prompt(len(images))
        each = [program] * len(images) if programs is None else programs
        seen = [
            run_program(load_image(image), program, self.dtype)
            for image, program in zip(images, each, strict=True)
        ]
        layout = PromptLayout(tuple(one.layout for one in seen))
        nothing = np.empty((0, *self.program.row_shape), dtype=self.dtype)
        described = self.encoder.prompt
        texts = [image.text(described.image_token, self.tower_tokens) for image in layout.images]
        input_ids = np.array(self.encoder.encode(prompt, texts), dtype=np.int64)
        is_visual = input_ids == described.image_token_id
        return PromptInputs(
            input_ids=input_ids,
            pixel_values=np.concatenate([nothing, *(one.pixel_values for one in seen)]),
            layout=layout,
            visual_valid=layout.valid(self.mask),
            positions=prompt_positions(self.positions, is_visual, layout),
            preprocess_seconds=perf_counter() - started,
        )
