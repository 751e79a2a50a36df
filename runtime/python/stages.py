"""What the pruning stages did to a prompt, read from the graph's outputs and checked against the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune import interface as names
from edgeprune.debias.selection import effective_score, select_by_image, select_visual
from edgeprune.errors import PruningError
from edgeprune.plans import Debias, PruningPlan, PruningStage


@dataclass(frozen=True, eq=False)
class StageResult:
    """What one pruning stage did to one prompt with V visual tokens.

    A visual token's number is its place among all the places of the prompt's images, 0 the upper left of
    the first one: 0..V-1, unless the vision tower merged some away.

    Attributes:
        planned: the stage of the plan that ran.
        debias: what acted on its selection.
        kept_visual: int64 [K], the numbers of the visual tokens that stayed, in the order of the positions:
            ascending, but for a mean that an earlier stage appended, which has its middle token's number.
        candidates: int64 [C], the visual tokens that reached the stage, likewise.
        score: float32 [C], the attention that the scoring rows pay each of them, before any debiasing.
        weight: float32 [C], what each score was multiplied by.
        visual_valid: float32 [C], their padding mask.
        ends_prompt: whether the last of them stands at the last position of the prompt, where it stays.
        averaged: int64 [means], where the stage appends means of dropped tokens: for each the visual token
            at the middle of its cluster, for which it stands from here on.
    """

    planned: PruningStage
    debias: tuple[Debias, ...]
    kept_visual: NDArray[np.int64]
    candidates: NDArray[np.int64]
    score: NDArray[np.float32]
    weight: NDArray[np.float32]
    visual_valid: NDArray[np.float32]
    ends_prompt: bool = False
    averaged: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def kept(self) -> int:
        """K, how many visual tokens stayed."""
        return len(self.kept_visual)

    @property
    def padded_kept(self) -> int:
        """How many of the kept ones are padding."""
        return self.padded_among(self.kept_visual)

    def padded_among(self, visual: NDArray[np.int64]) -> int:
        """How many of some candidates are padding."""
        return int(np.isin(visual, self.candidates[self.visual_valid == 0]).sum())

    @property
    def score_is_raw(self) -> bool:
        """Whether the scores tell what the stage would select without debias."""
        return not (self.debias and self.planned.weighs_before)

    def without_debias(self) -> NDArray[np.int64]:
        """The visual tokens that the same scores select without bias curve and padding mask, int64 [K]."""
        return self.selected_by(np.ones_like(self.weight))

    def shared(self, image_of: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """The visual tokens that stay if every image keeps at least its part, see `select_by_image`; None
        where it did.

        Args:
            image_of: int64 [V], the number of the image that each visual token belongs to, by its number.
        """
        stays = np.zeros((1, len(self.weight)), dtype=bool)
        stays[:, -1:] = self.ends_prompt
        effective = effective_score(self.score[None], self.weight[None], stays)[0]
        found = select_by_image(effective, image_of[self.candidates], self.kept)
        return None if found is None else self.candidates[found]

    def selected_by(self, weight: NDArray[np.float32]) -> NDArray[np.int64]:
        """The visual tokens that the scores select with other weights, float32 [C], as numpy has it."""
        stays = np.zeros((1, len(weight)), dtype=bool)
        stays[:, -1:] = self.ends_prompt
        return self.candidates[select_visual(self.score[None], weight[None], self.kept, stays)[0]]


def stage_results(
    plan: PruningPlan,
    visual_index: NDArray[np.int64],
    places: NDArray[np.int64],
    visual_valid: NDArray[np.float32],
    weight: NDArray[np.float32],
    sequence: int,
    traces: Mapping[str, NDArray[Any]],
) -> list[tuple[StageResult, ...]]:
    """Reads the stages of a prefill.

    Args:
        plan: the one that ran.
        visual_index: int64 [B, V], positions of the visual tokens in the batch.
        places: int64 [B, V], their numbers.
        visual_valid: float32 [B, places], the padding mask by number.
        weight: float32 [B, V], bias curve times padding mask as the plan debiases.
        sequence: S, the batch's length.
        traces: per stage s `kept_index.s` int64 [B, S after] and `score.s` float32 [B, S before]; positions
            count within what reached the stage.

    Returns:
        For each prompt, a result per stage.

    Raises:
        PruningError: a stage kept another number of tokens, or of visual ones among them, than its plan says,
            or not in order.
    """
    batch, visual = visual_index.shape
    all_visual = visual
    results: list[list[StageResult]] = [[] for _ in range(batch)]
    # For each position that is left: which visual token it is, or -1.
    identity = np.full((batch, sequence), -1, dtype=np.int64)
    np.put_along_axis(identity, visual_index, places, axis=1)
    for number, stage in enumerate(plan.stages):
        kept_index, score = traces[names.kept_index(number)], traces[names.score(number)]
        counts = stage.counts(visual)
        expected = counts.after
        length = identity.shape[1] - visual + expected
        where = f"stage {number}, before layer {stage.layer},"
        if kept_index.shape != (batch, length):
            raise PruningError(
                f"{where} kept {kept_index.shape[-1]} of {identity.shape[1]} tokens: expected {length}, that "
                f"is {expected} of {visual} visual ones; the graph does not follow its plan: export again"
            )
        after = np.take_along_axis(identity, kept_index, axis=1)
        for row in range(batch):
            left = after[row][after[row] >= 0]
            # Means stand behind the last kept visual token, under the numbers of dropped ones.
            kept, averaged = left[: counts.kept], left[counts.kept :]
            originals = kept_index[row][~np.isin(after[row], averaged)]
            if len(left) != expected or (np.diff(originals) <= 0).any():
                raise PruningError(
                    f"{where} kept {len(left)} of {visual} visual tokens: expected {expected}, in order; the "
                    "graph does not follow its plan: export again"
                )
            reached = identity[row] >= 0
            candidates = identity[row][reached]
            acts = visual == all_visual
            on_scores = acts and not stage.weighs_before
            results[row].append(
                StageResult(
                    planned=stage,
                    debias=plan.debias if acts else (),
                    kept_visual=kept,
                    candidates=candidates,
                    score=score[row][reached],
                    weight=weight[row] if on_scores else np.ones(visual, dtype=np.float32),
                    visual_valid=visual_valid[row][candidates],
                    ends_prompt=bool(reached[-1]),
                    averaged=averaged,
                )
            )
        identity, visual = after, expected
    return [tuple(row) for row in results]
