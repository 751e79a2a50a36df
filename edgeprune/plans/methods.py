"""The pruning methods, as data: where each prunes, by which scores, and what it publishes as its defaults.

`keep` means the same for all of them: the share of a prompt's visual tokens that the layers behind the
first stage see on average. For a method with one stage that is the share it keeps. A method with
several keeps more at the first and less at the last, in its published proportions, so that one keep ratio
costs about the same in every method. A list gives the share of every stage, of all visual tokens,
itself; None is the method's published setting. A share is a number, or a fraction such as "192/576". Means
of dropped tokens, which a method may append, are not counted in it, as they are not in the published
budgets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, TypeAlias

from edgeprune.checks import check_count
from edgeprune.debias.masks import PaddingMask
from edgeprune.debias.selection import WHOLE, Share, keep_per_10000, kept_count, nearest_count, read_share
from edgeprune.errors import InputError
from edgeprune.fields import MOST_COUNT
from edgeprune.plans.plan import (
    Merge,
    Positions,
    PruningPlan,
    PruningStage,
    Ranking,
    ScoringRows,
    TowerStage,
    stage_counts,
)

Keep: TypeAlias = "Share | Sequence[Share] | None"

# A token is padding where more than half of it is.
_HALF = PaddingMask(kind="share", threshold=0.5)


class Method(Protocol):
    """What a pruning method has to offer.

    Attributes:
        name: what users call it.
        ranking: what its stages rank the visual tokens by; None where it has none.
        padding_mask: how a letterboxed image's padding mask is made, as published.
        preset: its published bias curve, by the name of `edgeprune.debias.curves.load_preset`, or None.
        keep_is_free: whether a graph of it keeps as many as each run asks for.
    """

    @property
    def keep_is_free(self) -> bool: ...

    @property
    def name(self) -> str: ...

    @property
    def ranking(self) -> Ranking | None: ...

    @property
    def padding_mask(self) -> PaddingMask: ...

    @property
    def preset(self) -> str | None: ...

    def plan(
        self,
        layers: int,
        keep: Keep = None,
        layer: int | Sequence[int] | None = None,
        visual_tokens: int | None = None,
        seed: int = 0,
        tower_layers: int = 0,
        deepstack: int = 0,
    ) -> PruningPlan:
        """The plan for a decoder; `PruningPlan.debiased` says what its first stage is debiased by.

        Args:
            layers: decoder layers.
            keep: see the module's description.
            layer: before which layer each stage is; None is the published layers, scaled to the depth.
            visual_tokens: of one image. Later stages then keep exactly the published counts of it;
                without, or in prompts of several images, they round shares.
            seed: of random pruning.
            tower_layers: layers of the vision tower in front of the visual tokens; 0 where these come from
                several of them.
            deepstack: behind how many of the first decoder layers features are added to the visual tokens.
                The published layers then move behind them: earlier ones are correct, but throw away
                tokens before all that is known of them was added.

        Raises:
            InputError: keep or layer is out of range or of another length than the method has stages; or
                the method cannot be done in this model.
        """
        ...


def keep_ratios(keep: Keep) -> list[Share]:
    """The numbers that were given: none, one or several."""
    if isinstance(keep, Sequence) and not isinstance(keep, str):
        return list(keep)
    return [] if keep is None else [keep]


def plan_name(method: str, keep: Keep) -> str:
    """Method and keep ratios in short, for people and as part of a file's name."""
    return "-".join([method, *(f"{float(read_share(share)):g}" for share in keep_ratios(keep))])


def _floor(visual_tokens: int, share: Fraction) -> int:
    return max(1, math.floor(visual_tokens * share))


