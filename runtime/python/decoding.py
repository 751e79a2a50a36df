"""What is carried from step to step, and from a prompt to the next of a conversation: caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeprune.interface import LOGITS, is_cache, next_feeds, present_mask, text_feeds
from edgeprune.plans import PruningPlan
from edgeprune.runtime.backends.base import Array, Tensor
from edgeprune.runtime.batching import PromptInputs
from edgeprune.runtime.stages import StageResult

if TYPE_CHECKING:
    from edgeprune.runtime.session import Session

Seen: TypeAlias = "tuple[Tensor | Array, Sequence[Tensor | Array], NDArray[np.int64]]"
"""Of a batch: visual_embeds and the levels of deepstack, [B, V, D], and which of the layout's tokens each
is, int64 [B, V].
"""


def on_host(value: Tensor | Array) -> Array:
    """The values of a back end's tensor, or an array as it is."""
    return value if isinstance(value, np.ndarray) else value.numpy()


class Decoding:
    """A batch after its prefill: takes one token per prompt and gives the logits of the next.

    Attributes:
        logits: float32 [B, vocab], of the last position.
        stages: for each prompt, what every pruning stage did.
        seen: what the vision graph made of the batch's images.
        vision_seconds, prefill_seconds: of the whole batch.
    """

    def __init__(
        self,
        session: Session,
        caches: dict[str, Tensor],
        following: NDArray[np.int64],
        logits: NDArray[np.float32],
        stages: list[tuple[StageResult, ...]],
        seen: Seen,
        vision_seconds: float,
        prefill_seconds: float,
    ) -> None:
        self.logits = logits
        self.stages = stages
        self.seen = seen
        self.vision_seconds = vision_seconds
        self.prefill_seconds = prefill_seconds
        self._session = session
        self._caches = caches
        self._positions = following
        session._latest = self

    @property
    def cache_bytes(self) -> int:
        """Keys and values of all layers, the whole batch."""
        return sum(tensor.nbytes for name, tensor in self._caches.items() if is_cache(name))

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Reads one token per prompt, int64 [B]; returns the next logits, float32 [B, vocab]."""
        last = self._session.manifest.model.max_positions - 1
        # A prompt that has ended may run past the range while others of its batch go on.
        positions = np.minimum(self._positions, last)
        self._run(next_feeds(self._session.manifest.language.inputs, tokens, positions, self._caches))
        self._positions = self._positions + 1
        return self.logits

    def _run(self, feeds: dict[str, Any]) -> None:
        found = self._session._language.run(feeds, [LOGITS, *self._caches])
        self.logits = found.pop(LOGITS).numpy()
        self._session._check_finite(self.logits)
        self._caches = found
        self._session._latest = self

    def read_on(self, prompt: PromptInputs, known: int, dropped: int, steps: int) -> None:
        """Goes on with a prompt of which the caches hold the first tokens; of a batch of one.

        Args:
            prompt: the whole of it.
            known: how many of its tokens the caches hold, all visual ones among them.
            dropped: how many tokens they hold behind those, which are let go.
            steps: how many steps of decoding follow.
        """
        started = perf_counter()
        groups = range(len(self._session.manifest.cache_groups))
        lengths = [self._caches[present_mask(group)].shape[1] - dropped for group in groups]
        if dropped:
            self._caches = {name: _first(tensor, name, dropped) for name, tensor in self._caches.items()}
        ids = prompt.input_ids[known:][None]
        positions = np.expand_dims(prompt.positions.ids[..., known:], -2)
        graph = self._session._language
        graph.expect([length + ids.shape[1] + steps for length in lengths])
        stride = graph.most_behind_past or ids.shape[1]
        for at in range(0, ids.shape[1], stride):
            part, place = ids[:, at : at + stride], positions[..., at : at + stride]
            self._run(text_feeds(self._session.manifest.language.inputs, part, place, self._caches))
        self._positions = np.array([prompt.positions.following], dtype=np.int64)
        self.vision_seconds, self.prefill_seconds = 0.0, perf_counter() - started


def _first(tensor: Any, name: str, dropped: int) -> Any:
    """A cache or a mask without its last tokens."""
    axis = 2 if is_cache(name) else 1
    length = tensor.shape[axis] - dropped
    if hasattr(tensor, "first"):
        return tensor.first(length)
    array = on_host(tensor)
    return array[:, :, :length] if axis == 2 else array[:, :length]


@dataclass(frozen=True, eq=False)
class Held:
    """A prompt and its reply, whose caches the next prompt of a conversation may go on with.

    Attributes:
        prompt: as it was read.
        plan: by which it was pruned.
        read: int64 [tokens], of prompt and reply, those that the caches hold.
        state: the caches.
    """

    prompt: PromptInputs
    plan: PruningPlan
    read: NDArray[np.int64]
    state: Decoding

    def known(self, prompt: PromptInputs, plan: PruningPlan, image_token: int) -> int:
        """Of a prompt's tokens how many the caches hold; 0 where what they hold is pruned otherwise.

        The last token is always read, as the next one comes from there. Behind the last visual token every
        cache has every token, so there it can be cut; in front of it, it cannot.
        """
        most = min(len(self.read), len(prompt.input_ids) - 1)
        same = prompt.input_ids[:most] == self.read[:most]
        known = most if same.all() else int(same.argmin())
        visual = np.flatnonzero(self.prompt.input_ids == image_token)
        there = not len(visual) or known > visual[-1]
        new = (prompt.input_ids[known:] == image_token).any()
        if plan != self.plan or not there or new or self.images(prompt) != len(prompt.layout.images):
            return 0
        own = min(known, len(self.prompt.input_ids))
        places = prompt.positions.ids[..., :own] == self.prompt.positions.ids[..., :own]
        return known if places.all() else 0

    def images(self, prompt: PromptInputs) -> int:
        """How many images both prompts begin with: all those of this one, or 0."""
        images, rows = self.prompt.layout.images, len(self.prompt.pixel_values)
        frames = self.prompt.frame_values
        others = prompt.frame_values
        if (frames is None) != (others is None):
            return 0
        if frames is not None and others is not None and not np.array_equal(frames, others):
            return 0
        alike = prompt.layout.images[: len(images)] == images
        shown = alike and np.array_equal(prompt.pixel_values[:rows], self.prompt.pixel_values)
        return len(images) if shown else 0
