"""The loop of generation: prefill, decode, caches. Knows arrays and a back end only.

Nothing here knows pictures as files, tokenizers or messages; all that stays outside, so that this module
can be replaced by the C++ core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeprune.checks import check_count
from edgeprune.debias.curves import curve_table
from edgeprune.errors import BundleError, InputError, NumericsError, PruningError
from edgeprune.interface import (
    LOGITS,
    PIXEL_VALUES,
    VISUAL_EMBEDS,
    VISUAL_PLACE,
    TensorSpec,
    first_feeds,
    is_cache,
    is_present,
    kept_index,
    next_feeds,
    present_mask,
    score,
)
from edgeprune.manifest import Manifest
from edgeprune.plans import Debias, PruningPlan
from edgeprune.runtime.backends.base import Array, Backend, Graph, Tensor
from edgeprune.runtime.stages import StageResult, stage_results
from edgeprune.runtime.statistics import Statistics

FinishReason = Literal["stop", "length", "stop_string"]

Picker: TypeAlias = "Callable[[NDArray[np.float32]], int]"
"""Chooses the next token of one prompt from its logits, float32 [vocab]; see `sampling.Sampler.pick`."""

Listener: TypeAlias = "Callable[[int, int], bool]"
"""Is told (number of the prompt, token id) as tokens come; True ends the prompt's reply."""

DEFAULT_BATCH = 8


@dataclass(frozen=True, eq=False)
class PromptInputs:
    """One prompt, ready for the graphs.

    Attributes:
        input_ids: int64 [S], with one image token for every visual token.
        pixel_values: float32 [pictures, 3, height, width].
        visual_valid: float32 [places], the padding mask of its pictures' places: its visual tokens, as long
            as the vision tower merges none. It says what they are; the plan says whether that counts.
        imposed: float32 [places], what the selection is told instead of the padding mask; for comparisons.
            None for what the plan says.
        preprocess_seconds: what making all this took.
    """

    input_ids: NDArray[np.int64]
    pixel_values: NDArray[np.float32]
    visual_valid: NDArray[np.float32]
    imposed: NDArray[np.float32] | None = None
    preprocess_seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Generated:
    """What was generated for one prompt; the fields are those of `model.Reply`."""

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stages: tuple[StageResult, ...]
    statistics: Statistics


