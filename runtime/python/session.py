"""The loop of generation: prefill, decode, caches. Knows arrays and a back end only.

Nothing here knows images as files, tokenizers or messages; all that stays outside, so that this module
can be replaced by the C++ core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from edgeprune.checks import check_count
from edgeprune.debias.curves import curve_table
from edgeprune.errors import InputError, NumericsError, PruningError
from edgeprune.interface import (
    LOGITS,
    PIXEL_VALUES,
    VISUAL_EMBEDS,
    VISUAL_PLACE,
    deepstack,
    first_feeds,
    is_present,
    kept_index,
    present_mask,
    score,
)
from edgeprune.layout import PromptLayout
from edgeprune.manifest import Manifest
from edgeprune.plans import Debias, PruningPlan
from edgeprune.runtime.backends.base import Array, Backend, Tensor
from edgeprune.runtime.batching import PromptInputs, batches, padded, vision_feeds
from edgeprune.runtime.decoding import Decoding, Held, Seen, on_host
from edgeprune.runtime.graph_check import check_interface
from edgeprune.runtime.growing import FinishReason, Growing, Listener, Picker
from edgeprune.runtime.stages import StageResult, stage_results
from edgeprune.runtime.statistics import Statistics

DEFAULT_BATCH = 8


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
        max_context: the most tokens of a prompt and its reply, before anything is pruned; None for the
            model's own range.

    Raises:
        InputError: `max_context` is no whole number of at least 1.
        BackendError: a graph cannot be loaded.
        BundleError: a graph's inputs or outputs are not those of the manifest.
        PruningError: the plan prunes and the language graph has no pruning stage.
    """

    def __init__(
        self, backend: Backend, folder: Path, manifest: Manifest, max_context: int | None = None
    ) -> None:
        if max_context is not None:
            check_count("max_context", max_context)
        self.max_context = max_context
        self.backend = backend
        self.manifest = manifest
        language = backend.language_form(manifest)  # first, because it refuses what cannot be run
        self._vision = backend.load(folder, manifest.vision)
        self._language = backend.load(folder, language)
        check_interface(self._vision, manifest.vision.inputs, manifest.vision.outputs, manifest)
        check_interface(self._language, language.inputs, language.outputs, manifest)
        names = [spec.name for spec in manifest.language.outputs]
        self._curve = curve_table(manifest.curve, manifest.curve_places)
        # The one that ran last.
        self._latest: Decoding | None = None
        self._present = [name for name in names if is_present(name)]
        stages = range(len(manifest.plan.stages))
        self._traces = [name(stage) for name in (kept_index, score) for stage in stages]

    def check(self, prompt: PromptInputs, plan: PruningPlan | None = None) -> None:
        """Refuses a prompt that the graphs cannot take, or a plan that they cannot follow.

        Raises:
            InputError: longer than the positions, or tiles, layout and image tokens differ in number; or
                the plan has other stages than the manifest's, or a debias that the bundle has no curve for.
        """
        plan = plan or self.manifest.plan
        self._check_plan(plan)
        length, limit = prompt.length, self.manifest.model.max_positions
        visual = self._visual(prompt)
        if length > limit:
            raise InputError(
                f"the prompt takes {length} positions, {visual} of its tokens being visual: expected at most "
                f"{limit}, the model's range; shorten it or leave out images"
            )
        if self.max_context is not None and length > self.max_context:
            raise InputError(
                f"the prompt takes {length} positions, {visual} of its tokens being visual, and "
                f"`max_context={self.max_context}` was set: allow more, shorten it or leave out images"
            )
        image = self.manifest.prompt.image_token_id
        if plan.needs_text_behind_images and len(prompt.input_ids) and prompt.input_ids[-1] == image:
            raise InputError(
                f"the prompt ends with an image, and the plan ({plan.describe()}) selects by "
                "the text behind it, or moves tokens there: put the question behind the images"
            )
        tokens = int((prompt.input_ids == image).sum())
        whole = prompt.layout.tokens
        rows = len(prompt.pixel_values) + len(() if prompt.frame_values is None else prompt.frame_values)
        fed = sum(self.manifest.image_program.rows(image) for image in prompt.layout.images)
        if (tokens, rows, len(prompt.visual_valid)) != (visual, fed, whole):
            raise InputError(
                f"the prompt has {tokens} image tokens, {rows} rows of pixel values and a padding mask of "
                f"{len(prompt.visual_valid)}: expected {visual}, {fed} and {whole} for a layout of {whole} "
                "visual tokens; make them of the same images"
            )

    def _check_plan(self, plan: PruningPlan) -> None:
        own = self.manifest.plan
        if plan.keeping_all().debiased(()) != own.keeping_all().debiased(()):
            raise InputError(
                f"the plan is {plan.describe()}, and the graph's {own.describe()}: expected the same stages, "
                "with other keep ratios or another debias alone; `edgeprune.choices.run_plan` makes one"
            )
        if Debias.POSITION in plan.debias and self.manifest.curve is None:
            raise InputError(
                "the plan debiases position, and this bundle has no bias curve: leave it out, or export the "
                "bundle with one"
            )

    def _check_sharing(self, plan: PruningPlan, share_by_image: bool) -> None:
        if share_by_image and not plan.selects_once:
            raise InputError(
                f"`share_by_image` was given, and the plan ({plan.describe()}) selects several times or "
                "merges what it drops: leave it out, or take a method that selects once, such as fastv"
            )

    def _visual(self, prompt: PromptInputs) -> int:
        """Visual tokens of a prompt that the language graph gets."""
        return self.manifest.tower_tokens(prompt.layout.tokens)

    def generate(
        self,
        prompts: Sequence[PromptInputs],
        pickers: Sequence[Picker],
        max_new_tokens: int,
        listener: Listener | None = None,
        batch_size: int = DEFAULT_BATCH,
        plan: PruningPlan | None = None,
        share_by_image: bool = False,
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
            share_by_image: whether every image keeps at least its part of the tokens, see `select_by_image`.
                Where one would not, the language graph reads the prompts of its batch twice.

        Returns:
            One result per prompt, in their order.

        Raises:
            InputError: a prompt cannot be taken, or a number is not a whole one of at least 1; or images are
                to keep their parts, and the plan does not just select once.
            PruningError: a stage did not keep what the plan says.
        """
        check_count("max_new_tokens", max_new_tokens)
        check_count("batch_size", batch_size)
        plan = plan or self.manifest.plan
        for prompt in prompts:
            self.check(prompt, plan)
        self._check_sharing(plan, share_by_image)
        results: dict[int, Generated] = {}
        for numbers in batches([self._visual(prompt) for prompt in prompts], batch_size):
            replies = [
                Growing(number, pickers[number], self._limit(prompts[number], max_new_tokens))
                for number in numbers
            ]
            results |= self._run(
                [prompts[number] for number in numbers], replies, listener, plan, share_by_image
            )
        return [results[number] for number in range(len(prompts))]

    def prefill(
        self, prompts: Sequence[PromptInputs], plan: PruningPlan | None = None, steps: int = 0
    ) -> Decoding:
        """Reads a batch of prompts that have as many visual tokens each.

        Args:
            prompts: of the batch.
            plan: as for `generate`.
            steps: how many steps of decoding the caches are to have room for at once; more can follow.

        Raises:
            InputError: a prompt cannot be taken, or the numbers of visual tokens differ.
            PruningError: a stage did not keep what the plan says.
        """
        plan = plan or self.manifest.plan
        for prompt in prompts:
            self.check(prompt, plan)
        if len({self._visual(prompt) for prompt in prompts}) != 1:
            raise InputError(
                "the prompts of one batch have different numbers of visual tokens: expected the same number; "
                "put those with as many together"
            )
        return self._prefill(prompts, plan, steps)

    def _prefill(
        self,
        prompts: Sequence[PromptInputs],
        plan: PruningPlan,
        steps: int,
        share_by_image: bool = False,
        before: Held | None = None,
    ) -> Decoding:
        """`prefill` of prompts that were checked; of one whose images may have been seen `before`."""
        started = perf_counter()
        seen = self._see(prompts) if before is None else self._see_new(prompts[0], before)
        self.backend.synchronize()
        vision_seconds = perf_counter() - started
        state = self._read(prompts, plan, steps, seen, vision_seconds)
        if not share_by_image:
            return state
        shared = [_shared(prompt, stages) for prompt, stages in zip(prompts, state.stages, strict=True)]
        if all(before is after for before, after in zip(prompts, shared, strict=True)):
            return state
        again = self._read(shared, plan, steps, seen, vision_seconds)
        again.prefill_seconds += state.prefill_seconds
        return again

    def _read(
        self,
        prompts: Sequence[PromptInputs],
        plan: PruningPlan,
        steps: int,
        seen: Seen,
        vision_seconds: float,
    ) -> Decoding:
        """Runs the language graph on prompts whose images were seen."""
        batch = padded(prompts, self.manifest.prompt, plan)
        embeds, levels, places = seen
        started = perf_counter()
        selectable = np.take_along_axis(batch.selectable, places, axis=1)
        curve_place = self._curve_place(prompts, places, plan)
        feeds = first_feeds(
            self.manifest.language.inputs,
            batch.input_ids,
            batch.attention_mask,
            batch.position_ids,
            batch.visual_index,
            selectable,
            curve_place,
            [counts.kept for counts in plan.counts(places.shape[1])],
            embeds,
            levels,
        )
        self._language.expect(_capacities(plan, batch.input_ids.shape[1], places.shape[1], steps))
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
        following = np.array([prompt.positions.following for prompt in prompts], dtype=np.int64)
        return Decoding(self, caches, following, logits, stages, seen, vision_seconds, read - started)

    def _curve_place(
        self, prompts: Sequence[PromptInputs], places: NDArray[np.int64], plan: PruningPlan
    ) -> NDArray[np.int64]:
        """Which entry of the bias curve each visual token reads, int64 [B, V]."""
        if Debias.POSITION not in plan.debias:
            return np.zeros_like(places)
        layouts = [prompt.layout.take(row) for prompt, row in zip(prompts, places, strict=True)]
        return np.stack([self.manifest.curve_place(layout) for layout in layouts])

    def _limit(self, prompt: PromptInputs, max_new_tokens: int) -> int:
        """The last token is never read, so it needs no position. Engines may end before the positions do."""
        positions = self.manifest.model.max_positions
        longest = min(positions, self._language.max_length or positions, self.max_context or positions)
        # A prompt that does not fit at all is refused where it is run, with what to do about it.
        return min(max_new_tokens, max(1, longest - prompt.length + 1))

    def _run(
        self,
        prompts: Sequence[PromptInputs],
        replies: Sequence[Growing],
        listener: Listener | None,
        plan: PruningPlan,
        share_by_image: bool,
    ) -> dict[int, Generated]:
        started = perf_counter()
        # The last token of a reply is never read.
        steps = max(reply.limit for reply in replies) - 1
        state = self._prefill(prompts, plan, steps, share_by_image)
        self._decode(state, replies, listener)
        return {
            reply.number: self._generated(prompt, reply, state, row, started)
            for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True))
        }

    def _decode(self, state: Decoding, replies: Sequence[Growing], listener: Listener | None) -> None:
        """Lets replies grow to their ends."""
        ends = self.manifest.prompt.eos_token_ids
        while True:
            for reply, logits in zip(replies, state.logits, strict=True):
                if reply.finish_reason is None:
                    reply.take(logits, ends, listener, state.cache_bytes // len(replies))
            if all(reply.finish_reason is not None for reply in replies):
                return
            # What an ended reply goes on with does not matter: rows of a batch do not see each other.
            state.step(np.array([reply.token_ids[-1] for reply in replies], dtype=np.int64))

    def _generated(
        self,
        prompt: PromptInputs,
        reply: Growing,
        state: Decoding,
        row: int,
        started: float,
        reused: int = 0,
    ) -> Generated:
        figures = self._statistics(prompt, reply, state, row, started, reused)
        return Generated(tuple(reply.token_ids), reply.reason, state.stages[row], figures)

    def _statistics(
        self,
        prompt: PromptInputs,
        reply: Growing,
        state: Decoding,
        row: int,
        started: float,
        reused: int,
    ) -> Statistics:
        memory = self.backend.peak_memory()
        decode = reply.last - reply.first
        later = len(reply.token_ids) - 1
        return Statistics(
            visual_tokens=prompt.layout.tokens,
            tower_tokens=self._visual(prompt),
            kept=tuple(stage.kept for stage in state.stages[row]),
            padded_kept=tuple(stage.padded_kept for stage in state.stages[row]),
            image_tokens=tuple(image.tokens for image in prompt.layout.images),
            image_kept=tuple(_by_image(prompt, stage.kept_visual) for stage in state.stages[row]),
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
            reused_tokens=reused,
        )

    def converse(
        self,
        prompt: PromptInputs,
        picker: Picker,
        max_new_tokens: int,
        listener: Listener | None = None,
        plan: PruningPlan | None = None,
        share_by_image: bool = False,
        before: Held | None = None,
        reselect: bool = False,
    ) -> tuple[Generated, Held]:
        """As `generate`, of one prompt, which may begin as an earlier one.

        Args:
            prompt, picker, max_new_tokens, listener, plan, share_by_image: as for `generate`.
            before: what an earlier call gave. Where the prompt begins with the tokens and images of that, and
                is pruned alike, only what is new is read; its images are not seen again.
            reselect: whether visual tokens are selected anew, by this prompt: the language graph reads all of
                it, and images that were seen are not seen again.

        Returns:
            The reply, and what the next call can go on with, for which `before` is no longer good.

        Raises:
            InputError, PruningError: as `generate`.
        """
        check_count("max_new_tokens", max_new_tokens)
        plan = plan or self.manifest.plan
        self.check(prompt, plan)
        self._check_sharing(plan, share_by_image)
        reply = Growing(0, picker, self._limit(prompt, max_new_tokens))
        started = perf_counter()
        known = 0
        if before is not None and not reselect and self._still_holds(before):
            known = before.known(prompt, plan, self.manifest.prompt.image_token_id)
        if before is not None and known:
            state = before.state
            state.read_on(prompt, known, len(before.read) - known, reply.limit - 1)
        else:
            state = self._prefill([prompt], plan, reply.limit - 1, share_by_image, before)
        self._decode(state, [reply], listener)
        read = np.concatenate([prompt.input_ids, reply.token_ids[:-1]]).astype(np.int64)
        return self._generated(prompt, reply, state, 0, started, known), Held(prompt, plan, read, state)

    def _still_holds(self, before: Held) -> bool:
        """Whether the caches are still there."""
        # An engine's are overwritten by later runs.
        return self._language.most_behind_past is None or self._latest is before.state

    def _see_new(self, prompt: PromptInputs, before: Held) -> Seen:
        """`_see`, without the images at the beginning that were seen before."""
        images = before.images(prompt)
        if not images or not self._still_holds(before):
            return self._see([prompt])
        if images == len(prompt.layout.images):
            return before.state.seen
        if prompt.frame_values is not None or self.manifest.precision.compute == "bf16":
            return self._see([prompt])  # not in order, or not to be joined
        rows = len(before.prompt.pixel_values)
        rest = PromptLayout(prompt.layout.images[images:])
        new = self._see([replace(prompt, pixel_values=prompt.pixel_values[rows:], layout=rest)])
        (embeds, levels, places), (more, deeper, others) = before.state.seen, new
        both = [_joined(one, other) for one, other in zip(levels, deeper, strict=True)]
        return _joined(embeds, more), both, _joined(places, others + before.prompt.layout.tokens)

    def _see(self, prompts: Sequence[PromptInputs]) -> Seen:
        """visual_embeds and the levels of deepstack, [B, V, D], and which of the layout's tokens each is,
        int64 [B, V].
        """
        width, batch, visual = self.manifest.model.hidden_size, len(prompts), self._visual(prompts[0])
        levels = [deepstack(layer) for layer in range(self.manifest.model.deepstack)]
        if not visual:
            nothing = np.zeros((batch, 0, width), dtype=np.float32)
            return nothing, [nothing] * len(levels), np.zeros((batch, 0), dtype=np.int64)
        feeds = vision_feeds(prompts, self.manifest.image_program, self.manifest.video_program)
        merges = bool(self.manifest.plan.tower)
        names = [VISUAL_EMBEDS, *levels, *([VISUAL_PLACE] if merges else [])]
        found = self._vision.run(feeds, names)
        embeds, *deep = (found[name].reshape(batch, visual, width) for name in (VISUAL_EMBEDS, *levels))
        if not merges:
            return embeds, deep, np.broadcast_to(np.arange(visual), (batch, visual))
        place, left = found[VISUAL_PLACE].numpy(), self.manifest.tokens_per_tile
        if place.shape != (len(feeds[PIXEL_VALUES]), left) or (np.diff(place, axis=1) <= 0).any():
            raise PruningError(
                f"the vision tower left {place.shape[-1]} tokens of a tile: expected {left}, in order, as "
                f"the plan says ({self.manifest.plan.describe()}); export again"
            )
        tiles = place.reshape(batch, -1, left)
        first = self.manifest.image_program.tokens_per_tile * np.arange(tiles.shape[1])
        return embeds, deep, (tiles + first[:, None]).reshape(batch, visual)

    def _check_finite(self, logits: NDArray[np.float32]) -> None:
        """Refuses logits that no token can be chosen by: a NaN would count as the likeliest or as token 0."""
        # A model may rule tokens out by -inf, but not all of them.
        if np.isfinite(logits.max(axis=1)).all():
            return
        kind = "NaN" if np.isnan(logits).any() else "infinite"
        narrow = self.manifest.precision.compute == "fp16"  # the others reach as far as the model's own can
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


def _capacities(plan: PruningPlan, sequence: int, visual: int, steps: int) -> list[int]:
    """How many tokens the caches of each group hold at most: in the prefill, or after so many steps."""
    whole = plan.model_copy(update={"trims_earlier_caches": False}).cache_lengths(sequence, visual)
    after = plan.cache_lengths(sequence, visual)
    return [max(most, length + steps) for most, length in zip(whole, after, strict=True)]


def _joined(first: Tensor | Array, second: Tensor | Array) -> Array:
    """Visual tokens of one prompt behind others, [1, V, ...]."""
    return np.concatenate([on_host(first), on_host(second)], axis=1)


def _by_image(prompt: PromptInputs, visual: NDArray[np.int64]) -> tuple[int, ...]:
    """How many of some visual tokens belong to each image of a prompt."""
    images = len(prompt.layout.images)
    return tuple(np.bincount(prompt.layout.image_of[visual], minlength=images).tolist())


def _shared(prompt: PromptInputs, stages: Sequence[StageResult]) -> PromptInputs:
    """The prompt itself where every image kept its part, or one that imposes what gives it to each."""
    chosen = stages[0].shared(prompt.layout.image_of) if stages else None
    if chosen is None:
        return prompt
    imposed = np.zeros_like(prompt.visual_valid)
    imposed[chosen] = 1.0
    return replace(prompt, imposed=imposed)
