"""Prompts as the session takes them, and put together in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.image_program import ImageProgram
from edgeprune.interface import PIXEL_VALUES
from edgeprune.layout import PromptLayout
from edgeprune.manifest import Prompt
from edgeprune.plans import Debias, PruningPlan
from edgeprune.positions import Positions
from edgeprune.video_program import VideoProgram
from edgeprune.vision_inputs import frame_feed, something, vision_inputs


@dataclass(frozen=True, eq=False)
class PromptInputs:
    """One prompt, ready for the graphs.

    Attributes:
        input_ids: int64 [S], with one image token for every visual token.
        pixel_values: of all its images and videos, float32 or float16, [tiles, 3, height, width] or as the
            program's feed says.
        layout: its visual tokens, V of them as long as the vision tower merges none.
        visual_valid: float32 [V], their padding mask. It says what they are; the plan says whether that
            counts.
        positions: of its tokens.
        frame_values: of the frames of its videos, [frames, 3, height, width], where these have a vision tower
            of their own; None where they are among the pixel values.
        imposed: float32 [V], what the selection is told instead of the padding mask; for comparisons. None
            for what the plan says.
        preprocess_seconds: what making all this took.
    """

    input_ids: NDArray[np.int64]
    pixel_values: NDArray[np.float32]
    layout: PromptLayout
    visual_valid: NDArray[np.float32]
    positions: Positions
    frame_values: NDArray[np.float32] | None = None
    imposed: NDArray[np.float32] | None = None
    preprocess_seconds: float = 0.0

    @property
    def length(self) -> int:
        """How far it reaches: in tokens, or in positions where these reach farther."""
        return max(len(self.input_ids), self.positions.following)


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts of one batch, padded on the left to the longest: [B, S], positions [B, S] or [axes, B, S], and
    by visual token [B, V]; masks for all tokens of the layouts.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    visual_index: NDArray[np.int64]
    visual_valid: NDArray[np.float32]
    selectable: NDArray[np.float32]


def vision_feeds(
    prompts: Sequence[PromptInputs], program: ImageProgram, video: VideoProgram | None
) -> dict[str, NDArray[Any]]:
    """What the vision graph is fed for prompts, in the order of its inputs.

    Args:
        prompts: of one run.
        program, video: of the bundle.
    """
    images = [image for prompt in prompts for image in prompt.layout.images]
    pixels = [prompt.pixel_values for prompt in prompts]
    own_tower = video is not None and video.own_tower
    feeds = {PIXEL_VALUES: something(program, pixels) if own_tower else np.concatenate(pixels)}
    frames = [prompt.frame_values for prompt in prompts if prompt.frame_values is not None]
    return feeds | frame_feed(program, video, frames) | vision_inputs(program, images, video)


def padded(prompts: Sequence[PromptInputs], described: Prompt, plan: PruningPlan) -> Batch:
    image, fill = described.image_token_id, described.pad_token_id
    if fill == image:  # padding that looked like visual tokens would take their embeddings
        fill = 1 if image == 0 else 0
    longest = max(len(prompt.input_ids) for prompt in prompts)
    ids = np.full((len(prompts), longest), fill, dtype=np.int64)
    # Where it is padding, a position does not matter: it is masked.
    mask = np.zeros_like(ids)
    axes = prompts[0].positions.ids.shape[:-1]
    positions = np.zeros((*axes, *ids.shape), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        start = longest - len(prompt.input_ids)
        ids[row, start:] = prompt.input_ids
        mask[row, start:] = 1
        positions[..., row, start:] = prompt.positions.ids
    index = np.nonzero(ids == image)[1].reshape(len(prompts), -1)
    valid = np.stack([prompt.visual_valid for prompt in prompts]).astype(np.float32)
    selectable = np.stack([_selectable(prompt, plan) for prompt in prompts]).astype(np.float32)
    return Batch(ids, mask, positions, index.astype(np.int64), valid, selectable)


def _selectable(prompt: PromptInputs, plan: PruningPlan) -> NDArray[np.float32]:
    """What the selection is told of the layout's tokens, float32 [V]: 0 stands behind all others."""
    if prompt.imposed is not None:
        return prompt.imposed
    return prompt.visual_valid if Debias.PADDING in plan.debias else np.ones_like(prompt.visual_valid)


def batches(visual_tokens: Sequence[int], size: int) -> list[list[int]]:
    """Numbers of prompts that run together: as many visual tokens, at most `size`, in order."""
    groups: dict[int, list[int]] = {}
    for number, visual in enumerate(visual_tokens):
        groups.setdefault(visual, []).append(number)
    return [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]