class Session:
    """The graphs of a bundle on a back end.

    Args:
        backend: where they run.
        folder: the bundle.
        manifest: of the bundle.

    Raises:
        BackendError: a graph cannot be loaded.
        BundleError: a graph's inputs or outputs are not those of the manifest.
        PruningError: the plan prunes and the language graph has no pruning stage.
    """

    def __init__(self, backend: Backend, folder: Path, manifest: Manifest) -> None:
        self.backend = backend
        self.manifest = manifest
        self._vision = backend.load(folder, manifest.vision)
        self._language = backend.load(folder, manifest.language)
        _check_interface(self._vision, manifest.vision.inputs, manifest.vision.outputs, manifest)
        _check_interface(self._language, manifest.language.inputs, manifest.language.outputs, manifest)
        names = [spec.name for spec in manifest.language.outputs]
        self._curve = curve_table(manifest.curve, manifest.tokens_per_image)
        self._present = [name for name in names if is_present(name)]
        stages = range(len(manifest.plan.stages))
        self._traces = [name(stage) for name in (kept_index, score) for stage in stages]

    def check(self, prompt: PromptInputs, plan: PruningPlan | None = None) -> None:
        """Refuses a prompt that the graphs cannot take, or a plan with other stages than the manifest's.

        Raises:
            InputError: longer than the model's positions, or pictures, padding mask and image tokens differ
                in number.
        """
        plan = plan or self.manifest.plan
        info, per_image = self.manifest.model, self.manifest.tokens_per_image
        places = self.manifest.preprocessing.places_per_image
        length, limit = len(prompt.input_ids), info.max_positions
        pictures = len(prompt.pixel_values)
        if length > limit:
            raise InputError(
                f"the prompt has {length} tokens, {pictures * per_image} of them visual: expected at most "
                f"{limit}, the model's range of positions; shorten it or leave out pictures"
            )
        image = self.manifest.prompt.image_token_id
        if plan.needs_text_behind_images and length and prompt.input_ids[-1] == image:
            raise InputError(
                f"the prompt ends with an image, and the plan ({plan.describe()}) selects by "
                "the text behind it, or moves tokens there: put the question behind the images"
            )
        image_tokens = int((prompt.input_ids == image).sum())
        if image_tokens != pictures * per_image or len(prompt.visual_valid) != pictures * places:
            raise InputError(
                f"the prompt has {image_tokens} image tokens, {pictures} pictures of {per_image} visual "
                f"tokens each, and a padding mask of {len(prompt.visual_valid)}: expected as many image as "
                f"visual tokens, and a mask of {places} for each picture; make them of the same pictures"
            )

    def generate(
        self,
        prompts: Sequence[PromptInputs],
        pickers: Sequence[Picker],
        max_new_tokens: int,
        listener: Listener | None = None,
        batch_size: int = DEFAULT_BATCH,
        plan: PruningPlan | None = None,
    ) -> list[Generated]:
        """Generates a reply to every prompt.

        Prompts with as many visual tokens run as one batch, padded on the left; each ends by itself.

        Args:
            prompts: in any mixture.
            pickers: one for each prompt.
            max_new_tokens: at most so many each; fewer where the model's positions end.
            listener: see `Listener`.
            batch_size: how many run together at most.
            plan: the manifest's with other keep ratios or another debias; None for the manifest's.

        Returns:
            One result per prompt, in their order.

        Raises:
            InputError: a prompt cannot be taken, or a number is not a whole one of at least 1.
            PruningError: a stage did not keep what the plan says.
        """
        check_count("max_new_tokens", max_new_tokens)
        check_count("batch_size", batch_size)
        for prompt in prompts:
            self.check(prompt, plan)
        results: dict[int, Generated] = {}
        for numbers in _batches([len(prompt.visual_valid) for prompt in prompts], batch_size):
            replies = [
                _Growing(number, pickers[number], self._limit(prompts[number], max_new_tokens))
                for number in numbers
            ]
            results |= self._run([prompts[number] for number in numbers], replies, listener, plan)
        return [results[number] for number in range(len(prompts))]

    def prefill(self, prompts: Sequence[PromptInputs], plan: PruningPlan | None = None) -> Decoding:
        """Reads a batch of prompts that have as many visual tokens each; `plan` is as for `generate`.

        Raises:
            InputError: a prompt cannot be taken, or the numbers of visual tokens differ.
            PruningError: a stage did not keep what the plan says.
        """
        plan = plan or self.manifest.plan
        for prompt in prompts:
            self.check(prompt, plan)
        if len({len(prompt.visual_valid) for prompt in prompts}) != 1:
            raise InputError(
                "the prompts of one batch have different numbers of visual tokens: expected the same number; "
                "put those with as many pictures together"
            )
        batch = _padded(prompts, self.manifest, plan)
        started = perf_counter()
        embeds, places = self._see(prompts)
        self.backend.synchronize()
        seen = perf_counter()
        selectable = np.take_along_axis(batch.selectable, places, axis=1)
        curve_place = self._curve_place(batch.visual_index, plan)
        feeds = first_feeds(
            self.manifest.language.inputs,
            batch.input_ids,
            batch.attention_mask,
            batch.visual_index,
            selectable,
            curve_place,
            [counts.kept for counts in plan.counts(places.shape[1])],
            embeds,
        )
        found = self._language.run(feeds, [LOGITS, *self._traces, *self._present])
        logits = found[LOGITS].numpy()
        read = perf_counter()
        self._check_finite(logits)
        stages = stage_results(
            plan,
            batch.visual_index,
            places,
            batch.visual_valid,
            self._curve[curve_place] * selectable,
            batch.input_ids.shape[1],
            {name: found[name].numpy() for name in self._traces},
        )
        caches = {name: found[name] for name in self._present}
        self._check_caches(caches, batch.input_ids.shape[1], places.shape[1], plan)
        lengths = batch.attention_mask.sum(axis=1)
        return Decoding(self, caches, lengths, logits, stages, seen - started, read - seen)

    def _curve_place(self, visual_index: NDArray[np.int64], plan: PruningPlan) -> NDArray[np.int64]:
        """Which entry of the bias curve each visual token reads, int64 [B, V]; the curve begins anew with
        every image."""
        if Debias.POSITION not in plan.debias:
            return np.zeros_like(visual_index)
        number = np.arange(visual_index.shape[1], dtype=np.int64)
        return np.broadcast_to(1 + number % self.manifest.tokens_per_image, visual_index.shape)

    def _limit(self, prompt: PromptInputs, max_new_tokens: int) -> int:
        """The last token is never read, so it needs no position. Engines may end before the positions do."""
        positions = self.manifest.model.max_positions
        longest = min(positions, self._language.max_length or positions)
        # A prompt that does not fit at all is refused where it is run, with what to do about it.
        return min(max_new_tokens, max(1, longest - len(prompt.input_ids) + 1))

    def _run(
        self,
        prompts: Sequence[PromptInputs],
        replies: Sequence[_Growing],
        listener: Listener | None,
        plan: PruningPlan | None,
    ) -> dict[int, Generated]:
        started = perf_counter()
        state = self.prefill(prompts, plan)
        ends = self.manifest.prompt.eos_token_ids
        while True:
            for reply, logits in zip(replies, state.logits, strict=True):
                if reply.finish_reason is None:
                    reply.take(logits, ends, listener, state.cache_bytes // len(replies))
            if all(reply.finish_reason is not None for reply in replies):
                break
            # What an ended reply goes on with does not matter: rows of a batch do not see each other.
            state.step(np.array([reply.token_ids[-1] for reply in replies], dtype=np.int64))
        return {
            reply.number: Generated(
                tuple(reply.token_ids),
                reply.reason,
                state.stages[row],
                self._statistics(prompt, reply, state, row, started),
            )
            for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True))
        }

    def _statistics(
        self, prompt: PromptInputs, reply: _Growing, state: Decoding, row: int, started: float
    ) -> Statistics:
        memory = self.backend.peak_memory()
        decode = reply.last - reply.first
        later = len(reply.token_ids) - 1
        return Statistics(
            visual_tokens=len(prompt.visual_valid),
            tower_tokens=len(prompt.pixel_values) * self.manifest.tokens_per_image,
            kept=tuple(stage.kept for stage in state.stages[row]),
            padded_kept=tuple(stage.padded_kept for stage in state.stages[row]),
            prompt_tokens=len(prompt.input_ids),
            new_tokens=len(reply.token_ids),
            batch=len(state.logits),
            preprocess_seconds=prompt.preprocess_seconds,
            vision_seconds=state.vision_seconds,
            prefill_seconds=state.prefill_seconds,
            time_to_first_token_seconds=prompt.preprocess_seconds + reply.first - started,
            decode_seconds=decode,
            tokens_per_second=later / decode if later and decode > 0 else None,
            cache_bytes=reply.cache_bytes,
            peak_memory_bytes=memory.bytes,
            peak_memory_metric=memory.metric,
        )

    def _see(self, prompts: Sequence[PromptInputs]) -> tuple[Tensor | Array, NDArray[np.int64]]:
        """visual_embeds [B, V, D], each prompt's pictures in a row, and their places int64 [B, V]."""
        width, batch, pictures = self.manifest.model.hidden_size, len(prompts), len(prompts[0].pixel_values)
        visual, each = pictures * self.manifest.tokens_per_image, self.manifest.preprocessing.places_per_image
        if not visual:
            return np.zeros((batch, 0, width), dtype=np.float32), np.zeros((batch, 0), dtype=np.int64)
        pixels = np.concatenate([prompt.pixel_values for prompt in prompts])
        merges = bool(self.manifest.plan.tower)
        names = [VISUAL_EMBEDS, VISUAL_PLACE] if merges else [VISUAL_EMBEDS]
        found = self._vision.run({PIXEL_VALUES: pixels}, names)
        embeds = found[VISUAL_EMBEDS].reshape(batch, visual, width)
        if not merges:
            return embeds, np.broadcast_to(np.arange(visual), (batch, visual))
        place = found[VISUAL_PLACE].numpy().reshape(batch, pictures, -1)
        if place.shape[2] * pictures != visual or (np.diff(place, axis=2) <= 0).any():
            raise PruningError(
                f"the vision tower left {place.shape[2]} tokens of a picture: expected {visual // pictures}, "
                f"in order, as the plan says ({self.manifest.plan.describe()}); export again"
            )
        return embeds, (place + each * np.arange(pictures)[:, None]).reshape(batch, visual)

    def _check_finite(self, logits: NDArray[np.float32]) -> None:
        """Refuses logits that no token can be chosen by: a NaN would count as the likeliest or as token 0."""
        # A model may rule tokens out by -inf, but not all of them.
        if np.isfinite(logits.max(axis=1)).all():
            return
        kind = "NaN" if np.isnan(logits).any() else "infinite"
        narrow = self.manifest.model.dtype == "fp16"  # the others reach as far as the model's own can
        raise NumericsError(
            f"the model computed logits that are {kind}: expected numbers; "
            + (
                "fp16 may be too narrow for it, or its weights are damaged: export it again with "
                "`dtype='fp32'` or `dtype='bf16'`"
                if narrow
                else "its weights are damaged, or the model itself computes them: check the bundle with "
                "`edgeprune verify`, or export it again from a checkpoint without NaN"
            )
        )

    def _check_caches(self, caches: dict[str, Tensor], sequence: int, visual: int, plan: PruningPlan) -> None:
        """The caches are the proof that later layers really saw fewer tokens."""
        for group, expected in enumerate(plan.cache_lengths(sequence, visual)):
            found = caches[present_mask(group)].shape[1]
            if found != expected:
                raise PruningError(
                    f"the caches of layer group {group} hold {found} tokens: expected {expected} "
                    f"of {sequence}, as the plan says ({plan.describe()}); export again"
                )


