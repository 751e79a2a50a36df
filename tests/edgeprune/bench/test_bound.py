"""The bound on the gain against the published figure and against counting by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.bench.bound import layer_flops, prefill_bound, speed_up
from edgeprune.debias.selection import kept_count
from edgeprune.errors import InputError

PROPERTY = settings(deadline=None, max_examples=100, derandomize=True)
LLAVA_7B = {"hidden": 4096, "intermediate": 11008, "heads": 32, "kv_heads": 32, "head_dim": 128}
SMALL = {"hidden": 8, "intermediate": 12, "heads": 4, "kv_heads": 2, "head_dim": 3}


def test_llava_7b() -> None:
    share = prefill_bound(32, 660, [(2, 660 - 576 + kept_count(576, 3000))], **LLAVA_7B)
    assert share == pytest.approx(0.42, abs=0.005)
    assert speed_up(share) == pytest.approx(2.37, abs=0.01)


def test_without_grouped_queries_it_is_the_familiar_formula() -> None:
    n, d, m = 660, 4096, 11008
    assert layer_flops(n, **LLAVA_7B) == 2 * n * (4 * d * d + 3 * d * m) + 4 * n * n * d


def test_grouped_queries_count_each_matrix_product() -> None:
    n, d, m, query, key = 5, 8, 12, 4 * 3, 2 * 3
    products = [  # rows, inner, columns
        (n, d, query), (n, d, key), (n, d, key), (n, query, d),
        (n, d, m), (n, d, m), (n, m, d),
        *[(n, 3, n), (n, n, 3)] * 4,
    ]  # fmt: skip
    assert layer_flops(n, **SMALL) == sum(2 * a * b * c for a, b, c in products)


def test_several_stages_add_up() -> None:
    full, half, few = (layer_flops(n, **SMALL) for n in (100, 50, 10))
    found = prefill_bound(10, 100, [(2, 50), (7, 10)], **SMALL)
    assert found == pytest.approx((2 * full + 5 * half + 3 * few) / (10 * full), rel=1e-12)


@PROPERTY
@given(st.integers(2, 40), st.integers(1, 2000), st.data())
def test_pruning_more_or_earlier_leaves_less(layers: int, sequence: int, data: st.DataObject) -> None:
    layer = data.draw(st.integers(1, layers - 1))
    after = data.draw(st.integers(1, sequence))
    share = prefill_bound(layers, sequence, [(layer, after)], **SMALL)
    assert 0 < share <= prefill_bound(layers, sequence, [], **SMALL) == 1
    if after > 1:
        assert prefill_bound(layers, sequence, [(layer, after - 1)], **SMALL) < share
    if layer > 1:
        assert prefill_bound(layers, sequence, [(layer - 1, after)], **SMALL) <= share


@pytest.mark.parametrize(
    ("layers", "sequence", "stages", "message"),
    [
        (4, 0, [], r"0 tokens in 4 layers: expected at least 1 of each"),
        (0, 9, [], r"9 tokens in 0 layers: expected at least 1 of each"),
        (
            4,
            9,
            [(4, 3)],
            r"a stage at layer 4 follows layer 0 of 4: expected layers that ascend from 1 to 3; put",
        ),
        (4, 9, [(0, 3)], r"a stage at layer 0"),
        (4, 9, [(2, 3), (2, 3)], r"a stage at layer 2 follows layer 2"),
        (4, 9, [(2, 10)], r"the stage at layer 2 leaves 10 of 9 tokens: expected from 1 to 9; count"),
        (4, 9, [(1, 5), (2, 6)], r"leaves 6 of 5 tokens"),
        (4, 9, [(2, 0)], r"leaves 0 of 9 tokens"),
    ],
)
def test_prefill_bound_refuses(layers: int, sequence: int, stages: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prefill_bound(layers, sequence, stages, **SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_layer_flops_refuses_a_size_of_zero(name: str) -> None:
    with pytest.raises(
        InputError, match=rf"{name} is 0: expected at least 1; take it from the model's config"
    ):
        layer_flops(5, **{**SMALL, name: 0})


def test_layer_flops_refuses_negative_tokens() -> None:
    assert layer_flops(0, **SMALL) == 0
    with pytest.raises(InputError, match=r"the number of tokens is -1: expected 0 or more; check"):
        layer_flops(-1, **SMALL)


@pytest.mark.parametrize("share", [0.0, -0.5, float("nan")])
def test_speed_up_refuses(share: float) -> None:
    with pytest.raises(InputError, match=r"the share is .*: expected a number above 0"):
        speed_up(share)
