"""Pruning plans: where visual tokens are dropped or merged, and by which scores.

"Prune at L" means between layer L-1 and layer L; layers count from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Annotated

from pydantic import Field, model_validator

from edgeprune.debias.selection import WHOLE, kept_count
from edgeprune.errors import InputError
from edgeprune.fields import Count, Flag, Layer, Line, Part, Tokens


class ScoringRows(str, Enum):
    """Which query rows pay the attention that scores the visual tokens.

    The mean over heads is taken first. Then: LAST_TOKEN, the prompt's last row; TEXT_AFTER_IMAGE, the sum
    over all rows behind the last visual token; IMAGE, the sum over the rows of the visual tokens that
    reached the stage; RATERS, the mean over the rows of those text tokens behind the last visual token that
    the visual tokens attend to more than the average, on the input embeddings.
    """

    LAST_TOKEN = "last_token"
    TEXT_AFTER_IMAGE = "text_after_image"
    IMAGE = "image"
    RATERS = "raters"


class Ranking(str, Enum):
    """What the visual tokens are ranked by.

    ATTENTION, the scoring rows' attention; RANK_FUSION, the mean of a token's place by attention and its
    place by information (how much of it lies along the principal axes of all visual tokens' hidden states);
    RANDOM, fixed pseudo-random numbers.
    """

    ATTENTION = "attention"
    RANK_FUSION = "rank_fusion"
    RANDOM = "random"


class Merge(str, Enum):
    """What happens to the tokens that a stage does not keep.

    DROP, nothing; RECYCLE, the best of them are clustered and the clusters' means appended behind the kept
    visual tokens; NEAREST, the best of them are averaged into the kept tokens they resemble most; SURVIVOR,
    all of them are averaged, weighted, into the last kept token.
    """

    DROP = "drop"
    RECYCLE = "recycle"
    NEAREST = "nearest"
    SURVIVOR = "survivor"


class Debias(str, Enum):
    """What takes a bias out of a selection's scores: POSITION, the bias curve; PADDING, the padding mask."""

    POSITION = "position"
    PADDING = "padding"


def read_debias(debias: str | Sequence[str] | None) -> tuple[Debias, ...] | None:
    """The wish as it was handed in: names with commas between or in a sequence, "none", or None.

    Raises:
        InputError: a name is none of those.
    """
    if debias is None:
        return None
    names = [name.strip() for name in debias.split(",")] if isinstance(debias, str) else list(debias)
    if names == ["none"]:
        return ()
    try:
        found = tuple(dict.fromkeys(Debias(name) for name in names))
    except ValueError as error:
        raise InputError(
            f"`debias` is {debias!r}: expected position, padding, both with a comma between, or none"
        ) from error
    return tuple(one for one in Debias if one in found)


class Positions(str, Enum):
    """Position numbers behind a stage: those of the whole prompt, or counted anew without gaps."""

    PRESERVED = "preserved"
    RENUMBERED = "renumbered"


def recycled_count(pruned: int) -> tuple[int, int]:
    """Of P pruned tokens, how many are recycled, and into how many clusters (arXiv 2410.04417).

    m = int(0.3 P) + 1 tokens and int(m / 10) + 1 clusters, in integers; nothing where nothing was pruned.
    """
    tokens = min(pruned, pruned * 3 // 10 + 1)
    return tokens, min(tokens, tokens // 10 + 1)


@dataclass(frozen=True)
class StageCounts:
    """Visual tokens of one prompt at one stage.

    Attributes:
        reached: how many came.
        kept: how many stay.
        appended: how many means of dropped tokens are added behind them.
    """

    reached: int
    kept: int
    appended: int

    @property
    def after(self) -> int:
        """How many visual tokens the layers behind the stage see."""
        return self.kept + self.appended


def stage_counts(reached: int, keep: int, merge: Merge) -> StageCounts:
    """What becomes of `reached` visual tokens at a stage that keeps a share in ten-thousandths."""
    kept = kept_count(reached, keep)
    appended = recycled_count(reached - kept)[1] if merge is Merge.RECYCLE else 0
    return StageCounts(reached, kept, appended)


class PruningStage(Part):
    """One selection of visual tokens.

    Attributes:
        layer: tokens are dropped between decoder layer `layer - 1` and `layer` (layers count from 0).
        score_layer: the layer whose attention scores the tokens; None where no attention does. Where it is
            `layer` itself, its projections are applied to the hidden states that reach the stage.
        rows: the scoring rows.
        keep: share kept of the visual tokens that reach the stage, in ten-thousandths (3000 is 0.3). It is
            the bundle's default: how many are kept is an input of the graph.
        merge: what becomes of the dropped tokens.
        ranking: what the tokens are ranked by.
        seed: of the pseudo-random numbers, for `Ranking.RANDOM`.
    """

    layer: Annotated[Layer, Field(ge=1)]
    score_layer: Layer | None
    rows: ScoringRows = ScoringRows.LAST_TOKEN
    keep: Annotated[int, Field(strict=True, ge=1, le=WHOLE)]
    merge: Merge = Merge.DROP
    ranking: Ranking = Ranking.ATTENTION
    seed: Count = 0

    @model_validator(mode="after")
    def _scored_in_time(self) -> PruningStage:
        if (self.score_layer is None) != (self.ranking is Ranking.RANDOM):
            raise ValueError(
                f"ranking {self.ranking.value} with score layer {self.score_layer}: attention needs a layer, "
                "random numbers have none"
            )
        # What the graph does by the one, it does by the other.
        if (self.ranking is Ranking.RANK_FUSION) != (self.merge is Merge.NEAREST):
            raise ValueError(
                f"ranking {self.ranking.value} with merge {self.merge.value}: rank_fusion and nearest go "
                "together"
            )
        # The layer behind the stage may score by its projections of what reaches the stage; no later one can.
        if self.score_layer is not None and self.score_layer > self.layer:
            raise ValueError(
                f"layer {self.score_layer} cannot score a stage before layer {self.layer}: it runs after it"
            )
        return self

    @property
    def weighs_before(self) -> bool:
        """Whether the weights act before the stage's scores are made, and not on them.

        A rank fusion debiases one of the two orders before it fuses them, so its scores are final.
        """
        return self.ranking is Ranking.RANK_FUSION

    @property
    def drops(self) -> bool:
        """Whether fewer tokens stay than come, where many come."""
        return self.keep < WHOLE

    @property
    def needs_text_behind_images(self) -> bool:
        """Whether a prompt must not end with an image.

        The last position always stays, because the next token comes from it. A stage that drops can keep a
        visual token there; one that moves tokens behind it, averages into it, or is scored by the rows of the
        text behind the images, cannot.
        """
        return self.drops and (self.merge is not Merge.DROP or self.rows is not ScoringRows.LAST_TOKEN)

    def counts(self, reached: int) -> StageCounts:
        """What becomes of `reached` visual tokens of one prompt."""
        return stage_counts(reached, self.keep, self.merge)


class TowerStage(Part):
    """One merging of an image's visual tokens inside the vision tower.

    The tokens that receive least attention, the mean over heads and over all rows, are averaged into the
    least attended one of those that stay (arXiv 2412.06263).

    Attributes:
        layer: of the tower, counting from 0; tokens are merged between its attention and its MLP.
        kept: how many of one image's tokens stay.
    """

    layer: Layer
    kept: Tokens


class PruningPlan(Part):
    """The stages of a method, in the order the layers meet them. No stage: nothing is pruned.

    Attributes:
        method: its name.
        stages: in the language model, ascending by layer.
        debias: what the selection is debiased by, without repeats. It acts as long as all visual tokens are
            there: later stages see what an earlier one has selected.
        tower: in the vision tower, ascending by layer.
        positions: position numbers behind a stage.
        trims_earlier_caches: whether the caches of the layers before the stages, too, are cut to the tokens
            that stay, so that all layers' caches have one length.
    """

    method: Line
    stages: tuple[PruningStage, ...] = ()
    debias: tuple[Debias, ...] = ()
    tower: tuple[TowerStage, ...] = ()
    positions: Positions = Positions.PRESERVED
    trims_earlier_caches: Flag = False

    @model_validator(mode="after")
    def _layers_ascend(self) -> PruningPlan:
        layers = [stage.layer for stage in self.stages]
        if layers != sorted(set(layers)):
            raise ValueError(f"the stages' layers must ascend, found {layers}")
        for before, stage in zip(layers, self.stages[1:], strict=False):
            if stage.score_layer is not None and stage.score_layer < before:
                raise ValueError(
                    f"layer {stage.score_layer} cannot score the stage before layer {stage.layer}: it sees "
                    f"tokens that are dropped before layer {before}"
                )
        return self

    @model_validator(mode="after")
    def _debias_acts(self) -> PruningPlan:
        if len(set(self.debias)) != len(self.debias):
            raise ValueError(f"debias holds {', '.join(one.value for one in self.debias)}: give each once")
        if self.debias and not self.stages:
            raise ValueError("debias is given and there is no stage that it could act on: leave it out")
        if Debias.POSITION in self.debias and self.stages[0].ranking is Ranking.RANDOM:
            raise ValueError("random numbers have no bias by position: leave it out of debias")
        return self

    @model_validator(mode="after")
    def _tower_shrinks(self) -> PruningPlan:
        steps = [(stage.layer, -stage.kept) for stage in self.tower]
        for (layer, kept), (later, fewer) in pairwise(steps):
            if later <= layer or fewer < kept:
                raise ValueError(f"the tower's stages must ascend by layer and not grow, found {self.tower}")
        return self

    def debiased(self, debias: Sequence[Debias]) -> PruningPlan:
        """The same plan debiased by these; nothing changes where there is no stage."""
        acting = tuple(debias) if self.stages else ()
        return PruningPlan.model_validate({**self.model_dump(), "debias": acting})

    def keeping_all(self) -> PruningPlan:
        """The same stages, dropping nothing: the unpruned model."""
        stages = tuple(stage.model_copy(update={"keep": WHOLE}) for stage in self.stages)
        return self.model_copy(update={"stages": stages})

    @property
    def needs_text_behind_images(self) -> bool:
        """Whether a stage cannot keep the last position where an image ends the prompt."""
        return any(stage.needs_text_behind_images for stage in self.stages)

    @property
    def selects_once(self) -> bool:
        """Whether at most one stage selects, and what it drops is merged into nothing."""
        plain = all(
            stage.merge is Merge.DROP and stage.ranking is not Ranking.RANK_FUSION for stage in self.stages
        )
        return len(self.stages) <= 1 and plain and not self.tower

    @property
    def prunes(self) -> bool:
        """Whether the language model has pruning stages."""
        return bool(self.stages)

    @property
    def shortens(self) -> bool:
        """Whether visual tokens are dropped or merged anywhere, in the language model or the vision tower."""
        return bool(self.tower) or any(stage.drops for stage in self.stages)

    def tokens_per_tile(self, tokens: int) -> int:
        """Of the visual tokens of one tile, how many leave the vision tower."""
        return self.tower[-1].kept if self.tower else tokens

    def group_of_layer(self, layer: int) -> int:
        """The cache group of a decoder layer: the number of stages its tokens have been through."""
        return sum(stage.layer <= layer for stage in self.stages)

    def layers_of_groups(self, layers: int) -> list[tuple[int, int]]:
        """The first and the last decoder layer of every cache group, of so many layers."""
        edges = [0, *(stage.layer for stage in self.stages), layers]
        return [(first, after - 1) for first, after in pairwise(edges)]

    def counts(self, visual_tokens: int) -> tuple[StageCounts, ...]:
        """What every stage does to a prompt of so many visual tokens."""
        found: list[StageCounts] = []
        for stage in self.stages:
            found.append(stage.counts(found[-1].after if found else visual_tokens))
        return tuple(found)

    def cache_lengths(self, sequence: int, visual_tokens: int) -> tuple[int, ...]:
        """Tokens in the caches of every group after a prefill of `sequence` tokens."""
        text = sequence - visual_tokens
        visual = [visual_tokens, *(counts.after for counts in self.counts(visual_tokens))]
        if self.trims_earlier_caches:
            visual = visual[-1:] * len(visual)
        return tuple(text + count for count in visual)

    def average_share(self, layers: int, visual_tokens: int) -> float:
        """The mean over all decoder layers of the share of visual tokens they see; 1 without any."""
        if not visual_tokens:
            return 1.0
        seen = [visual_tokens, *(counts.after for counts in self.counts(visual_tokens))]
        return sum(seen[self.group_of_layer(layer)] for layer in range(layers)) / (layers * visual_tokens)

    def describe(self) -> str:
        tower = ", ".join(f"{stage.kept} after layer {stage.layer}'s attention" for stage in self.tower)
        stages = [f"in the vision tower to {tower}"] if tower else []
        stages += [f"before layer {stage.layer} keep {stage.keep / WHOLE:g}" for stage in self.stages]
        by = ", ".join(one.value for one in self.debias)
        debias = f" (debias {by})" if by else " (no debias)" if self.stages else ""
        return f"{self.method}: {', '.join(stages) or 'no pruning'}{debias}"

    def describe_counts(self, layers: int, visual_tokens: int) -> str:
        """The visual tokens of an image through the stages, and their average share over the layers.

        Args:
            layers: decoder layers.
            visual_tokens: of the image, in front of the vision tower's stages.
        """
        left = self.tokens_per_tile(visual_tokens)
        steps = [f"{left} from the vision tower"] if self.tower else []
        steps += [
            f"{counts.after} from layer {stage.layer} on"
            + (f", {counts.appended} of them means of dropped ones" if counts.appended else "")
            for stage, counts in zip(self.stages, self.counts(left), strict=True)
        ]
        share = self.average_share(layers, left) * left / visual_tokens
        return f"{visual_tokens}, {', '.join([*steps, f'on average {share:.1%} of them per layer'])}"