class Decoding:
    """A batch after its prefill: takes one token per prompt and gives the logits of the next.

    Attributes:
        logits: float32 [B, vocab], of the last position.
        stages: for each prompt, what every pruning stage did.
        vision_seconds, prefill_seconds: of the whole batch.
    """

    def __init__(
        self,
        session: Session,
        caches: dict[str, Tensor],
        lengths: NDArray[np.int64],
        logits: NDArray[np.float32],
        stages: list[tuple[StageResult, ...]],
        vision_seconds: float,
        prefill_seconds: float,
    ) -> None:
        self.logits = logits
        self.stages = stages
        self.vision_seconds = vision_seconds
        self.prefill_seconds = prefill_seconds
        self._session = session
        self._caches = caches
        self._positions = lengths

    @property
    def cache_bytes(self) -> int:
        """Keys and values of all layers, the whole batch."""
        return sum(tensor.nbytes for name, tensor in self._caches.items() if is_cache(name))

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Reads one token per prompt, int64 [B]; returns the next logits, float32 [B, vocab]."""
        last = self._session.manifest.model.max_positions - 1
        # A prompt that has ended may run past the range while others of its batch go on.
        positions = np.minimum(self._positions, last)
        feeds = next_feeds(self._session.manifest.language.inputs, tokens, positions, self._caches)
        found = self._session._language.run(feeds, [LOGITS, *self._caches])
        self.logits = found.pop(LOGITS).numpy()
        self._session._check_finite(self.logits)
        self._caches = found
        self._positions = self._positions + 1
        return self.logits


@dataclass(eq=False)
class _Growing:
    """A reply while it is generated."""

    number: int
    picker: Picker
    limit: int
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    first: float = 0.0
    last: float = 0.0
    cache_bytes: int = 0

    @property
    def reason(self) -> FinishReason:
        if self.finish_reason is None:
            raise AssertionError("the reply has not ended")
        return self.finish_reason

    def take(
        self,
        logits: NDArray[np.float32],
        ends: Sequence[int],
        listener: Listener | None,
        cache_bytes: int,
    ) -> None:
        token = self.picker(logits)
        self.last = perf_counter()
        if not self.token_ids:
            self.first = self.last
        self.token_ids.append(token)
        self.cache_bytes = cache_bytes
        heard_enough = listener is not None and listener(self.number, token)
        if token in ends:
            self.finish_reason = "stop"
        elif heard_enough:
            self.finish_reason = "stop_string"
        elif len(self.token_ids) >= self.limit:
            self.finish_reason = "length"


@dataclass(frozen=True, eq=False)
class _Batch:
    """Prompts of one batch, padded on the left to the longest: arrays [B, S], [B, V] and [B, places]."""

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    visual_index: NDArray[np.int64]
    visual_valid: NDArray[np.float32]
    selectable: NDArray[np.float32]


def _padded(prompts: Sequence[PromptInputs], manifest: Manifest, plan: PruningPlan) -> _Batch:
    image, fill = manifest.prompt.image_token_id, manifest.prompt.pad_token_id
    if fill == image:  # padding that looked like visual tokens would take their embeddings
        fill = 1 if image == 0 else 0
    longest = max(len(prompt.input_ids) for prompt in prompts)
    ids = np.full((len(prompts), longest), fill, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        start = longest - len(prompt.input_ids)
        ids[row, start:] = prompt.input_ids
        mask[row, start:] = 1
    index = np.nonzero(ids == image)[1].reshape(len(prompts), -1)
    valid = np.stack([prompt.visual_valid for prompt in prompts]).astype(np.float32)
    selectable = [_selectable(prompt, plan) for prompt in prompts]
    return _Batch(ids, mask, index.astype(np.int64), valid, np.stack(selectable).astype(np.float32))


def _selectable(prompt: PromptInputs, plan: PruningPlan) -> NDArray[np.float32]:
    """What the selection is told of the visual tokens, float32 [places]: 0 stands behind all others."""
    if prompt.imposed is not None:
        return prompt.imposed
    return prompt.visual_valid if Debias.PADDING in plan.debias else np.ones_like(prompt.visual_valid)


def _batches(visual_tokens: Sequence[int], size: int) -> list[list[int]]:
    """Numbers of prompts that run together: as many visual tokens, at most `size`, in order."""
    groups: dict[int, list[int]] = {}
    for number, visual in enumerate(visual_tokens):
        groups.setdefault(visual, []).append(number)
    return [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]


def _fits(found: Sequence[int | str], wanted: Sequence[int | str]) -> bool:
    """Whether shapes are as long, and equal where both are fixed."""
    if len(found) != len(wanted):
        return False
    pairs = zip(found, wanted, strict=True)
    return all(have == want for have, want in pairs if isinstance(have, int) and isinstance(want, int))


def _check_interface(
    graph: Graph, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], manifest: Manifest
) -> None:
    for kind, wanted, found in (("input", inputs, graph.inputs), ("output", outputs, graph.outputs)):
        have = {(spec.name, spec.dtype): spec.shape for spec in found}
        for spec in wanted:
            shape = have.get((spec.name, spec.dtype))
            if shape is not None and _fits(shape, spec.shape):
                continue
            source = manifest.model.source
            if shape is not None:
                raise BundleError(
                    f"the graph's {kind} {spec.name} has the shape {list(shape)}, and {source}'s manifest "
                    f"says {list(spec.shape)}: the files do not belong together; export the bundle again"
                )
            if spec.name in map(kept_index, range(len(manifest.plan.stages))):
                raise PruningError(
                    f"the plan prunes ({manifest.plan.describe()}), but the language graph has no "
                    f"{spec.name}: it would run unpruned; export the bundle again"
                )
            raise BundleError(
                f"the graph has no {kind} {spec.name} of type {spec.dtype}, which {source}'s manifest "
                "names: the files do not belong together; export the bundle again"
            )