@dataclass(frozen=True)
class StagedMethod:
    """A method of one or more stages.

    Attributes:
        name, padding_mask, preset: see `Method`.
        at: the published layers, each stage being before that layer.
        shares: the published share of all visual tokens that each stage keeps.
        depth: the decoder layers that `at` belongs to, by which it is scaled; None: `at` holds at any depth.
        rows: the scoring rows of each stage.
        own_projections: scored by the layer behind the stage rather than the one before it.
        ranking, merge, positions, trims_earlier_caches: as in a plan.
        whole: the number of tokens for a share of all visual tokens.
        tower: the layers of a tower of `tower_depth` layers in which it merges tokens, as many in each; what
            they leave is then the first of `shares`.
    """

    name: str
    at: tuple[int, ...]
    shares: tuple[Fraction, ...]
    depth: int | None = None
    rows: tuple[ScoringRows, ...] = (ScoringRows.LAST_TOKEN,)
    own_projections: bool = False
    ranking: Ranking = Ranking.ATTENTION
    merge: Merge = Merge.DROP
    positions: Positions = Positions.PRESERVED
    trims_earlier_caches: bool = False
    whole: Callable[[int, Fraction], int] = nearest_count
    tower: tuple[int, ...] = ()
    tower_depth: int = 0
    padding_mask: PaddingMask = _HALF
    preset: str | None = None

    @property
    def keep_is_free(self) -> bool:
        """What a vision tower merges is part of its graph."""
        return not self.tower

    def plan(
        self,
        layers: int,
        keep: Keep = None,
        layer: int | Sequence[int] | None = None,
        visual_tokens: int | None = None,
        seed: int = 0,
        tower_layers: int = 0,
        deepstack: int = 0,
    ) -> PruningPlan:
        """See `Method.plan`."""
        # Before the layers: a wrong number is the likelier mistake.
        given = self._given_shares(keep)
        at = self._layers(layers, layer, deepstack)
        if self.merge is not Merge.DROP and at[0] < deepstack:
            raise InputError(
                f"{self.name} merges tokens before layer {at[0]}, and this model adds to them behind its "
                f"first {deepstack} layers: expected `layer` from {deepstack} on"
            )
        exact: Sequence[float | Fraction]  # in the shares' proportions, before rounding
        if isinstance(given, Fraction):
            # What a tower leaves is what the decoder sees from its first layer on.
            exact = _spread([0, *at] if self.tower else at, self.shares, float(given), layers)
            # One stage takes the number as it was given; computed ones are whole ten-thousandths.
            rounded = [Fraction(keep_per_10000(share), WHOLE) for share in exact]
            shares = [given] if len(exact) == 1 else rounded
        else:
            exact = shares = given
        check_count("seed", seed, least=0, most=MOST_COUNT)
        tower: tuple[TowerStage, ...] = ()
        if self.tower:
            if visual_tokens is None:
                raise InputError(
                    f"the method {self.name} merges as many tokens of every image inside the vision tower, "
                    "and this model's images differ in their number: choose another method"
                )
            tower = self._tower(tower_layers, visual_tokens, shares[0])
            # Of what the tower leaves, not of the image.
            shares = [read_share(min(1.0, share / exact[0])) for share in exact[1:]]
            visual_tokens = None
        stages: list[PruningStage] = []
        for number, share in enumerate(self._relative(shares, visual_tokens)):
            random = self.ranking is Ranking.RANDOM
            stages.append(
                PruningStage(
                    layer=at[number],
                    score_layer=None if random else at[number] - (not self.own_projections),
                    rows=self.rows[number % len(self.rows)],
                    keep=share,
                    merge=self.merge,
                    ranking=self.ranking,
                    seed=int(seed) if random else 0,
                )
            )
        return PruningPlan(
            method=self.name,
            stages=tuple(stages),
            tower=tower,
            positions=self.positions,
            trims_earlier_caches=self.trims_earlier_caches,
        )

    def _given_shares(self, keep: Keep) -> Fraction | list[Fraction]:
        """The average, or the share of each stage."""
        shares = list(self.shares) if keep is None else [read_share(share) for share in keep_ratios(keep)]
        if isinstance(keep, str) or not (keep is None or isinstance(keep, Sequence)):
            return shares[0]
        if len(shares) != len(self.shares):
            first = ", the first of them its merging in the vision tower" if self.tower else ""
            raise InputError(
                f"{len(shares)} keep ratios were given and {self.name} has "
                f"{_stages(len(self.shares))}{first}: give one for each, or a single one, which is their "
                "average over the layers behind the first"
            )
        if shares != sorted(shares, reverse=True):
            given = ", ".join(map(str, keep_ratios(keep)))
            raise InputError(
                f"the keep ratios {given} rise: each is a share of all visual tokens, so none can be above "
                "the one before it"
            )
        return shares

    def _layers(self, layers: int, layer: int | Sequence[int] | None, deepstack: int = 0) -> list[int]:
        count = len(self.at)
        if layers <= count:
            has = f"{layers} decoder layer{'s' if layers > 1 else ''}"
            several = f"{self.name} has {_stages(count)} between them"
            where = "pruning happens between two" if count == 1 else several
            raise InputError(f"the model has {has}, and {where}: export it with `method='none'`")
        at = (
            [max(at, deepstack + number) for number, at in enumerate(_scaled(self.at, self.depth, layers))]
            if layer is None
            else list(layer)
            if isinstance(layer, Sequence) and not isinstance(layer, str)
            else [layer]
        )
        if len(at) != count:
            were = "1 layer was" if len(at) == 1 else f"{len(at)} layers were"
            raise InputError(
                f"{were} given and {self.name} has {_stages(count)}"
                f"{' in the decoder' if self.tower else ''}: give one for each, with commas between"
            )
        for number in at:
            if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number < layers:
                raise InputError(
                    f"layer {number!r:.60} cannot be pruned at: the model has {layers} decoder layers, "
                    f"so `layer` must be a whole number from 1 to {layers - 1}"
                )
        if at != sorted(set(at)):
            raise InputError(f"the layers {', '.join(map(str, at))} do not ascend: give them in order")
        return at

    def _tower(self, layers: int, places: int, share: Fraction) -> tuple[TowerStage, ...]:
        """Merges an image's tokens down to a share, as many as can be in each of the tower's layers."""
        left = nearest_count(places, share)
        if left == places:
            return ()
        if layers < 1:
            raise InputError(
                f"the method {self.name} merges inside the vision tower, and this model's visual tokens come "
                "from several of its layers, where merging would leave different ones: choose another method"
            )
        at = _scaled(self.tower[:layers], self.tower_depth, layers, first=0)
        merged, more = divmod(places - left, len(at))
        stages: list[TowerStage] = []
        for number, layer in enumerate(at):
            places -= merged + (number < more)
            stages.append(TowerStage(layer=layer, kept=places))
        return tuple(stages)

    def _relative(self, shares: Sequence[Fraction], visual_tokens: int | None) -> list[int]:
        """Ten-thousandths of what reaches each stage, from shares of all visual tokens."""
        if len(shares) == 1:
            return [keep_per_10000(shares[0])]
        relative: list[int] = []
        before, reached = Fraction(1), visual_tokens
        for share in shares:
            if reached is None:
                part = max(1, round(WHOLE * share / before))
            else:
                part = _part(reached, min(self.whole(visual_tokens or 0, share), reached))
                # What is appended reaches the next stage too.
                reached = stage_counts(reached, part, self.merge).after
            before = share
            relative.append(part)
        return relative


