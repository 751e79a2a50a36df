"""Pruning plans: where a method drops visual tokens, and by whose attention.

A *method* is a small object that, for a given number of decoder layers and a keep ratio, yields a
*pruning plan*: an ordered tuple of *pruning stages*. The exporter turns every stage into one graph node;
nothing else in the project knows a method by name. "Prune at L" means between layer L-1 and layer L.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgeprune.errors import InputError
from edgeprune.selection import keep_per_10000


class ScoringRows(str, Enum):
    """Which query rows pay the attention that scores the visual tokens."""

    LAST_TOKEN = "last_token"
    TEXT_AFTER_IMAGE = "text_after_image"
    IMAGE = "image"


class Merge(str, Enum):
    """What happens to the tokens that a stage does not keep."""

    DROP = "drop"
    RECYCLE = "recycle"


class PruningStage(BaseModel):
    """One selection of visual tokens.

    Attributes:
        layer: tokens are dropped between decoder layer `layer - 1` and `layer` (layers count from 0).
        score_layer: the layer whose attention scores the tokens.
        rows: the scoring rows.
        keep: share kept of the visual tokens that reach the stage, in ten-thousandths (3000 is 0.3).
        debiased: whether bias curve and padding mask act here; only a method's first selection is debiased.
        merge: what becomes of the dropped tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int = Field(ge=1)
    score_layer: int = Field(ge=0)
    rows: ScoringRows = ScoringRows.LAST_TOKEN
    keep: int = Field(ge=1, le=10000)
    debiased: bool = True
    merge: Merge = Merge.DROP

    @model_validator(mode="after")
    def _scored_in_time(self) -> PruningStage:
        # The layer behind the stage may score by its projections of what reaches the stage; no later one can.
        if self.score_layer > self.layer:
            raise ValueError(
                f"layer {self.score_layer} cannot score a stage before layer {self.layer}: it runs after it"
            )
        return self


class PruningPlan(BaseModel):
    """The stages of a method, in the order the layers meet them. No stage: nothing is pruned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    stages: tuple[PruningStage, ...] = ()

    @model_validator(mode="after")
    def _layers_ascend(self) -> PruningPlan:
        layers = [stage.layer for stage in self.stages]
        if layers != sorted(set(layers)):
            raise ValueError(f"the stages' layers must ascend, found {layers}")
        return self

    @property
    def prunes(self) -> bool:
        return bool(self.stages)

    def group_of_layer(self, layer: int) -> int:
        """The cache group of a decoder layer: the number of stages its tokens have been through."""
        return sum(stage.layer <= layer for stage in self.stages)

    def describe(self) -> str:
        if not self.stages:
            return f"{self.method}: no pruning"
        stages = ", ".join(
            f"before layer {s.layer} keep {s.keep / 10000:g}{'' if s.debiased else ' (no debias)'}"
            for s in self.stages
        )
        return f"{self.method}: {stages}"


class Method(Protocol):
    """What a pruning method has to offer."""

    name: str

    def plan(self, layers: int, keep: float, layer: int | None = None, debiased: bool = True) -> PruningPlan:
        """The plan for a decoder of `layers` layers.

        Raises:
            InputError: keep or layer is out of range.
        """
        ...


class FastV:
    """FastV (arXiv 2403.06764): one selection, scored by the layer before it, last prompt token's row."""

    name = "fastv"
    default_layer = 2

    def plan(self, layers: int, keep: float, layer: int | None = None, debiased: bool = True) -> PruningPlan:
        share = keep_per_10000(keep)
        at = self.default_layer if layer is None else layer
        if layers < 2:
            raise InputError(
                f"the model has {layers} decoder layer, and pruning happens between two: "
                "export it with --method none"
            )
        if not 1 <= at < layers:
            raise InputError(
                f"layer {at} cannot be pruned at: the model has {layers} decoder layers, "
                f"so --layer must be from 1 to {layers - 1}"
            )
        if share == 10000:
            return PruningPlan(method=self.name)
        stage = PruningStage(layer=at, score_layer=at - 1, keep=share, debiased=debiased)
        return PruningPlan(method=self.name, stages=(stage,))


class NoPruning:
    """The unpruned model, for comparisons."""

    name = "none"

    def plan(self, layers: int, keep: float, layer: int | None = None, debiased: bool = True) -> PruningPlan:
        keep_per_10000(keep)
        return PruningPlan(method=self.name)


METHODS: dict[str, Method] = {method.name: method for method in (FastV(), NoPruning())}


def method_by_name(name: str) -> Method:
    """The method called `name`.

    Raises:
        InputError: there is no such method; the message lists those there are.
    """
    if name not in METHODS:
        raise InputError(f"unknown pruning method {name!r}: choose one of {', '.join(sorted(METHODS))}")
    return METHODS[name]
