"""Weights in blocks: what they round to, and their bytes."""

from __future__ import annotations

from typing import get_args

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.exporter.precision.blocks import BlockForm, block_of, packed, quantise, unpacked
from edgeprune.manifest import BlockKind

KINDS: tuple[BlockKind, ...] = get_args(BlockKind)
SCALES = (torch.float32, torch.float16, torch.bfloat16)
# Half a step of the widest candidate scale, relative to a block's largest value, and what rounding it to bf16
# adds; of fp8, half of 2^-3; of nvfp4, half the step from 4 to 6, where the largest value is 5 as no scale
# of e4m3 is larger.
WORST = {"int4": 0.36, "int8": 0.007, "fp8": 0.065, "nvfp4": 0.2}


@st.composite
def weights(draw: st.DrawFn) -> torch.Tensor:
    outputs, blocks = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    seed, size = draw(st.integers(0, 1 << 31)), draw(st.sampled_from([1e-3, 1.0, 30.0]))
    return torch.randn(outputs, 32 * blocks, generator=torch.Generator().manual_seed(seed)) * size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", SCALES, ids=str)
@given(weight=weights())
def test_no_value_is_far_off(weight: torch.Tensor, kind: BlockKind, scale: torch.dtype) -> None:
    block = 16 if kind == "nvfp4" else 32
    form = BlockForm(kind, block)
    found = quantise(weight, form, scale)
    assert found.values.shape == weight.shape[::-1]
    assert found.scale.shape == (weight.shape[1] // block, weight.shape[0])
    assert found.scale.dtype == form.scale_dtype(scale)
    assert bool((found.scale.float() > 0).all())
    peaks = weight.unflatten(1, (-1, block)).abs().amax(2, keepdim=True)
    apart = (found.weight() - weight).unflatten(1, (-1, block)).abs()
    assert bool((apart <= WORST[kind] * peaks + 1e-6).all())


@given(weight=weights())
def test_four_bits_beat_the_plain_scale(weight: torch.Tensor) -> None:
    blocks = weight.unflatten(1, (-1, 32))
    scale = blocks.abs().amax(2, keepdim=True) / 7
    plain = ((blocks / scale).round() * scale - blocks).square().sum()
    found = quantise(weight, BlockForm("int4", 32), torch.float32)
    assert float((found.weight() - weight).square().sum()) <= float(plain) * (1 + 1e-5)


def plain_nvfp4(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.float32, np.ndarray]:
    """A weight [N, K] by the written rule, in numpy: values [N, K], scales [N, K / 16] and [], and the weight
    that they stand for.
    """
    e4m3, e2m1 = ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn
    whole = np.abs(weight).max() / np.float32(6 * 448)
    blocks = (weight / whole).reshape(len(weight), -1, 16)
    peaks = np.abs(blocks).max(-1, keepdims=True)
    found = []
    for peak in np.float32(6), np.float32(4):
        scale = np.clip(peaks / peak, 2.0**-9, 448).astype(e4m3).astype(np.float32)
        values = np.clip(blocks / scale, -6, 6).astype(e2m1).astype(np.float32)
        found.append((scale, values, np.square(blocks - values * scale).sum(-1, keepdims=True)))
    (scale, values, error), (other, others, its_error) = found
    scale, values = (np.where(its_error < error, b, a) for a, b in ((scale, other), (values, others)))
    meant = (values * (scale * whole)).reshape(weight.shape)
    return values.reshape(weight.shape).astype(e2m1), scale[..., 0].astype(e4m3), whole, meant


@settings(derandomize=True)  # of errors that are equal but for their rounding, either scale is right
@given(seed=st.integers(0, 1 << 31), size=st.sampled_from([1e-3, 0.02, 30.0]))
def test_nvfp4_is_what_its_rule_says_bit_by_bit(seed: int, size: float) -> None:
    weight = np.random.default_rng(seed).standard_normal((5, 48)).astype(np.float32) * np.float32(size)
    weight[0, :16] *= 1e-4  # below what a scale of e4m3 can have
    values, scale, whole, meant = plain_nvfp4(weight)
    found = quantise(torch.from_numpy(weight), BlockForm("nvfp4", 16), torch.float16)
    codes = np.ascontiguousarray(values.T).view(np.uint8).reshape(-1)
    assert packed(found.values, "nvfp4").tolist() == (codes[0::2] | (codes[1::2] << 4)).tolist()
    assert found.scale.view(torch.uint8).numpy().tolist() == scale.T.view(np.uint8).tolist()
    assert found.tensor_scale is not None
    assert float(found.tensor_scale) == whole
    assert np.array_equal(found.weight().numpy(), meant)


def test_an_nvfp4_weight_uses_both_ranges() -> None:
    weight = torch.zeros(2, 32)
    weight[0] = torch.linspace(-1, 1, 32)
    found = quantise(weight, BlockForm("nvfp4", 16), torch.float32)
    assert float(found.scale.float().max()) * float(found.values.float().abs().max()) == 6 * 448
    assert float(found.weight().max()) == pytest.approx(1.0, rel=1e-6)


def test_four_bit_floats_survive_their_bytes() -> None:
    every = torch.tensor([sign * size for sign in (1, -1) for size in (0.0, 0.5, 1, 1.5, 2, 3, 4, 6)])
    raw = packed(every.to(torch.float8_e4m3fn), "nvfp4")
    # ONNX: a sign, two bits of exponent, one of mantissa; the first of two values lies in the low half.
    assert [code for byte in raw.tolist() for code in (byte & 15, byte >> 4)] == list(range(16))
    assert unpacked(raw, "nvfp4").float().tolist() == every.tolist()


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