def _scaled(at: Sequence[int], depth: int | None, layers: int, first: int = 1) -> list[int]:
    """Layers of `depth` at the same relative depth of so many, at least one apart, from `first` on."""
    if depth is None:
        return list(at)
    found: list[int] = []
    for number, published in enumerate(at):
        near = (2 * published * layers + depth) // (2 * depth)
        lowest = found[-1] + 1 if found else first
        found.append(min(max(lowest, near), layers - len(at) + number))
    return found


def _part(reached: int, kept: int) -> int:
    """The share in ten-thousandths that keeps exactly `kept` of `reached` tokens.

    There is one as long as a ten-thousandth is less than a token.
    """
    part = max(1, (2 * WHOLE * kept + reached) // (2 * reached))
    if kept_count(reached, part) != kept:
        raise InputError(
            f"{kept} of {reached} visual tokens is no whole number of ten-thousandths: at most {WHOLE} "
            "visual tokens an image can be kept in exact numbers"
        )
    return part


def _spread(at: Sequence[int], proportions: Sequence[Fraction], keep: float, layers: int) -> list[float]:
    """Shares in given proportions whose mean over the layers behind the first stage is `keep`.

    None is above 1: where the first ones would be, they are 1 and the later ones make up for it.

    Args:
        at: of the stages, ascending.
        proportions: positive, not rising.
        keep: 0 < keep <= 1.
        layers: decoder layers.
    """
    weights = [after - before for before, after in zip(at, [*at[1:], layers], strict=True)]
    total, shares = sum(weights), [1.0] * len(at)
    for full in range(len(at)):
        rest = sum(w * float(p) for w, p in zip(weights[full:], proportions[full:], strict=True))
        factor = (keep * total - sum(weights[:full])) / rest
        shares[full:] = [min(1.0, factor * float(proportion)) for proportion in proportions[full:]]
        if factor * float(proportions[full]) <= 1:
            break
    return shares


def _stages(count: int) -> str:
    return f"{count} stage{'s' if count > 1 else ''}"


@dataclass(frozen=True)
class NoPruning:
    """The unpruned model, for comparisons."""

    name: str = "none"
    ranking: Ranking | None = None
    padding_mask: PaddingMask = _HALF
    preset: str | None = None
    keep_is_free: bool = False

    def plan(
        self,
        layers: int,
        keep: Keep = None,
        layer: int | Sequence[int] | None = None,
        visual_tokens: int | None = None,
        seed: int = 0,
        tower_layers: int = 0,
        deepstack: int = 0,
    ) -> PruningPlan:
        """A plan without stages, whatever is asked for."""
        for share in keep_ratios(keep):
            read_share(share)
        return PruningPlan(method=self.name)


def _shares(*written: str) -> tuple[Fraction, ...]:
    return tuple(map(read_share, written))


# arXiv 2403.06764.
_FASTV = StagedMethod("fastv", at=(2,), shares=_shares("0.5"), preset="fastv")
# arXiv 2410.17247, with the layers and shares of arXiv 2508.17807.
_PYRAMIDDROP = StagedMethod(
    "pyramiddrop",
    at=(2, 10, 20),
    shares=_shares("0.32", "0.16", "0.08"),
    depth=32,
    own_projections=True,
    positions=Positions.RENUMBERED,
    whole=_floor,
    padding_mask=PaddingMask(kind="share", threshold=0.01),
    preset="pyramiddrop",
)
# arXiv 2503.13108: 115, then 90 of 576.
_HIMAP = StagedMethod(
    "himap",
    at=(2, 8),
    shares=_shares("115/576", "90/576"),
    depth=32,
    rows=(ScoringRows.TEXT_AFTER_IMAGE, ScoringRows.IMAGE),
    preset="himap",
)
# arXiv 2410.04417: after layers 2, 6 and 15, to 300, 200 and 110 of 576 (its budget of 192).
_SPARSEVLM = StagedMethod(
    "sparsevlm",
    at=(3, 7, 16),
    shares=_shares("300/576", "200/576", "110/576"),
    depth=32,
    rows=(ScoringRows.RATERS,),
    merge=Merge.RECYCLE,
    positions=Positions.RENUMBERED,
    padding_mask=PaddingMask(kind="bilinear", threshold=0.5),
    preset="sparsevlm",
)
# arXiv 2503.10501: 192 of 576.
_TOKENCARVE = StagedMethod(
    "tokencarve",
    at=(2,),
    shares=_shares("192/576"),
    ranking=Ranking.RANK_FUSION,
    merge=Merge.NEAREST,
    trims_earlier_caches=True,
    preset="tokencarve",
)
# arXiv 2412.06263: 92 of 729 tokens merged in each of four layers of a tower of 26, then 0.7 of the rest.
_ILLAVA = StagedMethod(
    "illava",
    at=(8,),
    shares=(Fraction(361, 729), Fraction(7, 10) * Fraction(361, 729)),
    depth=32,
    merge=Merge.SURVIVOR,
    tower=(5, 6, 7, 8),
    tower_depth=26,
)
# Its part in the language model alone.
_ILLAVA_DECODER = StagedMethod(
    "illava-decoder", at=(8,), shares=_shares("0.7"), depth=32, merge=Merge.SURVIVOR
)
_RANDOM = StagedMethod("random", at=(2,), shares=_shares("0.5"), ranking=Ranking.RANDOM)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _FASTV,
        _PYRAMIDDROP,
        _HIMAP,
        _SPARSEVLM,
        _TOKENCARVE,
        _ILLAVA,
        _ILLAVA_DECODER,
        _RANDOM,
        NoPruning(),
    )
}


