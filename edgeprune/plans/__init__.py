"""Pruning plans and the methods that make them.

A *method* is a small object that, for a given number of decoder layers and a keep ratio, yields a
*pruning plan*: an ordered tuple of *pruning stages*. The exporter turns every stage into one graph node;
nothing else in the project knows a method by name.
"""

from edgeprune.plans.methods import (
    METHODS,
    Keep,
    Method,
    StagedMethod,
    keep_ratios,
    method_by_name,
    plan_name,
    with_keep,
)
from edgeprune.plans.plan import (
    Debias,
    Merge,
    Positions,
    PruningPlan,
    PruningStage,
    Ranking,
    ScoringRows,
    StageCounts,
    TowerStage,
    read_debias,
    recycled_count,
)
from edgeprune.plans.random_scores import random_scores

__all__ = [
    "METHODS",
    "Debias",
    "Keep",
    "Merge",
    "Method",
    "Positions",
    "PruningPlan",
    "PruningStage",
    "Ranking",
    "ScoringRows",
    "StageCounts",
    "StagedMethod",
    "TowerStage",
    "keep_ratios",
    "method_by_name",
    "plan_name",
    "random_scores",
    "read_debias",
    "recycled_count",
    "with_keep",
]
