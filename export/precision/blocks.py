"""A linear layer's weight in blocks: few bits for each value, and a scale for each block.

A block is `block` values of one output's row; its values are kind * scale. Rounding is to the nearest, and
the scale is the one of a few candidates that leaves the least squared error, each refined once to the least
squares solution for the values it rounds to: sum(w q) / sum(q q). Zero is exact and scales are positive, so
that there are no zero points, which not every runtime takes.

Of nvfp4 values are e2m1, scales e4m3, and both together are multiplied with one float32 for the whole weight,
by which its largest value becomes the largest of the two: amax / (6 * 448). That is the two-level scaling of
NVIDIA, Pretraining Large Language Models with NVFP4, arXiv 2509.25149, appendix B. A block's largest value
becomes 6 or 4, whichever leaves less: Cook et al., arXiv 2512.02010.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import torch

from edgeprune.manifest import BlockKind

SMALLEST_BLOCK = 16
_ROWS_AT_ONCE = 64  # of some thousand values, which so stay in a core's cache
# The least scale: of a block of zeros, and in fp16 the least number there is.
_LEAST = {
    torch.float16: 2.0**-24,
    torch.bfloat16: 1e-30,
    torch.float32: 1e-30,
    torch.float8_e4m3fn: 2.0**-9,
}
# What a block's largest value becomes. Beyond the range it is cut off, for finer steps elsewhere.
_PEAKS: dict[BlockKind, tuple[float, ...]] = {
    "int4": (7.0, 8.0, 9.2, 10.6),
    "int8": (127.0,),
    "fp8": (448.0,),
    "nvfp4": (6.0, 4.0),
}
_RANGES: dict[BlockKind, tuple[int, int]] = {"int4": (-8, 7), "int8": (-128, 127)}
BITS: dict[BlockKind, int] = {"int4": 4, "int8": 8, "fp8": 8, "nvfp4": 4}
VALUE_DTYPES: dict[BlockKind, torch.dtype] = {
    "int4": torch.int8,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
    "nvfp4": torch.float8_e4m3fn,  # which holds every e2m1
}
_MOST_E2M1, _MOST_E4M3 = 6.0, 448.0


@dataclass(frozen=True)
class BlockForm:
    """How a weight is to be stored: its kind, and how many values of an output share a scale."""

    kind: BlockKind
    block: int

    def scale_dtype(self, wanted: torch.dtype) -> torch.dtype:
        """The type of its blocks' scales, where `wanted` is that of kinds which leave it open."""
        return torch.float8_e4m3fn if self.kind == "nvfp4" else wanted

    def bytes_of(self, shape: tuple[int, int], scale: torch.dtype) -> tuple[int, int]:
        """Bytes of the values and of the blocks' scales of a weight [N, K]."""
        outputs, inputs = shape
        return (
            math.prod(shape) * BITS[self.kind] // 8,
            inputs // self.block * outputs * self.scale_dtype(scale).itemsize,
        )


@dataclass(frozen=True)
class Blocks:
    """A weight in blocks, as the graph has it: inputs first.

    Attributes:
        values: [K, N], int8 (of int4, -8..7) or float8_e4m3fn (of nvfp4, those that e2m1 has, too).
        scale: [K / block, N], in the type that it is stored in.
        correction: what is added to each value times its scale, as `scale`; None for nothing.
        order: int64 [K], which input each row is for; None where they are in order.
        tensor_scale: float32 [], what every scale is multiplied with; None but of nvfp4.
    """

    values: torch.Tensor
    scale: torch.Tensor
    correction: torch.Tensor | None = None
    order: torch.Tensor | None = None
    tensor_scale: torch.Tensor | None = None

    def weight(self) -> torch.Tensor:
        """The weight it stands for, float32 [N, K]."""
        block = self.values.shape[0] // self.scale.shape[0]
        scale = self.scale.float() if self.tensor_scale is None else self.scale.float() * self.tensor_scale
        rows = self.values.float() * scale.repeat_interleave(block, dim=0)
        if self.correction is not None:
            rows += self.correction.float().repeat_interleave(block, dim=0)
        if self.order is not None:
            rows = rows[self.order.argsort()]
        return rows.T


def block_of(inputs: int, wanted: int) -> int | None:
    """The longest block of `wanted` or half of it and so on, down to 16, that K has two of at least; or None.

    Of a single one TensorRT for RTX 1.7 fails to compile the product.
    """
    block = wanted
    while block >= SMALLEST_BLOCK:
        if inputs % block == 0 and inputs > block:
            return block
        block //= 2
    return None


