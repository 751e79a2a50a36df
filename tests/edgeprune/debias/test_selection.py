"""The selection reference against a sort written out by hand."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.debias.selection import (
    effective_score,
    keep_per_10000,
    kept_count,
    random_visual,
    read_share,
    select,
    select_by_image,
    select_visual,
)
from edgeprune.errors import InputError

PROPERTY = settings(deadline=None, max_examples=200, derandomize=True)
LOWEST = float(np.finfo(np.float32).min)
LARGEST = float(np.finfo(np.float32).max)

# Few distinct values, so that ties are common, beside everything that float32 can hold.
SCORES = st.one_of(
    st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.0, math.inf, -math.inf, math.nan, LOWEST, LARGEST, 1e-45]),
    st.floats(width=32),
)


def row(*values: float) -> np.ndarray:
    return np.array([values], dtype=np.float32)


def ones(count: int) -> np.ndarray:
    return np.ones(count, dtype=np.float32)


@st.composite
def stages(draw: st.DrawFn) -> dict[str, Any]:
    batch, visual, text = draw(st.integers(1, 3)), draw(st.integers(0, 12)), draw(st.integers(0, 6))
    sequence = visual + text

    def floats(values: st.SearchStrategy[float], *shape: int) -> np.ndarray:
        count = math.prod(shape)
        drawn = draw(st.lists(values, min_size=count, max_size=count))
        return np.array(drawn, dtype=np.float32).reshape(shape)

    index = [sorted(draw(st.permutations(range(sequence)))[:visual]) for _ in range(batch)]
    return {
        "score": floats(SCORES, batch, sequence),
        "visual_index": np.array(index, dtype=np.int64).reshape(batch, visual),
        "weight": floats(
            st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0625, 4, width=32)), batch, visual
        ),
        "kept": draw(st.integers(0, visual)),
    }


def by_hand(stage: dict[str, Any], prompt: int) -> list[int]:
    """The kept visual tokens of one prompt, by a stable sort of Python tuples."""

    def rank(token: int) -> tuple[int, float]:
        position, weight = stage["visual_index"][prompt, token], stage["weight"][prompt, token]
        if position == stage["score"].shape[1] - 1:
            return (-1, 0.0)
        if weight == 0:
            return (2, 0.0)
        with np.errstate(all="ignore"):
            product = float(stage["score"][prompt, position] * weight)
        if math.isnan(product) or product == -math.inf or product == LOWEST:
            return (1, 0.0)
        return (0, -min(product, LARGEST))

    visual = stage["visual_index"].shape[1]
    return sorted(sorted(range(visual), key=rank)[: stage["kept"]])


@PROPERTY
@given(stages())
def test_select_agrees_with_a_sort_by_hand(stage: dict[str, Any]) -> None:
    chosen = select(**stage)
    batch, sequence = stage["score"].shape
    assert chosen.kept_index.dtype == chosen.kept_visual.dtype == np.int64
    for prompt in range(batch):
        wanted = by_hand(stage, prompt)
        positions = stage["visual_index"][prompt]
        text = set(range(sequence)) - set(positions.tolist())
        assert chosen.kept_visual[prompt].tolist() == wanted
        assert chosen.kept_index[prompt].tolist() == sorted(text | set(positions[wanted].tolist()))


@PROPERTY
@given(stages(), st.randoms(use_true_random=False))
def test_prompts_of_a_batch_do_not_influence_each_other(stage: dict[str, Any], random: Any) -> None:
    order = list(range(len(stage["score"])))
    random.shuffle(order)
    rows = ("score", "visual_index", "weight")
    shuffled = select(**{name: value[order] if name in rows else value for name, value in stage.items()})
    assert np.array_equal(shuffled.kept_index, select(**stage).kept_index[order])


@PROPERTY
@given(st.permutations(range(12)), st.integers(0, 12))
def test_without_ties_a_permutation_of_the_tokens_permutes_the_selection(order: list[int], kept: int) -> None:
    score = row(*(0.01 * (i + 1) for i in range(12)))
    best = select_visual(score, np.ones_like(score), kept)[0]
    permuted = select_visual(score[:, order], np.ones_like(score), kept)[0]
    assert sorted(order[i] for i in permuted) == best.tolist()


def test_select_leaves_its_inputs_as_they_are() -> None:
    score, weight = row(0.1, math.nan, 0.3), row(1, 1, 0)
    copies = score.copy(), weight.copy()
    select(score, np.array([[0, 1, 2]]), weight, 2)
    for array, copy in zip((score, weight), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_text_is_kept_and_the_best_visual_tokens_in_their_order() -> None:
    chosen = select(row(9, 0.1, 0.4, 0.3, 0, 9), np.array([[1, 2, 3]]), row(1, 1, 1), 2)
    assert chosen.kept_index.tolist() == [[0, 2, 3, 4, 5]]
    assert chosen.kept_visual.tolist() == [[1, 2]]


@pytest.mark.parametrize("weight", [0, 1])
def test_the_last_position_stays_whatever_its_score_and_weight(weight: float) -> None:
    chosen = select(row(0.9, 0.8, math.nan), np.array([[0, 1, 2]]), row(1, 1, weight), 1)
    assert chosen.kept_index.tolist() == [[2]]
    text_behind = select(row(0.9, 0.8, math.nan, 0), np.array([[0, 1, 2]]), row(1, 1, weight), 1)
    assert text_behind.kept_index.tolist() == [[0, 3]]


def test_equal_scores_go_to_the_lower_index() -> None:
    assert select_visual(row(*[0.25] * 9), row(*[1] * 9), 3).tolist() == [[0, 1, 2]]
    assert select_visual(row(-0.0, 0.0), row(1, 1), 1).tolist() == [[0]]


def test_numbers_beat_nan_and_nan_beats_padding() -> None:
    score, weight = row(9, math.nan, 0.0, math.inf, -math.inf), row(0, 1, 1, 1, 1)
    order = [select_visual(score, weight, kept)[0].tolist() for kept in (1, 2, 3, 4)]
    assert order == [[3], [2, 3], [1, 2, 3], [1, 2, 3, 4]]


def test_effective_score_of_special_values() -> None:
    score = row(math.nan, -math.inf, math.inf, math.inf, 0.0, math.nan, 2.0, math.nan)
    stays = np.array([[False] * 7 + [True]])
    found = effective_score(score, row(1, 1, 1, 0, 1, 0, 0.25, 0), stays)
    assert found.dtype == np.float32
    assert found.tolist() == [[LOWEST, LOWEST, LARGEST, -math.inf, 0.0, -math.inf, 0.5, math.inf]]


def test_effective_score_multiplies_in_float32() -> None:
    score, weight = np.float32(0.1), np.float32(0.7)
    assert effective_score(row(0.1), row(0.7))[0, 0] == score * weight
    assert effective_score(row(LARGEST), row(2))[0, 0] == LARGEST


def test_attention_that_underflowed_to_zero_still_beats_padding() -> None:
    assert select_visual(row(0.9, 0.9, 0.0, 0.0), row(0, 0, 1, 1), 2).tolist() == [[2, 3]]


def test_tokens_without_weight_fill_up_from_the_lowest_index() -> None:
    assert select_visual(row(0.1, 0.9, 0.8, 0.7), row(0, 0, 0, 1), 3).tolist() == [[0, 1, 3]]
    assert select_visual(row(0.1, math.nan, 0.8), row(0, 0, 0), 2).tolist() == [[0, 1]]


def test_weights_count_from_the_first_visual_token() -> None:
    # Position 1 is visual token 0.
    chosen = select(row(0, 0.5, 0.6, 0), np.array([[1, 2]]), row(1, 0.5), 1)
    assert chosen.kept_index.tolist() == [[0, 1, 3]]


@pytest.mark.parametrize(("kept", "expected"), [(3, [0, 1, 2]), (1, [2]), (0, [])])
def test_keeping_all_and_one_and_none(kept: int, expected: list[int]) -> None:
    assert select_visual(row(0.1, 0.2, 0.3), row(1, 1, 1), kept).tolist() == [expected]


def test_no_visual_token_is_the_identity() -> None:
    empty = np.zeros((2, 0), dtype=np.float32)
    chosen = select(np.ones((2, 3), np.float32), empty.astype(np.int64), empty, 0)
    assert chosen.kept_index.tolist() == [[0, 1, 2]] * 2
    assert chosen.kept_visual.shape == (2, 0)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (1, 10000), (1.0, 10000), (0.3, 3000), ("0.3", 3000), (" .5 ", 5000), ("1e-1", 1000),
        (0.00005, 1), (1e-300, 1), ("1e-400000000", 1), (0.00015, 2), (0.30005, 3001), (0.30004, 3000),
        (np.float32(0.3), 3000), (np.float64(0.7), 7000),
    ],
)  # fmt: skip
def test_keep_ratio_to_ten_thousandths(keep: Any, expected: int) -> None:
    found = keep_per_10000(keep)
    assert found == expected
    assert type(found) is int


@pytest.mark.parametrize(
    "keep",
    [0, -0.1, 1.0001, math.nan, math.inf, -math.inf, "nan", "sNaN", "inf", "much", "", "0,3", True, None,
     "1/0", "0/5", "-1/2", "3/2", "1/2/3", "1/", "0.5/1", "nan/2", "9" * 5000 + "/1"],
)  # fmt: skip
def test_keep_ratio_that_is_none(keep: Any) -> None:
    with pytest.raises(InputError, match=r"the keep ratio is .*: expected a number above 0 and at most 1; ."):
        keep_per_10000(keep)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("192/576", Fraction(1, 3)), (" 303 / 576 ", Fraction(101, 192)), ("576/576", Fraction(1)),
        ("0.3", Fraction(3, 10)), (0.29, Fraction(29, 100)), (1, Fraction(1)),
        (Fraction(2, 3), Fraction(2, 3)),
        ("1e-999999999", Fraction(1, 1000000)), ("1/30000000", Fraction(1, 30000000)),
    ],
)  # fmt: skip
def test_a_share_is_read_exactly(keep: Any, expected: Fraction) -> None:
    assert read_share(keep) == expected


@PROPERTY
@given(st.integers(1, 9999).flatmap(lambda visual: st.tuples(st.integers(1, visual), st.just(visual))))
def test_a_fraction_keeps_exactly_what_it_says(counts: tuple[int, int]) -> None:
    kept, visual = counts
    assert kept_count(visual, keep_per_10000(f"{kept}/{visual}")) == kept


def test_a_percentage_is_answered_with_the_share() -> None:
    with pytest.raises(InputError, match=r"0\.3 keeps 30 %"):
        keep_per_10000("30")


@PROPERTY
@given(st.integers(0, 5000), st.integers(1, 10000))
def test_kept_count_rounds_half_up_within_its_limits(visual: int, keep: int) -> None:
    exact = math.floor(Fraction(visual * keep, 10000) + Fraction(1, 2))
    assert kept_count(visual, keep) == min(visual, max(1, exact))


def test_kept_count_of_the_usual_case_and_of_narrow_integers() -> None:
    assert [kept_count(576, keep) for keep in (3000, 10000, 1)] == [173, 576, 1]
    assert kept_count(5, 5000) == 3
    assert kept_count(np.int16(30000), np.int16(10000)) == 30000  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", [0, 10001, -1, 0.3, True, "3000"])
def test_kept_count_refuses_another_unit(keep: Any) -> None:
    with pytest.raises(InputError, match=r"expected an integer from 1 to 10000, in ten-thousandths"):
        kept_count(576, keep)


def test_kept_count_refuses_a_negative_number() -> None:
    with pytest.raises(InputError, match=r"visual tokens is -1: expected 0 or more"):
        kept_count(-1, 3000)


GOOD: dict[str, Any] = {
    "score": row(0.1, 0.2, 0.3, 0.4),
    "visual_index": np.array([[1, 2]]),
    "weight": row(1, 1),
    "kept": 1,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": GOOD["score"].astype(np.float16)}, r"score is float16 \[1, 4\]: expected float32"),
        ({"score": ones(4)}, r"score is float32 \[4\]: expected float32 \[any, any\]"),
        ({"visual_index": np.array([[1, 2]], np.int32)}, r"visual_index is int32 .*: expected int64"),
        ({"visual_index": np.array([[1], [2]])}, r"visual_index is int64 \[2, 1\]: .* \[1, any\]"),
        ({"visual_index": np.array([[1, 4]])}, r"visual_index holds 4 for a sequence of 4: .* from 0 to 3"),
        ({"visual_index": np.array([[-1, 2]])}, r"visual_index holds -1"),
        ({"visual_index": np.array([[2, 1]])}, r"visual_index does not ascend: expected .*; sort"),
        ({"visual_index": np.array([[1, 1]])}, r"visual_index does not ascend"),
        ({"weight": np.array([[True, True]])}, r"weight is bool \[1, 2\]: expected float32"),
        ({"weight": row(1, 1, 1)}, r"weight is float32 \[1, 3\]: expected float32 \[1, 2\]"),
        ({"kept": 3}, r"3 visual tokens are to be kept of 2: expected .* from 0 to 2; kept_count"),
        ({"kept": -1}, r"-1 visual tokens are to be kept"),
        ({"kept": 0.5}, r"0\.5 visual tokens are to be kept"),
        ({"kept": True}, r"True visual tokens are to be kept"),
    ],
)  # fmt: skip
def test_select_refuses(changes: dict[str, Any], message: str) -> None:
    select(**GOOD)
    with pytest.raises(InputError, match=message):
        select(**{**GOOD, **changes})


@PROPERTY
@given(stages(), st.booleans(), st.integers(0, 2**32 - 1))
def test_random_selection_has_the_size_of_the_real_one(
    stage: dict[str, Any], among_content: bool, seed: int
) -> None:
    valid, kept = (stage["weight"] != 0).astype(np.float32), stage["kept"]
    chosen = random_visual(np.random.default_rng(seed), valid, kept, among_content)
    visual = valid.shape[1]
    assert chosen.dtype == np.int64
    assert chosen.shape == (len(valid), kept)
    assert np.array_equal(chosen, random_visual(np.random.default_rng(seed), valid, kept, among_content))
    for prompt, picked in enumerate(chosen.tolist()):
        assert picked == sorted(set(picked))
        assert all(0 <= token < visual for token in picked)
        if among_content:
            content = np.flatnonzero(valid[prompt]).tolist()
            padded = [token for token in picked if token not in content]
            assert len(padded) == max(0, len(picked) - len(content))
            assert padded == np.flatnonzero(valid[prompt] == 0)[: len(padded)].tolist()


@pytest.mark.parametrize(("among_content", "share"), [(False, 0.4), (True, 2 / 3)])
def test_random_selection_is_uniform(among_content: bool, share: float) -> None:
    valid = np.tile(row(1, 0, 1, 0, 1), (6000, 1))
    chosen = random_visual(np.random.default_rng(0), valid, 2, among_content)
    counts = np.bincount(chosen.ravel(), minlength=5) / len(valid)
    expected = np.where(valid[0] == 1, share, 0) if among_content else np.full(5, share)
    np.testing.assert_allclose(counts, expected, atol=0.03)


def test_random_selection_refuses_another_mask() -> None:
    with pytest.raises(InputError, match=r"visual_valid is float32 \[2\]: expected float32 \[any, any\]"):
        random_visual(np.random.default_rng(0), ones(2), 1, True)


@PROPERTY
@given(data=st.data(), counts=st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_every_image_keeps_its_part(data: st.DataObject, counts: list[int]) -> None:
    image = np.repeat(np.arange(len(counts)), counts)
    numbers = st.one_of(st.just(-np.inf), st.floats(0, 1, width=32))
    score = data.draw(st.lists(numbers, min_size=len(image), max_size=len(image)))
    effective = np.array(score, dtype=np.float32)
    kept = data.draw(st.integers(0, len(image)))
    found = select_by_image(effective, image, kept)
    best = np.sort(np.argsort(-effective, kind="stable")[:kept])
    chosen = best if found is None else found
    assert len(chosen) == kept == len(set(chosen.tolist()))
    usable = np.bincount(image[effective > -np.inf], minlength=len(counts))
    part = np.minimum(np.array(counts) * kept // len(image), usable)
    assert (np.bincount(image[chosen], minlength=len(counts)) >= part).all()
    if found is not None:
        assert (np.bincount(image[best], minlength=len(counts)) < part).any()
        # Of each image the best ones stay.
        for number in range(len(counts)):
            own = np.flatnonzero(image == number)
            mine = found[image[found] == number]
            assert set(mine) == set(own[np.argsort(-effective[own], kind="stable")[: len(mine)]])
    if len(counts) == 1:
        assert found is None
