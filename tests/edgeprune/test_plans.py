"""Pruning plans and the methods that make them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from edgeprune.errors import InputError
from edgeprune.plans import (
    METHODS,
    FastV,
    Merge,
    PruningPlan,
    PruningStage,
    ScoringRows,
    method_by_name,
)


def stage(layer: int, keep: int = 5000) -> PruningStage:
    return PruningStage(layer=layer, score_layer=layer - 1, keep=keep)


def test_fastv_is_one_debiased_selection_scored_by_the_layer_before() -> None:
    plan = FastV().plan(32, 0.3)
    assert plan == PruningPlan(
        method="fastv",
        stages=(
            PruningStage(
                layer=2,
                score_layer=1,
                rows=ScoringRows.LAST_TOKEN,
                keep=3000,
                debiased=True,
                merge=Merge.DROP,
            ),
        ),
    )
    assert plan.prunes


def test_fastv_takes_another_layer_and_leaves_debiasing_out() -> None:
    (only,) = FastV().plan(8, 0.25, layer=3, debiased=False).stages
    assert (only.layer, only.score_layer, only.keep, only.debiased) == (3, 2, 2500, False)


@pytest.mark.parametrize("layer", [1, 7])
def test_fastv_reaches_from_the_first_to_the_last_gap(layer: int) -> None:
    assert FastV().plan(8, 0.5, layer=layer).stages[0].layer == layer


@pytest.mark.parametrize("layer", [-1, 0, 8, 9])
def test_a_layer_out_of_range_says_the_range(layer: int) -> None:
    with pytest.raises(InputError, match=f"layer {layer} cannot be pruned at.*8 decoder layers.*from 1 to 7"):
        FastV().plan(8, 0.5, layer=layer)


def test_a_default_layer_that_the_model_does_not_have_says_the_range() -> None:
    with pytest.raises(InputError, match=r"layer 2 cannot be pruned at.*from 1 to 1"):
        FastV().plan(2, 0.5)


def test_a_model_of_one_layer_cannot_be_pruned() -> None:
    with pytest.raises(InputError, match=r"1 decoder layer,.*--method none"):
        FastV().plan(1, 0.5)


def test_keeping_all_is_a_plan_without_stages() -> None:
    plan = FastV().plan(8, 1.0)
    assert plan == PruningPlan(method="fastv")
    assert not plan.prunes


def test_no_pruning_has_no_stages_whatever_is_kept() -> None:
    assert METHODS["none"].plan(8, 0.3) == PruningPlan(method="none")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [0, 1.5, float("nan")])
def test_every_method_refuses_a_keep_ratio_out_of_range(method: str, keep: float) -> None:
    with pytest.raises(InputError, match="the keep ratio is"):
        METHODS[method].plan(8, keep)


def test_methods_are_found_by_their_names() -> None:
    assert {name: method_by_name(name).name for name in METHODS} == {"fastv": "fastv", "none": "none"}
    with pytest.raises(InputError, match="unknown pruning method 'fastvee': choose one of fastv, none"):
        method_by_name("fastvee")


def test_cache_groups_count_the_stages_passed() -> None:
    plan = PruningPlan(method="several", stages=(stage(2), stage(5)))
    assert [plan.group_of_layer(layer) for layer in range(7)] == [0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("layers", [(5, 2), (2, 2)])
def test_stages_ascend(layers: tuple[int, int]) -> None:
    with pytest.raises(ValidationError, match="must ascend"):
        PruningPlan(method="several", stages=tuple(map(stage, layers)))


@pytest.mark.parametrize(
    "fields",
    [
        {"layer": 0, "score_layer": 0, "keep": 5000},
        {"layer": 2, "score_layer": -1, "keep": 5000},
        {"layer": 2, "score_layer": 3, "keep": 5000},
        {"layer": 2, "score_layer": 1, "keep": 0},
        {"layer": 2, "score_layer": 1, "keep": 10001},
        {"layer": 2, "score_layer": 1, "keep": 5000, "rows": "all"},
        {"layer": 2, "score_layer": 1, "keep": 5000, "surprise": 1},
    ],
)
def test_a_stage_that_cannot_be_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PruningStage.model_validate(fields)


def test_a_layer_may_score_the_stage_right_before_it() -> None:
    assert PruningStage(layer=8, score_layer=8, keep=5000).score_layer == 8


def test_plans_survive_json() -> None:
    plan = PruningPlan(method="several", stages=(stage(2), stage(5, 2500)))
    assert PruningPlan.model_validate_json(plan.model_dump_json()) == plan


def test_plans_do_not_change() -> None:
    with pytest.raises(ValidationError):
        FastV().plan(8, 0.5).stages[0].keep = 1


def test_a_plan_says_what_it_does() -> None:
    assert FastV().plan(8, 0.3).describe() == "fastv: before layer 2 keep 0.3"
    assert FastV().plan(8, 0.3, debiased=False).describe() == "fastv: before layer 2 keep 0.3 (no debias)"
    assert PruningPlan(method="none").describe() == "none: no pruning"
