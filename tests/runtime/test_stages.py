"""Reading what pruning stages did: one stage against the reference, and two in a row."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edgeprune.debias.selection import select
from edgeprune.errors import PruningError
from edgeprune.plans import Debias, PruningPlan, PruningStage
from edgeprune.runtime.stages import StageResult, stage_results

STAGE = PruningStage(layer=2, score_layer=1, keep=5000)
BOTH = (Debias.POSITION, Debias.PADDING)


def one_stage() -> PruningPlan:
    return PruningPlan(method="test", stages=(STAGE,), debias=BOTH)


NUMBERS = np.broadcast_to(np.arange(12), (8, 12))


def ones(count: int) -> np.ndarray:
    return np.ones((1, count), dtype=np.float32)


def test_results_are_the_reference_selection_s() -> None:
    rng = np.random.default_rng(0)
    score = rng.random((3, 20), dtype=np.float32)
    index = np.stack([np.arange(start, start + 12) for start in (2, 5, 8)])
    valid = (rng.random((3, 12)) > 0.3).astype(np.float32)
    weight = valid * np.linspace(1, 2, 12, dtype=np.float32)
    expected = select(score, index, weight, 6)
    traces = {"kept_index.0": expected.kept_index, "score.0": score}
    found = stage_results(one_stage(), index, NUMBERS[:3], valid, weight, 20, traces)
    for row, (result,) in enumerate(found):
        np.testing.assert_array_equal(result.kept_visual, expected.kept_visual[row])
        np.testing.assert_array_equal(result.candidates, np.arange(12))
        np.testing.assert_array_equal(result.score, score[row, index[row]])
        np.testing.assert_array_equal(result.visual_valid, valid[row])
        np.testing.assert_array_equal(result.weight, weight[row])
        np.testing.assert_array_equal(result.selected_by(result.weight), result.kept_visual)
        assert (result.planned, result.debias) == (STAGE, BOTH)
        assert result.kept == 6
        assert result.padded_kept == (valid[row, expected.kept_visual[row]] == 0).sum()
        assert result.ends_prompt == (index[row, -1] == 19)


def test_a_second_stage_counts_the_prompt_s_own_visual_tokens() -> None:
    plan = PruningPlan(
        method="test",
        stages=(
            PruningStage(layer=2, score_layer=1, keep=5000),
            PruningStage(layer=3, score_layer=2, keep=5000),
        ),
        debias=BOTH,
    )
    # 2 text, 8 visual, 1 text. The first stage keeps visual tokens 1, 3, 5, 7; the second of those 3 and 7.
    first = np.array([[0, 1, 3, 5, 7, 9, 10]])
    second = np.array([[0, 1, 3, 5, 6]])
    scores = np.arange(11, dtype=np.float32)[None], np.arange(7, dtype=np.float32)[None]
    traces = {"kept_index.0": first, "kept_index.1": second, "score.0": scores[0], "score.1": scores[1]}
    valid = np.array([[1, 1, 1, 1, 1, 1, 1, 0]], dtype=np.float32)
    index, numbers = np.arange(2, 10)[None], np.arange(8)[None]
    ((before, after),) = stage_results(plan, index, numbers, valid, valid, 11, traces)
    assert before.kept_visual.tolist() == [1, 3, 5, 7]
    assert after.candidates.tolist() == [1, 3, 5, 7]
    assert after.kept_visual.tolist() == [3, 7]
    assert after.score.tolist() == [2, 3, 4, 5]
    assert after.visual_valid.tolist() == [1, 1, 1, 0]
    assert (before.padded_kept, after.padded_kept) == (1, 1)
    # What the first has selected, the second selects from as it is.
    assert (before.debias, after.debias) == (BOTH, ())
    assert before.weight.tolist() == valid[0].tolist()
    assert after.weight.tolist() == [1, 1, 1, 1]


def test_debias_acts_as_long_as_all_visual_tokens_are_there() -> None:
    stages = (
        PruningStage(layer=2, score_layer=1, keep=10000),
        PruningStage(layer=3, score_layer=2, keep=5000),
    )
    plan = PruningPlan(method="test", stages=stages, debias=BOTH)
    scores = np.array([[0.4, 0.3, 0.2, 0.1, 0]], dtype=np.float32)
    traces = {"kept_index.0": np.arange(5)[None], "kept_index.1": np.array([[1, 2, 4]]), "score.0": scores}
    weight = np.array([[0, 1, 1, 0.5]], dtype=np.float32)
    index = np.arange(4)[None]
    ((before, after),) = stage_results(plan, index, index, ones(4), weight, 5, {**traces, "score.1": scores})
    assert before.debias == after.debias == BOTH
    assert after.selected_by(after.weight).tolist() == after.kept_visual.tolist() == [1, 2]


def test_weights_of_a_fused_rank_are_in_its_scores() -> None:
    stage = PruningStage(layer=2, score_layer=1, keep=5000, ranking="rank_fusion", merge="nearest")
    plan = PruningPlan(method="test", stages=(stage,), debias=BOTH)
    traces = {"kept_index.0": np.array([[0, 1, 4]]), "score.0": np.array([[4, 3, 0, 0, 0]], dtype=np.float32)}
    index = np.arange(4)[None]
    ((result,),) = stage_results(plan, index, index, ones(4), 0 * ones(4), 5, traces)
    assert result.weight.tolist() == [1, 1, 1, 1]
    assert not result.score_is_raw
    assert stage_results(plan.debiased(()), index, index, ones(4), ones(4), 5, traces)[0][0].score_is_raw


def test_visual_tokens_are_numbered_by_their_places() -> None:
    # Of six places a vision tower leaves 0, 2, 3 and 5, at 1..4 of the prompt; the stage keeps 2 and 5.
    traces = {"kept_index.0": np.array([[0, 2, 4]]), "score.0": np.arange(5, dtype=np.float32)[None]}
    valid = np.array([[1, 0, 0, 1, 0, 1]], dtype=np.float32)
    index, numbers = np.arange(1, 5)[None], np.array([[0, 2, 3, 5]])
    ((result,),) = stage_results(one_stage(), index, numbers, valid, ones(4), 5, traces)
    assert result.candidates.tolist() == [0, 2, 3, 5]
    assert result.kept_visual.tolist() == [2, 5]
    assert result.visual_valid.tolist() == [1, 0, 1, 1]
    assert result.padded_kept == 1
    assert result.ends_prompt


def test_without_debias_the_raw_scores_decide() -> None:
    stage = StageResult(
        planned=STAGE,
        debias=BOTH,
        kept_visual=np.array([4, 6]),
        candidates=np.array([1, 4, 6, 9]),
        score=np.array([0.4, 0.1, 0.2, 0.3], dtype=np.float32),
        weight=np.array([0, 1, 1, 0], dtype=np.float32),
        visual_valid=np.array([0, 1, 1, 0], dtype=np.float32),
    )
    assert stage.without_debias().tolist() == [1, 9]
    assert (stage.padded_kept, stage.padded_among(stage.without_debias())) == (0, 2)
    # Where the last of them ends the prompt, it stays before all others.
    ending = dataclasses.replace(stage, score=stage.score[::-1].copy(), ends_prompt=True)
    assert ending.without_debias().tolist() == [1, 9]
    assert ending.selected_by(np.array([0, 1, 1, 0], dtype=np.float32)).tolist() == [4, 9]


def test_no_stage_no_results() -> None:
    index = np.zeros((2, 0), dtype=np.int64)
    nothing = index.astype(np.float32)
    assert stage_results(PruningPlan(method="none"), index, index, nothing, nothing, 4, {}) == [(), ()]


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([[0, 1, 2, 3, 4]], "kept 5 of 5 tokens: expected 3"),
        ([[0, 1, 2]], "kept 3 of 4 visual tokens: expected 2"),
        ([[1, 0, 4]], "expected 2, in order"),
    ],
)
def test_what_is_not_the_plan_is_refused(kept: list[list[int]], message: str) -> None:
    # Visual tokens at 0..3, text at 4.
    traces = {"kept_index.0": np.array(kept), "score.0": np.zeros((1, 5), dtype=np.float32)}
    index = np.arange(4)[None]
    with pytest.raises(PruningError, match=message):
        stage_results(one_stage(), index, index, ones(4), ones(4), 5, traces)
