"""Model folders turned into quantised checkpoints, in the layouts that quantisers publish.

Written from the formats' descriptions and by loops, not with the code under test. Values are made by
rounding; nothing is calibrated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

GROUP = 16
# Linear layers of the language model; quantisers leave the vision tower, the projector and the head alone.
_LINEAR = re.compile(r"layers\.\d+\.(self_attn|mlp)\.\w+proj\.weight$")
_VISION = re.compile(r"vision|visual|tower|projector")

Parts = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Integers:
    """A quantised matrix: values [K, N] of 0 and more, and of each group of rows scale and zero point [G, N].

    `groups` [K] is each row's.
    """

    bits: int
    values: NDArray[np.int64]
    scale: torch.Tensor
    zeros: NDArray[np.int64]
    groups: NDArray[np.int64]

    def dequantised(self) -> torch.Tensor:
        """float32 [N, K]."""
        numbers = torch.from_numpy(self.values - self.zeros[self.groups]).float()
        return (numbers * self.scale.float()[torch.from_numpy(self.groups)]).T.contiguous()


def rounded(
    weight: torch.Tensor,
    bits: int = 4,
    group: int = GROUP,
    symmetric: bool = False,
    dtype: torch.dtype = torch.float16,
    groups: NDArray[np.int64] | None = None,
) -> Integers:
    """A weight [N, K] rounded to integers between the least and the greatest value of a group."""
    rows = weight.detach().float().T.numpy()
    groups = np.arange(len(rows)) // group if groups is None else groups
    top = 2**bits - 1
    scales, zeros = [], []
    for number in range(groups.max() + 1):
        own = rows[groups == number]
        low, high = np.minimum(own.min(axis=0), 0), np.maximum(own.max(axis=0), 0)
        if symmetric:
            high = np.maximum(-low, high)
            low = -high
        scale = torch.from_numpy((high - low) / top + 1e-6).to(dtype)
        scales.append(scale)
        middle = np.full(low.shape, 2 ** (bits - 1))
        zeros.append(middle if symmetric else np.clip(np.round(-low / scale.float().numpy()), 0, top))
    scale, zero = torch.stack(scales), np.stack(zeros).astype(np.int64)
    values = np.round(rows / scale.float().numpy()[groups]) + zero[groups]
    return Integers(bits, np.clip(values, 0, top).astype(np.int64), scale, zero, groups)


def words(fields: NDArray[np.int64], bits: int) -> torch.Tensor:
    """Neighbours along the last axis in words of 32 bits, the first one lowest; filled up with zeros."""
    per = 32 // bits
    short = -fields.shape[-1] % per
    fields = np.pad(fields, [(0, 0)] * (fields.ndim - 1) + [(0, short)])
    found = sum(fields[..., place::per].astype(np.uint64) << np.uint64(bits * place) for place in range(per))
    return torch.from_numpy(np.asarray(found).astype(np.uint32).view(np.int32))


def awq(matrix: Integers) -> Parts:
    """AutoAWQ's GEMM layout: words along N; eight columns stand in the order 0 2 4 6 1 3 5 7."""

    def along_columns(fields: NDArray[np.int64]) -> torch.Tensor:
        eights = fields.reshape(len(fields), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
        return words(eights.reshape(fields.shape), 4)

    return {
        "qweight": along_columns(matrix.values),
        "qzeros": along_columns(matrix.zeros),
        "scales": matrix.scale,
    }


def gptq(matrix: Integers, less_one: bool = True) -> Parts:
    """GPTQ's layout: words along K, zero points along N, in the first format less one in every field."""
    zeros = words(matrix.zeros, matrix.bits)
    if less_one:
        ones = sum(1 << place for place in range(0, 32, matrix.bits))
        zeros = torch.from_numpy((zeros.numpy().view(np.uint32) - np.uint32(ones)).view(np.int32))
    return {
        "qweight": words(matrix.values.T, matrix.bits).T.contiguous(),
        "qzeros": zeros,
        "scales": matrix.scale,
        "g_idx": torch.from_numpy(matrix.groups.astype(np.int32)),
    }


def packed(matrix: Integers, symmetric: bool) -> Parts:
    """compressed-tensors' pack-quantized: words along K of [N, K], zero points in words along N of [N, G]."""
    parts = {
        "weight_packed": words(matrix.values.T, matrix.bits),
        "weight_scale": matrix.scale.T.contiguous(),
        "weight_shape": torch.tensor(matrix.values.T.shape),
    }
    if not symmetric:
        parts["weight_zero_point"] = words(matrix.zeros, matrix.bits).T.contiguous()
    return parts


def float8(
    weight: torch.Tensor, block: tuple[int, int] | None, dtype: torch.dtype
) -> tuple[Parts, torch.Tensor]:
    """Float8 values [N, K] and the scales of blocks of this size, and what they stand for."""
    n, k = weight.shape
    height, width = block or (n, k)
    scale = torch.empty(-(-n // height), -(-k // width))
    for row, column in np.ndindex(*scale.shape):
        own = weight[row * height : (row + 1) * height, column * width : (column + 1) * width]
        scale[row, column] = own.abs().max() / 448 + 1e-9
    scale = scale.to(dtype)
    whole = scale.float().repeat_interleave(height, 0)[:n].repeat_interleave(width, 1)[:, :k]
    values = (weight / whole).clamp(-448, 448).to(torch.float8_e4m3fn)
    return {"weight": values, "weight_scale": scale}, values.float() * whole


def _awq(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    matrix = rounded(weight)
    return awq(matrix), matrix.dequantised()


def _gptq(**options: Any) -> Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]:
    less_one, shuffled = options.pop("less_one", True), options.pop("shuffled", False)

    def quantise(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        groups = None
        if shuffled:  # by what a row's activations weigh, which here is chance
            groups = np.random.default_rng(weight.shape[1]).permutation(np.arange(weight.shape[1]) // GROUP)
        matrix = rounded(weight, groups=groups, **options)
        return gptq(matrix, less_one), matrix.dequantised()

    return quantise


def _packed(symmetric: bool, bits: int = 4) -> Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]:
    def quantise(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        matrix = rounded(weight, bits, symmetric=symmetric, dtype=torch.bfloat16)
        return packed(matrix, symmetric), matrix.dequantised()

    return quantise


def _int8(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    """compressed-tensors' int-quantized: one scale a channel."""
    matrix = rounded(weight, 8, weight.shape[1], symmetric=True, dtype=torch.bfloat16)
    values = torch.from_numpy((matrix.values.T - 128).astype(np.int8))
    return {"weight": values, "weight_scale": matrix.scale.T.contiguous()}, matrix.dequantised()


def _float8(kind: str) -> Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]:
    def quantise(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        if kind == "block":
            parts, whole = float8(weight, (GROUP, GROUP), torch.float32)
            return {"weight": parts["weight"], "weight_scale_inv": parts["weight_scale"]}, whole
        parts, whole = float8(weight, (1, weight.shape[1]) if kind == "channel" else None, torch.bfloat16)
        if kind == "tensor":
            parts = {**parts, "weight_scale": parts["weight_scale"].reshape(1), "input_scale": torch.ones(1)}
        return parts, whole

    return quantise


def _gptq_config(**changes: Any) -> dict[str, Any]:
    """As GPTQModel writes it."""
    return {
        "bits": 4,
        "checkpoint_format": "gptq",
        "desc_act": False,
        "group_size": GROUP,
        "lm_head": False,
        "meta": {"damp_percent": 0.01, "quantizer": ["gptqmodel:2.0.0"], "true_sequential": True},
        "pack_dtype": "int32",
        "quant_method": "gptq",
        "sym": True,
        **changes,
    }


def _compressed_config(layout: str, inputs: bool, **weights: Any) -> dict[str, Any]:
    """As LLM Compressor writes it."""
    every = {
        "actorder": None,
        "block_structure": None,
        "dynamic": False,
        "group_size": None,
        "observer": "minmax",
    }
    weights = {**every, "observer_kwargs": {}, "symmetric": True, **weights}
    activations = {**weights, "dynamic": True, "observer": None, "strategy": "token", "symmetric": True}
    group = {
        "input_activations": activations if inputs else None,
        "output_activations": None,
        "targets": ["Linear"],
        "weights": weights,
    }
    return {
        "config_groups": {"group_0": group},
        "format": layout,
        "global_compression_ratio": None,
        "ignore": ["lm_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


_INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
_AWQ = {"bits": 4, "group_size": GROUP, "quant_method": "awq", "version": "gemm", "zero_point": True}
_UNTOUCHED = ["vision_tower", "multi_modal_projector"]
_FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [GROUP, GROUP],
}

# By layout: what becomes of a weight, and the quantization_config.
LAYOUTS: dict[str, tuple[Callable[[torch.Tensor], tuple[Parts, torch.Tensor]], dict[str, Any]]] = {
    "awq": (_awq, {**_AWQ, "modules_to_not_convert": _UNTOUCHED}),
    "gptq": (_gptq(symmetric=True), _gptq_config()),
    "gptq-asymmetric": (_gptq(), _gptq_config(sym=False)),
    "gptq-v2": (_gptq(less_one=False), _gptq_config(sym=False, checkpoint_format="gptq_v2")),
    "gptq-8": (_gptq(bits=8, symmetric=True), _gptq_config(bits=8)),
    "gptq-act-order": (_gptq(symmetric=True, shuffled=True), _gptq_config(desc_act=True)),
    "compressed-tensors": (_packed(True), _compressed_config("pack-quantized", False, **_INT4)),
    "compressed-tensors-asymmetric": (
        _packed(False),
        _compressed_config("pack-quantized", False, **_INT4, symmetric=False),
    ),
    "compressed-tensors-8": (
        _packed(True, 8),
        _compressed_config("pack-quantized", False, **{**_INT4, "num_bits": 8}),
    ),
    "int8": (_int8, _compressed_config("int-quantized", True, num_bits=8, type="int", strategy="channel")),
    "fp8-tensor": (
        _float8("tensor"),
        {"activation_scheme": "static", "ignored_layers": ["lm_head"], "quant_method": "fp8"},
    ),
    "fp8-channel": (
        _float8("channel"),
        _compressed_config("float-quantized", True, num_bits=8, type="float", strategy="channel"),
    ),
    "fp8-block": (_float8("block"), {**_FP8, "modules_to_not_convert": [*_UNTOUCHED, "lm_head"]}),
}


def quantise_folder(folder: Path, layout: str) -> dict[str, torch.Tensor]:
    """Quantises the language model of a folder with one file of weights, in place.

    Returns:
        What the checkpoint now stands for, by the keys that it had: quantised weights float32, the others as
        they are. `save_dequantised` makes an ordinary checkpoint of it.
    """
    quantise, config = LAYOUTS[layout]
    path = folder / "model.safetensors"
    stored: dict[str, torch.Tensor] = {}
    meant: dict[str, torch.Tensor] = {}
    for key, tensor in load_file(path).items():
        if not _LINEAR.search(key) or _VISION.search(key):
            stored[key] = meant[key] = tensor
            continue
        parts, meant[key] = quantise(tensor.float())
        stored.update(
            {f"{key.removesuffix('weight')}{part}": value.contiguous() for part, value in parts.items()}
        )
    assert len(stored) > len(meant), "nothing was quantised"
    save_file(stored, path, metadata={"format": "pt"})
    text = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**text, "quantization_config": config}, indent=2))
    return meant


def save_dequantised(
    folder: Path, meant: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32
) -> None:
    """Makes a quantised folder the ordinary checkpoint of the values that it stands for."""
    tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in meant.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    text = json.loads((folder / "config.json").read_text())
    del text["quantization_config"]
    (folder / "config.json").write_text(json.dumps(text, indent=2))
