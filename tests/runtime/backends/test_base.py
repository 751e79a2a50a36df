"""bfloat16 bits against torch's own conversion."""

from __future__ import annotations

import numpy as np
import torch

from edgeprune.runtime.backends.base import to_bfloat16_bits


def test_bits_equal_torch_s_rounding() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, size=20_000, dtype=np.uint32)
    # Halves between two bfloat16 values, which go to the even one, and values near the largest.
    halves = np.array(
        [0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x00008000, 0x80000000], dtype=np.uint32
    )
    values = np.concatenate([bits, halves]).view(np.float32)
    values = values[~np.isnan(values)]
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(to_bfloat16_bits(values), expected)


def test_nan_and_infinity_stay_what_they_are() -> None:
    # The first NaN's bits would round to those of infinity.
    bits = np.array([0x7F800001, 0xFFC00000, 0x7F800000, 0xFF800000], dtype=np.uint32)
    values = bits.view(np.float32)
    back = torch.from_numpy(to_bfloat16_bits(values).view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(back, values)


def test_half_precision_and_other_shapes_are_taken() -> None:
    bits = to_bfloat16_bits(np.array([[1.0, -2.0]], dtype=np.float16))
    assert bits.tolist() == [[0x3F80, 0xC000]]