def method_by_name(name: str) -> Method:
    """The method called `name`.

    Raises:
        InputError: there is no such method; the message lists those there are.
    """
    if name not in METHODS:
        raise InputError(f"unknown pruning method {name!r}: choose one of {', '.join(sorted(METHODS))}")
    return METHODS[name]


def with_keep(plan: PruningPlan, keep: Keep, layers: int, visual_tokens: int | None = None) -> PruningPlan:
    """The same stages with other keep ratios: what a graph can be asked for when it runs.

    Args:
        plan: of the graph.
        keep, layers, visual_tokens: as for `Method.plan`; 1 keeps every visual token.

    Raises:
        InputError: a number is out of range, or there are more or fewer than stages; or what the plan keeps
            is fixed: it has no stage, or its method is unknown, or merges inside the vision tower.
    """
    fixed = (
        "it has no pruning stage"
        if not plan.stages
        else f"its method {plan.method} is unknown here"
        if plan.method not in METHODS
        else f"{plan.method} merges inside the vision tower, which is part of its graph"
        if plan.tower
        else None
    )
    if fixed:
        raise InputError(
            f"`keep` was given and what this bundle keeps is fixed, because {fixed}: leave it out, or export "
            "again with it"
        )
    at = [stage.layer for stage in plan.stages]
    found = METHODS[plan.method].plan(layers, keep, at, visual_tokens, plan.stages[0].seed)
    stages = tuple(
        own.model_copy(update={"keep": other.keep})
        for own, other in zip(plan.stages, found.stages, strict=True)
    )
    return plan.model_copy(update={"stages": stages})
