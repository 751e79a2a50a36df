"""From a prompt and its images to what a session takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from edgeprune.debias.masks import PaddingMask
from edgeprune.errors import InputError
from edgeprune.image_program import ImageProgram
from edgeprune.layout import PromptLayout
from edgeprune.manifest import Manifest
from edgeprune.positions import PositionRule, prompt_positions
from edgeprune.runtime.batching import PromptInputs
from edgeprune.runtime.images import ImageLike, load_image
from edgeprune.runtime.messages import PromptLike
from edgeprune.runtime.programs import ImageInputs, run_frames, run_program
from edgeprune.runtime.prompt import PromptEncoder
from edgeprune.runtime.videos import VideoLike, open_video
from edgeprune.video_program import USUAL_RATE, VideoProgram


@dataclass(frozen=True)
class Preparation:
    """What a model does with prompts before its graphs run.

    Attributes:
        encoder: of its prompts.
        program: of its images.
        mask: how padding masks are made.
        positions: of tokens.
        tower_tokens: of so many visual tokens, how many the prompt holds.
        most_tokens: of a prompt, by its positions.
        video: the program of its videos; None where the model takes none.
        dtype: of the pixel values that the vision graph reads.
    """

    encoder: PromptEncoder
    program: ImageProgram
    mask: PaddingMask
    positions: PositionRule
    tower_tokens: Callable[[int], int]
    most_tokens: int
    video: VideoProgram | None = None
    dtype: type[np.float32 | np.float16] = np.float32

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> Preparation:
        """Of a bundle.

        Args:
            folder: it lies in.
            manifest: of it.

        Raises:
            BundleError: its tokenizer or chat template cannot be read.
        """
        return cls(
            encoder=PromptEncoder(folder, manifest.prompt, manifest.model.max_positions),
            program=manifest.image_program,
            mask=manifest.padding_mask,
            positions=manifest.positions,
            tower_tokens=manifest.tower_tokens,
            most_tokens=manifest.model.max_positions,
            video=manifest.video_program,
            # Converting millions of numbers takes longer than reading them from a table in the right type.
            dtype=np.float16 if manifest.vision.inputs[0].dtype == "float16" else np.float32,
        )

    def prepare(
        self,
        prompt: PromptLike,
        images: Sequence[ImageLike],
        programs: Sequence[ImageProgram] | None = None,
        videos: Sequence[VideoLike] = (),
        frames: int | None = None,
        fps: float | None = None,
    ) -> PromptInputs:
        """A prompt and its images and videos as the session takes them.

        Args:
            prompt: a string or messages.
            images: in the order of its image places.
            programs: of each image, where it is to be resized otherwise than `program` says.
            videos: in the order of its video places.
            frames: how many of each video are seen, or
            fps: how many of a second; None for what the model says.

        Raises:
            InputError: an image, a video or the prompt cannot be used.
        """
        started = perf_counter()
        text = self.encoder.render(prompt, len(images), len(videos))
        program = self.program.of_prompt(len(images))
        each = [program] * len(images) if programs is None else programs
        shown = {
            "image": (
                run_program(load_image(image), own, self.dtype)
                for image, own in zip(images, each, strict=True)
            ),
            "video": (self._video(video, frames, fps) for video in videos),
        }
        seen = [next(shown[kind]) for kind in self.encoder.order(text)]
        layout = PromptLayout(tuple(one.layout for one in seen))
        own_tower = self.video is not None and self.video.own_tower
        frame_values = [one.pixel_values for one in seen if own_tower and one.layout.interval]
        nothing = np.empty((0, *self.program.row_shape), dtype=self.dtype)
        described = self.encoder.prompt
        texts = [image.text(described.image_token, self.tower_tokens) for image in layout.images]
        input_ids = np.array(self.encoder.encode(text, texts), dtype=np.int64)
        is_visual = input_ids == described.image_token_id
        return PromptInputs(
            input_ids=input_ids,
            pixel_values=np.concatenate(
                [nothing, *(one.pixel_values for one in seen if not (own_tower and one.layout.interval))]
            ),
            layout=layout,
            visual_valid=layout.valid(self.mask),
            positions=prompt_positions(self.positions, is_visual, layout),
            frame_values=np.concatenate([nothing, *frame_values]) if own_tower else None,
            preprocess_seconds=perf_counter() - started,
        )

    def _video(self, source: VideoLike, frames: int | None, fps: float | None) -> ImageInputs:
        program = self.video
        assert program is not None  # `render` has refused it
        # Frames that are handed in follow each other as those that would be sampled.
        usual = program.sampling.per_second or USUAL_RATE
        with open_video(source, usual if fps is None else fps) as video:
            indices = video.indices(program.sampling, frames, fps)
            layout = program.layout(self.program, *video.size, indices, video.rate, video.total)
            if layout.tokens > self.most_tokens:
                raise InputError(
                    f"the video becomes {layout.tokens} visual tokens, of {len(indices)} frames: expected at "
                    f"most {self.most_tokens}, the model's range; give a lower `fps` or fewer `frames`"
                )
            one = program.frame_program(self.program, len(indices), *video.size)
            return ImageInputs(run_frames(video.frames(indices), one, self.dtype), layout)
