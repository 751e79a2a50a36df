"""Weights in blocks: what they round to, and their bytes."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.exporter.precision.blocks import BlockForm, block_of, packed, quantise, unpacked
from edgeprune.manifest import BlockKind

KINDS: tuple[BlockKind, ...] = get_args(BlockKind)
SCALES = (torch.float32, torch.float16, torch.bfloat16)
# Half a step of the widest candidate scale, relative to a block's largest value; of fp8, half of 2^-3.
WORST = {"int4": 0.36, "int8": 0.005, "fp8": 0.065}


@st.composite
def weights(draw: st.DrawFn) -> torch.Tensor:
    outputs, blocks = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    seed, size = draw(st.integers(0, 1 << 31)), draw(st.sampled_from([1e-3, 1.0, 30.0]))
    return torch.randn(outputs, 32 * blocks, generator=torch.Generator().manual_seed(seed)) * size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", SCALES, ids=str)
@given(weight=weights())
def test_no_value_is_far_off(weight: torch.Tensor, kind: BlockKind, scale: torch.dtype) -> None:
    found = quantise(weight, BlockForm(kind, 32), scale)
    assert found.values.shape == weight.shape[::-1]
    assert found.scale.shape == (weight.shape[1] // 32, weight.shape[0])
    assert found.scale.dtype == scale
    assert bool((found.scale > 0).all())
    peaks = weight.unflatten(1, (-1, 32)).abs().amax(2, keepdim=True)
    apart = (found.weight() - weight).unflatten(1, (-1, 32)).abs()
    assert bool((apart <= WORST[kind] * peaks + 1e-6).all())


@given(weight=weights())
def test_four_bits_beat_the_plain_scale(weight: torch.Tensor) -> None:
    blocks = weight.unflatten(1, (-1, 32))
    scale = blocks.abs().amax(2, keepdim=True) / 7
    plain = ((blocks / scale).round() * scale - blocks).square().sum()
    found = quantise(weight, BlockForm("int4", 32), torch.float32)
    assert float((found.weight() - weight).square().sum()) <= float(plain) * (1 + 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zero(kind: BlockKind) -> None:
    weight = torch.zeros(3, 64)
    weight[0, 5] = 1.0
    for scale in SCALES:
        found = quantise(weight, BlockForm(kind, 32), scale).weight()
        assert torch.equal(found[1:], weight[1:])
        assert torch.equal(found[0, 6:], weight[0, 6:])


def test_the_whole_range_of_four_bits_is_used() -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    values = quantise(weight, BlockForm("int4", 128), torch.float32).values
    assert (int(values.min()), int(values.max())) == (-8, 7)


@given(st.lists(st.integers(-8, 7), min_size=2, max_size=40).filter(lambda values: len(values) % 2 == 0))
def test_four_bit_values_survive_their_bytes(values: list[int]) -> None:
    raw = packed(torch.tensor(values, dtype=torch.int8), "int4")
    assert len(raw) == len(values) // 2
    assert unpacked(raw, "int4").tolist() == values
    # ONNX: the first of two values lies in the low half.
    assert [int(byte) & 15 for byte in raw] == [value & 15 for value in values[0::2]]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_eight_bit_values_are_their_bytes(kind: BlockKind) -> None:
    values = quantise(torch.randn(4, 32), BlockForm(kind, 32), torch.float32).values
    again = unpacked(packed(values, kind), kind).reshape(values.shape)
    assert np.array_equal(again.view(torch.uint8).numpy(), values.view(torch.uint8).numpy())


@pytest.mark.parametrize(
    ("inputs", "block"),
    [(4096, 128), (896, 128), (128, 64), (576, 64), (96, 32), (48, 16), (40, None), (16, None)],
)
def test_the_longest_block_that_divides(inputs: int, block: int | None) -> None:
    assert block_of(inputs, 128) == block


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_told_beforehand(kind: BlockKind) -> None:
    form = BlockForm(kind, 32)
    found = quantise(torch.randn(6, 64), form, torch.float16)
    values, scale = form.bytes_of((6, 64), torch.float16)
    assert packed(found.values, kind).nbytes == values
    assert found.scale.nbytes == scale