def quantise(weight: torch.Tensor, form: BlockForm, scale_dtype: torch.dtype) -> Blocks:
    """Rounds a weight [N, K] to the nearest values in blocks.

    Args:
        weight: any floating type; K is a multiple of the block.
        form: what it becomes.
        scale_dtype: of the scales, but for nvfp4; what they are rounded to is what the values are divided by.
    """
    outputs, inputs = weight.shape
    scale_dtype = form.scale_dtype(scale_dtype)
    tensor_scale = None
    if form.kind == "nvfp4":
        most = weight.abs().amax().float() / (_MOST_E2M1 * _MOST_E4M3)
        tensor_scale = most.clamp_min(_LEAST[torch.float32])
    values = torch.empty(inputs, outputs, dtype=VALUE_DTYPES[form.kind])
    scales = torch.empty(inputs // form.block, outputs, dtype=scale_dtype)

    def round_rows(start: int) -> None:
        rows = slice(start, start + _ROWS_AT_ONCE)
        blocks = weight[rows].float().unflatten(1, (-1, form.block))
        if tensor_scale is not None:
            blocks = blocks / tensor_scale
        scale = best_scale(blocks, form.kind, scale_dtype)
        values[:, rows] = rounded(blocks / scale, form.kind).to(values.dtype).flatten(1).T
        scales[:, rows] = scale[..., 0].T

    with _one_thread_each() as pool:
        list(pool.map(round_rows, range(0, outputs, _ROWS_AT_ONCE)))
    return Blocks(values, scales, tensor_scale=tensor_scale)


@contextmanager
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """Threads that each compute by themselves: small steps shared among cores wait for the slowest core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def rounded(values: torch.Tensor, kind: BlockKind) -> torch.Tensor:
    """Float values rounded to what `kind` can hold, still as floats."""
    if kind == "fp8":
        return values.clamp(-_MOST_E4M3, _MOST_E4M3).to(torch.float8_e4m3fn).to(values.dtype)
    if kind == "nvfp4":
        size = values.abs()
        step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))  # between neighbours
        return (values / step).round_().mul_(step).clamp_(-_MOST_E2M1, _MOST_E2M1)
    low, high = _RANGES[kind]
    return values.round().clamp_(low, high)


def best_scale(blocks: torch.Tensor, kind: BlockKind, dtype: torch.dtype) -> torch.Tensor:
    """The scale of each block, positive; see the module.

    Args:
        blocks: float32 [..., block].
        kind: what the values become.
        dtype: the scale is one that this can hold.

    Returns:
        float32 [..., 1].
    """
    least, most = _LEAST[dtype], torch.finfo(dtype).max
    peak = blocks.abs().amax(-1, keepdim=True)
    best_error = best = None
    for size in _PEAKS[kind]:
        scale = (peak / size).clamp_min(least)
        if kind in _RANGES:
            values = rounded(blocks / scale, kind)
            along = (blocks * values).sum(-1, keepdim=True)
            refined = along / values.square().sum(-1, keepdim=True).clamp_min(1)
            scale = torch.where(refined > least, refined, scale)
        scale = scale.clamp_max(most).to(dtype).float()
        left = torch.addcmul(blocks, rounded(blocks / scale, kind), scale, value=-1)
        error = left.square_().sum(-1, keepdim=True)
        if best is None or best_error is None:
            best, best_error = scale, error
        else:
            better = error < best_error
            best, best_error = torch.where(better, scale, best), torch.where(better, error, best_error)
    assert best is not None
    return best


def packed(values: torch.Tensor, kind: BlockKind) -> torch.Tensor:
    """The bytes of values, uint8 in ONNX's order: of two 4 bit values the first is in the low half."""
    raw = values.contiguous().reshape(-1).view(torch.uint8)
    if kind == "nvfp4":
        narrow = raw.numpy().view(ml_dtypes.float8_e4m3fn).astype(ml_dtypes.float4_e2m1fn)
        raw = torch.from_numpy(narrow.view(np.uint8))
    if BITS[kind] == 8:
        return raw
    return (raw[0::2] & 15) | (raw[1::2] << 4)


def unpacked(raw: torch.Tensor, kind: BlockKind) -> torch.Tensor:
    """What `packed` packed, flat, in the type of `VALUE_DTYPES`."""
    if kind == "fp8":
        return raw.view(torch.float8_e4m3fn)
    if BITS[kind] == 8:
        return raw.view(torch.int8)
    # To the upper half of a byte and back: the shift down repeats the sign.
    halves = torch.stack([raw << 4, raw & 240], dim=-1).reshape(-1)
    if kind == "nvfp4":
        wide = (halves >> 4).numpy().view(ml_dtypes.float4_e2m1fn).astype(ml_dtypes.float8_e4m3fn)
        return torch.from_numpy(wide.view(np.uint8)).view(torch.float8_e4m3fn)
    return halves.view(torch.int8) >> 4
