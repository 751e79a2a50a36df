"""Pruning plans and the methods that make them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edgeprune.debias.curves import preset_names
from edgeprune.errors import InputError
from edgeprune.plans import (
    METHODS,
    Debias,
    Merge,
    PruningPlan,
    PruningStage,
    ScoringRows,
    TowerStage,
    method_by_name,
    random_scores,
    recycled_count,
    with_keep,
)


def stage(layer: int, keep: int = 5000) -> PruningStage:
    return PruningStage(layer=layer, score_layer=layer - 1, keep=keep)


def test_fastv_is_one_selection_scored_by_the_layer_before() -> None:
    plan = METHODS["fastv"].plan(32, 0.3)
    assert plan == PruningPlan(
        method="fastv",
        stages=(
            PruningStage(
                layer=2,
                score_layer=1,
                rows=ScoringRows.LAST_TOKEN,
                keep=3000,
                merge=Merge.DROP,
            ),
        ),
    )
    assert plan.prunes


def test_fastv_takes_another_layer() -> None:
    (only,) = METHODS["fastv"].plan(8, 0.25, layer=3).stages
    assert (only.layer, only.score_layer, only.keep) == (3, 2, 2500)


def test_a_plan_is_debiased_where_it_has_stages() -> None:
    plan = METHODS["himap"].plan(8, 0.25).debiased([Debias.PADDING])
    assert plan.debias == (Debias.PADDING,)
    assert plan.debiased(()) == METHODS["himap"].plan(8, 0.25)
    unpruned = PruningPlan(method="none")
    assert unpruned.debiased(tuple(Debias)) == unpruned


def test_published_layers_move_behind_deepstack_and_given_ones_stay() -> None:
    assert METHODS["fastv"].plan(32, deepstack=3).stages[0].layer == 3
    assert METHODS["fastv"].plan(32, layer=2, deepstack=3).stages[0].layer == 2
    assert [stage.layer for stage in METHODS["himap"].plan(32, deepstack=9).stages] == [9, 10]
    assert [stage.layer for stage in METHODS["himap"].plan(32, deepstack=3).stages] == [3, 8]


@pytest.mark.parametrize("layer", [1, 7])
def test_fastv_reaches_from_the_first_to_the_last_gap(layer: int) -> None:
    assert METHODS["fastv"].plan(8, 0.5, layer=layer).stages[0].layer == layer


@pytest.mark.parametrize("layer", [-1, 0, 8, 9])
def test_a_layer_out_of_range_says_the_range(layer: int) -> None:
    with pytest.raises(InputError, match=f"layer {layer} cannot be pruned at.*8 decoder layers.*from 1 to 7"):
        METHODS["fastv"].plan(8, 0.5, layer=layer)


def test_a_default_layer_that_the_model_does_not_have_says_the_range() -> None:
    with pytest.raises(InputError, match=r"layer 2 cannot be pruned at.*from 1 to 1"):
        METHODS["fastv"].plan(2, 0.5)


def test_a_model_of_one_layer_cannot_be_pruned() -> None:
    with pytest.raises(InputError, match=r"1 decoder layer,.*`method='none'`"):
        METHODS["fastv"].plan(1, 0.5)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"none", "illava"}))
def test_keeping_all_keeps_the_stages_and_drops_nothing(method: str) -> None:
    plan = METHODS[method].plan(8, 1.0)
    assert plan.prunes
    assert not plan.shortens
    assert plan == METHODS[method].plan(8, 0.3).keeping_all()
    assert all(counts.after == 100 for counts in plan.counts(100))
    assert not plan.needs_text_behind_images


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"none", "illava"}))
@pytest.mark.parametrize("keep", [0.1, "192/576", 0.7, 1])
def test_another_keep_is_the_plan_that_would_have_been_exported(method: str, keep: Any) -> None:
    own = METHODS[method].plan(32, None, visual_tokens=576, seed=3).debiased([Debias.PADDING])
    other = METHODS[method].plan(32, keep, visual_tokens=576, seed=3).debiased([Debias.PADDING])
    assert with_keep(own, keep, 32, 576) == other


def test_a_list_gives_every_stage_its_own_keep() -> None:
    own = METHODS["himap"].plan(32)
    kept = [counts.kept for counts in with_keep(own, (0.5, "144/576"), 32, 576).counts(576)]
    assert kept == [288, 144]
    with pytest.raises(InputError, match="3 keep ratios were given and himap has 2 stages"):
        with_keep(own, (0.5, 0.4, 0.3), 32)


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (METHODS["none"].plan(8), "it has no pruning stage"),
        (
            METHODS["illava"].plan(8, visual_tokens=36, tower_layers=2),
            "illava merges inside the vision tower",
        ),
        (METHODS["fastv"].plan(8).model_copy(update={"method": "own"}), "its method own is unknown here"),
    ],
)
def test_what_a_graph_keeps_may_be_fixed(plan: PruningPlan, reason: str) -> None:
    with pytest.raises(InputError, match=f"`keep` was given .* because {reason}.*: leave it out"):
        with_keep(plan, 0.5, 8)


def test_no_pruning_has_no_stages_whatever_is_kept() -> None:
    assert METHODS["none"].plan(8, 0.3) == PruningPlan(method="none")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [0, 1.5, float("nan")])
def test_every_method_refuses_a_keep_ratio_out_of_range(method: str, keep: float) -> None:
    with pytest.raises(InputError, match="the keep ratio is"):
        METHODS[method].plan(8, keep)


def test_methods_are_found_by_their_names() -> None:
    assert all(method_by_name(name).name == name for name in METHODS)
    with pytest.raises(
        InputError, match=r"unknown pruning method 'fastvee': choose one of fastv, himap, .*none, "
    ):
        method_by_name("fastvee")


def test_what_a_method_says_of_curves_and_masks_is_there() -> None:
    """Every default preset belongs to one method; random stages and none have nothing to debias by."""
    presets = [method.preset for method in METHODS.values() if method.preset is not None]
    assert sorted(presets) == [name for name in preset_names() if "/" not in name]
    assert {method.name for method in METHODS.values() if method.ranking is None} == {"none"}
    assert all(method.padding_mask.kind != "none" for method in METHODS.values())
    assert all(METHODS[name].preset is None for name in ("random", "none"))


def test_a_tower_merges_as_published() -> None:
    # 92 of 729 in each of layers 5 to 8, then 0.7 of what is left.
    plan = METHODS["illava"].plan(32, visual_tokens=729, tower_layers=26)
    assert [(s.layer, s.kept) for s in plan.tower] == [(5, 637), (6, 545), (7, 453), (8, 361)]
    assert [(s.layer, s.keep) for s in plan.stages] == [(8, 7000)]
    assert plan.tokens_per_tile(729) == 361
    assert plan.describe_counts(32, 729) == (
        "729, 361 from the vision tower, 253 from layer 8 on, on average 38.4% of them per layer"
    )
    assert plan.describe() == (
        "illava: in the vision tower to 637 after layer 5's attention, 545 after layer 6's attention, 453 "
        "after layer 7's attention, 361 after layer 8's attention, before layer 8 keep 0.7 (no debias)"
    )


def test_a_towers_published_setting_can_be_given() -> None:
    given = METHODS["illava"].plan(32, ("361/729", "2527/7290"), visual_tokens=576, tower_layers=23)
    assert given == METHODS["illava"].plan(32, visual_tokens=576, tower_layers=23)
    assert (given.tokens_per_tile(576), given.stages[0].keep) == (285, 7000)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (12, [2, 3, 4, 5]), (23, [4, 5, 6, 7])],
)
def test_a_tower_of_another_depth_merges_where_it_can(layers: int, expected: list[int]) -> None:
    plan = METHODS["illava"].plan(32, visual_tokens=576, tower_layers=layers)
    assert [stage.layer for stage in plan.tower] == expected
    assert plan.tower[-1].kept == 285
    steps = np.diff([576, *(stage.kept for stage in plan.tower)])
    assert steps.max() - steps.min() <= 1


def test_a_tower_may_merge_alone_or_not_at_all() -> None:
    method = METHODS["illava"]
    alone = method.plan(8, (0.5, 0.5), visual_tokens=36, tower_layers=2)
    assert [stage.kept for stage in alone.tower] == [27, 18]
    assert not any(stage.drops for stage in alone.stages)
    assert "to 27 after layer 0's attention, 18 after layer 1's attention, before" in alone.describe()
    decoder = method.plan(8, (1, 0.5), visual_tokens=36, tower_layers=2)
    assert not decoder.tower
    assert [stage.keep for stage in decoder.stages] == [5000]
    whole = method.plan(8, 1, visual_tokens=36, tower_layers=2)
    assert not whole.tower
    assert not whole.shortens


def test_a_tower_without_one_last_layer_cannot_merge() -> None:
    with pytest.raises(InputError, match="illava merges inside the vision tower, and this model's visual"):
        METHODS["illava"].plan(8, visual_tokens=36, tower_layers=0)


def test_a_list_for_a_method_with_a_tower_says_what_it_is_of() -> None:
    with pytest.raises(InputError, match="illava has 2 stages, the first of them its merging in the vis"):
        METHODS["illava"].plan(8, (0.5, 0.4, 0.3), visual_tokens=36, tower_layers=2)


@pytest.mark.parametrize("stages", [[(1, 5), (1, 4)], [(2, 5), (1, 4)], [(1, 4), (2, 5)]])
def test_a_tower_that_cannot_be_is_refused(stages: list[tuple[int, int]]) -> None:
    with pytest.raises(ValidationError, match="must ascend by layer and not grow"):
        PruningPlan(method="m", tower=tuple(TowerStage(layer=at, kept=kept) for at, kept in stages))


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
        METHODS["fastv"].plan(8, 0.5).stages[0].keep = 1


def test_a_plan_says_what_it_does() -> None:
    plan = METHODS["fastv"].plan(8, 0.3)
    assert plan.describe() == "fastv: before layer 2 keep 0.3 (no debias)"
    assert (
        plan.debiased(tuple(Debias)).describe() == "fastv: before layer 2 keep 0.3 (debias position, padding)"
    )
    assert PruningPlan(method="none").describe() == "none: no pruning"


# Layers and numbers of tokens as published for LLaVA-1.5-7B: 32 layers, 576 visual tokens.
PUBLISHED = {
    "fastv": ([2], [288]),
    "pyramiddrop": ([2, 10, 20], [184, 92, 46]),
    "himap": ([2, 8], [115, 90]),
    "sparsevlm": ([3, 7, 16], [300, 200, 110]),
    "tokencarve": ([2], [192]),
    "illava-decoder": ([8], [403]),
    "random": ([2], [288]),
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_without_a_share_a_method_keeps_what_it_publishes(method: str) -> None:
    plan = METHODS[method].plan(32, visual_tokens=576)
    assert [stage.layer for stage in plan.stages] == PUBLISHED[method][0]
    assert [counts.kept for counts in plan.counts(576)] == PUBLISHED[method][1]


def test_published_lists_can_be_given_as_they_are() -> None:
    plan = METHODS["pyramiddrop"].plan(32, (0.5, 0.25, 0.125), (8, 16, 24), visual_tokens=576)
    assert [(s.layer, s.score_layer) for s in plan.stages] == [(8, 8), (16, 16), (24, 24)]
    assert [counts.kept for counts in plan.counts(576)] == [288, 144, 72]


# What the authors of each method, or of arXiv 2508.17807, run on LLaVA-1.5 (576 visual tokens), in 7B
# (32 layers) and 13B (40 layers) alike: `--layer`, `--keep`, and the tokens that every stage keeps.
PUBLISHED_ROWS = [
    ("fastv", (2,), ("192/576",), [192]),
    ("fastv", (2,), ("128/576",), [128]),
    ("fastv", (2,), ("64/576",), [64]),
    ("fastv", (2,), ("0.75",), [432]),
    ("fastv", (2,), ("0.25",), [144]),
    ("pyramiddrop", (2, 10, 20), ("0.32", "0.16", "0.08"), [184, 92, 46]),
    ("pyramiddrop", (8, 16, 24), ("0.5", "0.25", "0.125"), [288, 144, 72]),
    ("himap", (2, 8), ("115/576", "90/576"), [115, 90]),
    ("himap", (2, 8), ("288/576", "72/576"), [288, 72]),
    ("sparsevlm", (3, 7, 16), ("300/576", "200/576", "110/576"), [300, 200, 110]),
    ("sparsevlm", (3, 7, 16), ("303/576", "110/576", "36/576"), [303, 110, 36]),
    ("sparsevlm", (3, 7, 16), ("66/576", "30/576", "17/576"), [66, 30, 17]),
    ("tokencarve", (2,), ("192/576",), [192]),
    ("tokencarve", (2,), ("128/576",), [128]),
    ("tokencarve", (2,), ("64/576",), [64]),
]


@pytest.mark.parametrize("layers", [32, 40])
@pytest.mark.parametrize(("method", "at", "keep", "counts"), PUBLISHED_ROWS)
def test_published_settings_keep_exactly_the_published_tokens(
    method: str, at: tuple[int, ...], keep: tuple[str, ...], counts: list[int], layers: int
) -> None:
    plan = METHODS[method].plan(layers, keep, at, visual_tokens=576)
    kept = [0, *(found.kept for found in plan.counts(576))]
    # Per layer: 0 stands for all tokens, in front of the first stage.
    found = [kept[plan.group_of_layer(layer)] for layer in range(layers)]
    expected = [0] * at[0]
    for count, first, after in zip(counts, at, (*at[1:], layers), strict=True):
        expected += [count] * (after - first)
    assert found == expected


# One rounds down, the other to the nearest.
@pytest.mark.parametrize(("method", "stages"), [("pyramiddrop", 3), ("himap", 2)])
@given(data=st.data(), visual=st.integers(4, 3000))
@settings(max_examples=60, deadline=None)
def test_fractions_keep_what_they_say_in_every_selection(
    method: str, stages: int, data: Any, visual: int
) -> None:
    numbers = st.sets(st.integers(1, visual - 1), min_size=stages, max_size=stages)
    wanted = sorted(data.draw(numbers), reverse=True)
    plan = METHODS[method].plan(32, [f"{kept}/{visual}" for kept in wanted], visual_tokens=visual)
    assert [found.kept for found in plan.counts(visual)] == wanted


def test_counts_are_whole_parts_where_the_method_says_so() -> None:
    # 0.32 * 25 is 8, but 0.29 * 100 is 28.999... in binary; 0.13 * 576 is 74.88.
    plan = METHODS["pyramiddrop"].plan(32, (0.29, 0.13, 0.13), visual_tokens=100)
    assert [counts.kept for counts in plan.counts(100)] == [29, 13, 13]
    plan = METHODS["pyramiddrop"].plan(32, (0.13, 0.13, 0.13), visual_tokens=576)
    assert [counts.kept for counts in plan.counts(576)] == [74, 74, 74]


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"none"}))
@given(
    keep=st.floats(0.02, 1),
    layers=st.integers(4, 80),
    visual=st.integers(36, 3000),
)
@settings(max_examples=60, deadline=None)
def test_keep_is_the_average_behind_the_first_selection(
    method: str, keep: float, layers: int, visual: int
) -> None:
    plan = METHODS[method].plan(layers, keep, visual_tokens=visual, tower_layers=4)
    least = METHODS[method].plan(layers, 0.01, visual_tokens=visual, tower_layers=4)
    first = 0 if least.tower else least.stages[0].layer
    left = plan.tokens_per_tile(visual)
    kept = [left, *(counts.kept for counts in plan.counts(left))]
    seen = [kept[plan.group_of_layer(layer)] / visual for layer in range(first, layers)]
    # Shares are whole ten-thousandths, numbers of tokens whole numbers, at least one.
    assert sum(seen) / len(seen) == pytest.approx(keep, abs=1.01 / visual + 1e-4)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"none"}))
@pytest.mark.parametrize("layers", [4, 5, 12, 24, 28, 32, 40, 80])
def test_layers_scale_with_the_depth_and_stay_apart(method: str, layers: int) -> None:
    at = [
        stage.layer for stage in METHODS[method].plan(layers, 0.3, visual_tokens=576, tower_layers=4).stages
    ]
    assert at == sorted(set(at))
    assert at[0] >= 1
    assert at[-1] < layers
    if layers == 80 and method == "pyramiddrop":
        assert at == [5, 25, 50]


def test_several_pictures_round_the_same_shares() -> None:
    plan = METHODS["himap"].plan(32, visual_tokens=576)
    assert [counts.kept for counts in plan.counts(2 * 576)] == [230, 180]


def test_without_a_number_of_tokens_shares_are_kept() -> None:
    plan = METHODS["pyramiddrop"].plan(32, (0.5, 0.25, 0.125))
    assert [stage.keep for stage in plan.stages] == [5000, 5000, 5000]


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("pyramiddrop", {"keep": (0.5, 0.25)}, "2 keep ratios were given and pyramiddrop has 3 stages"),
        ("pyramiddrop", {"keep": (0.25, 0.5, 0.125)}, "the keep ratios 0.25, 0.5, 0.125 rise"),
        ("pyramiddrop", {"keep": (0.5, 0.25, 0)}, "the keep ratio is 0"),
        ("pyramiddrop", {"keep": ("66/576", "0.2", "17/576")}, "the keep ratios 66/576, 0.2, 17/576 rise"),
        ("himap", {"keep": ("577/576", "1/2")}, "the keep ratio is 577/576"),
        ("pyramiddrop", {"layer": 2}, "1 layer was given and pyramiddrop has 3 stages"),
        ("pyramiddrop", {"layer": (2, 10)}, "2 layers were given and pyramiddrop has 3 stages"),
        ("pyramiddrop", {"layer": (2, 20, 10)}, "the layers 2, 20, 10 do not ascend"),
        ("pyramiddrop", {"layer": (2, 2, 10)}, "the layers 2, 2, 10 do not ascend"),
        ("pyramiddrop", {"layer": (2, 10, 32)}, "layer 32 cannot be pruned at: the model has 32"),
        (
            "illava",
            {"layer": (1, 2)},
            "2 layers were given and illava has 1 stage in the decoder: give one",
        ),
        ("fastv", {"layer": 1.5}, r"layer 1\.5 cannot be pruned at: .* a whole number from 1 to 31"),
        ("fastv", {"layer": "2"}, "layer '2' cannot be pruned at"),
        ("pyramiddrop", {"layer": (2, True, 10)}, "layer True cannot be pruned at"),
        ("random", {"seed": -1}, "`seed` is -1"),
        ("random", {"seed": 2**31}, "`seed` is 2147483648: expected a whole number from 0"),
        ("random", {"seed": 1.5}, "`seed` is 1.5"),
        ("none", {"keep": (0.5, 2)}, "the keep ratio is 2"),
        ("illava", {}, "illava merges as many tokens of every image inside the vision tower"),
        (
            "tokencarve",
            {"layer": 2, "deepstack": 3},
            "tokencarve merges tokens before layer 2, and this model",
        ),
    ],
)
def test_a_plan_that_cannot_be_made_says_why(method: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        METHODS[method].plan(32, **arguments)


def test_a_model_too_shallow_for_a_method_says_so() -> None:
    with pytest.raises(InputError, match="the model has 3 decoder layers, and pyramiddrop has 3 stages"):
        METHODS["pyramiddrop"].plan(3)


def test_a_stage_cannot_be_scored_before_the_one_before_it_prunes() -> None:
    early = PruningStage(layer=5, score_layer=1, keep=5000)
    with pytest.raises(ValidationError, match="layer 1 cannot score the stage before layer 5"):
        PruningPlan(method="several", stages=(stage(2), early))


@pytest.mark.parametrize("fields", [{"score_layer": None}, {"score_layer": 1, "ranking": "random"}])
def test_attention_has_a_layer_and_random_numbers_have_none(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="attention needs a layer"):
        PruningStage.model_validate({"layer": 2, "keep": 5000, **fields})


ATTENTION: dict[str, Any] = {"layer": 2, "score_layer": 1, "keep": 5000}
RANDOM: dict[str, Any] = {"ranking": "random", "score_layer": None}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ranking": "rank_fusion"}, "rank_fusion and nearest go together"),
        ({"merge": "nearest"}, "rank_fusion and nearest go together"),
        ({"ranking": "rank_fusion", "merge": "recycle"}, "rank_fusion and nearest go together"),
    ],
)
def test_a_stage_that_the_graph_would_not_follow_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PruningStage.model_validate(ATTENTION | fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"debias": ("padding", "padding")}, "give each once"),
        ({"debias": ("padding",), "stages": ()}, "no stage that it could act on"),
        (
            {"debias": ("position",), "stages": (PruningStage(**ATTENTION | RANDOM),)},
            "no bias by position",
        ),
    ],
)
def test_a_debias_that_could_not_act_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PruningPlan(**{"method": "one", "stages": (stage(2),), **fields})


@pytest.mark.parametrize(
    ("method", "needed"),
    [
        *((name, False) for name in ("fastv", "pyramiddrop", "random", "none")),
        *((name, True) for name in ("himap", "sparsevlm", "tokencarve", "illava-decoder")),
    ],
)
def test_which_methods_need_text_behind_the_images(method: str, needed: bool) -> None:
    assert METHODS[method].plan(32, 0.3).needs_text_behind_images == needed


def test_lengths_of_caches_follow_the_stages() -> None:
    plan = PruningPlan(method="several", stages=(stage(2), stage(5)))
    assert plan.cache_lengths(sequence=30, visual_tokens=20) == (30, 20, 15)
    assert plan.average_share(8, 20) == pytest.approx((2 * 20 + 3 * 10 + 3 * 5) / (8 * 20))
    trimmed = plan.model_copy(update={"trims_earlier_caches": True})
    assert trimmed.cache_lengths(sequence=30, visual_tokens=20) == (15, 15, 15)
    assert PruningPlan(method="none").cache_lengths(30, 20) == (30,)
    assert plan.average_share(8, 0) == 1


def test_means_of_dropped_tokens_count_behind_the_stage() -> None:
    recycling = PruningStage(layer=2, score_layer=1, keep=5000, merge=Merge.RECYCLE)
    plan = PruningPlan(method="several", stages=(recycling, stage(5)))
    # Of 50 dropped tokens 16 are recycled into 2 means.
    assert [(c.reached, c.kept, c.appended) for c in plan.counts(100)] == [(100, 50, 2), (52, 26, 0)]
    assert plan.describe_counts(8, 100) == (
        "100, 52 from layer 2 on, 2 of them means of dropped ones, 26 from layer 5 on, "
        "on average 54.2% of them per layer"
    )


@pytest.mark.parametrize("pruned", [1, 2, 9, 10, 30, 33, 130, 276, 466])
def test_recycled_tokens_are_counted_as_published(pruned: int) -> None:
    tokens = int(pruned * 0.3) + 1
    assert recycled_count(pruned) == (min(tokens, pruned), min(tokens, int(tokens / 10) + 1))
    assert recycled_count(0) == (0, 0)


def test_random_scores_are_seeded_and_uniform() -> None:
    scores = random_scores(7, 400)
    assert scores.tolist() == random_scores(7, 400).tolist() != random_scores(8, 400).tolist()
    assert scores[:100].tolist() == random_scores(7, 100).tolist()
    # A uniform distribution's mean and quarters, within four standard deviations of 400 draws.
    assert abs(scores.mean() - 0.5) < 0.06
    assert np.allclose(np.quantile(scores, [0.25, 0.75]), [0.25, 0.75], atol=0.09)
    assert abs(np.corrcoef(scores, np.arange(400))[0, 1]) < 0.2
    assert len(random_scores(0, 0)) == 0
