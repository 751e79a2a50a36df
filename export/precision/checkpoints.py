"""Quantised linear layers of checkpoints, repacked without loss into the form that graphs have of them.

A graph computes `MatMul(x, DequantizeLinear(values, scale, zero))` with values [K, N], K input and N output
features, in blocks along K. Checkpoints keep the same integers in other places: AWQ packs eight of them in a
word along N, in an order of its own; GPTQ along K; compressed-tensors along K of [N, K]. Repacking moves bits
and rounds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.exporter.precision.quantisers import Scheme
from edgeprune.fields import shown

_VALUES = ("qweight", "weight_packed", "weight")
# Where in a word of AWQ each of eight columns is: its nibbles hold the columns 0, 2, 4, 6, 1, 3, 5, 7.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
# ONNX Runtime fuses integer blocks of 16 to 256, TensorRT's documents name 64 and 128: longer groups are cut.
_LEAST, _MOST = 16, 128

_INTEGERS = (torch.int32,)
_SCALES = (torch.float16, torch.bfloat16, torch.float32, torch.float8_e8m0fnu)
# By part of a quantised layer.
_DTYPES: dict[str, tuple[torch.dtype, ...]] = {
    "qweight": _INTEGERS,
    "qzeros": _INTEGERS,
    "scales": _SCALES,
    "g_idx": _INTEGERS,
    "weight_packed": _INTEGERS,
    "weight": (torch.float8_e4m3fn, torch.int8),
    "weight_scale": _SCALES,
    "weight_scale_inv": _SCALES,
    "weight_zero_point": (torch.int32, torch.int8),
    "weight_shape": (torch.int64, torch.int32),
    "weight_g_idx": _INTEGERS,
}
# What stands in the place of `weight`, or beside it.
_PARTS = frozenset(_DTYPES) - {"weight"}


class _Tensor(Protocol):
    """What a tensor and its entry in a file's header have in common."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def dtype(self) -> torch.dtype: ...


T = TypeVar("T", bound=_Tensor)


@dataclass(frozen=True)
class Repacked:
    """A linear layer's weight as a graph holds it.

    Attributes:
        bits: of a value, 4 or 8.
        kind: what the values are; unsigned ones have zero points.
        values: uint8, the packed bytes of [K, N] by rows; of 4 bits two a byte, the first one low.
        scale: [K / block, N], float16, bfloat16 (of `ml_dtypes`) or float32 as the checkpoint has it.
        zero: zero points of [K / block, N], packed as the values; None where they are 0.
        block: rows that share a scale.
        order: int64 [K], which input feature each row is for; None where rows are in order. The graph
            gathers x by it.
        shape: (K, N), input and output features.
    """

    bits: int
    kind: Literal["int4", "uint4", "int8", "uint8", "fp8"]
    values: NDArray[np.uint8]
    scale: NDArray[Any]
    zero: NDArray[np.uint8] | None
    block: int
    order: NDArray[np.int64] | None
    shape: tuple[int, int]


def as_weight(key: str) -> tuple[str, str | None]:
    """The key that an unquantised checkpoint has in the place of this one, and which part of a layer this is.

    Renamings know keys of parameters alone: rename the first, and put the part back by `of_weight`.
    """
    stem, dot, part = key.rpartition(".")
    return (f"{stem}{dot}weight", part) if part in _PARTS else (key, None)


def of_weight(name: str, part: str | None) -> str:
    """The name of a part of the layer whose weight is called so."""
    return name if part is None else f"{name.removesuffix('weight')}{part}"


def group_layers(stored: Mapping[str, T], renamed: Mapping[str, str]) -> dict[str, dict[str, T]]:
    """The tensors of every quantised linear layer, by the name of its weight and then by part.

    Args:
        stored: the tensors of the checkpoint by key.
        renamed: their names by key, as `weights.rename_map` gives them.

    Returns:
        Of each layer its parts, among them one of qweight, weight_packed and (with weight_scale or
        weight_scale_inv) weight. Layers with nothing but a weight are none of these.

    Raises:
        InputError: a part is stored twice, or parts of a layer are missing.
        UnsupportedModelError: scales belong to no weight (AWQ's scaled activations).
    """
    layers: dict[str, dict[str, T]] = {}
    keys: dict[str, str] = {}

    def add(key: str, weight: str, part: str) -> None:
        if (name := of_weight(weight, part)) in keys:
            raise InputError(
                f"the checkpoint stores {shown(name)} twice, as {shown(keys[name])} and as {shown(key)}: "
                "expected it once; download the model again"
            )
        keys[name] = key
        layers.setdefault(weight, {})[part] = stored[key]

    for key, name in renamed.items():
        weight, part = as_weight(name)
        if part is not None:
            add(key, weight, part)
    for key, name in renamed.items():
        if name in layers:
            add(key, name, "weight")
    for weight, layer in layers.items():
        if set(layer) == {"scales"}:
            raise UnsupportedModelError(
                f"the checkpoint scales an activation by {shown(keys[of_weight(weight, 'scales')])}, which "
                "is not supported: export the original model, from before quantisation"
            )
        values = [part for part in _VALUES if part in layer]
        needed = {"qzeros", "scales"} if "qweight" in layer else {_scale_part(layer)}
        if len(values) != 1 or not needed <= set(layer):
            raise InputError(
                f"the checkpoint stores {', '.join(sorted(layer))} for {shown(weight)}: expected the values "
                "of a quantised layer once, and their scales; download the model again"
            )
    return layers


def check_layer(scheme: Scheme, name: str, layer: Mapping[str, _Tensor], shape: tuple[int, int]) -> int:
    """The bits of a quantised layer, when its tensors' types and shapes belong to a weight of this shape.

    Args:
        scheme: of the checkpoint.
        name: of the weight, for messages.
        layer: as `group_layers` gives it; entries of a header do.
        shape: [N, K] of the weight by the config.

    Raises:
        InputError: a tensor has another type or shape than the config makes.
    """
    n, k = shape
    for part, tensor in layer.items():
        if tensor.dtype not in _DTYPES[part]:
            raise _mismatch(name, part, tensor, " or ".join(map(str, _DTYPES[part])))

    def check(part: str, *wanted: tuple[int, ...]) -> int:
        """Which of the shapes a part has, if the layer has the part."""
        if part not in layer:
            return 0
        if (found := tuple(layer[part].shape)) not in wanted:
            forms = " or ".join(map(str, wanted)) or "another shape"
            raise _mismatch(name, part, layer[part], f"{forms} for a weight {shape} by config.json")
        return wanted.index(found)

    check("g_idx", (k,))
    check("weight_g_idx", (k,))
    check("weight_shape", (2,))
    if "qweight" in layer:
        if scheme.kind == "awq":
            bits = 4
            check("qweight", *([(k, n // 8)] if n % 8 == 0 else []))
        else:
            fitting = [bits for bits in (4, 8) if k * bits % 32 == n * bits % 32 == 0]
            found = check("qweight", *[(k * bits // 32, n) for bits in fitting])
            bits = fitting[found]
        groups = layer["scales"].shape[0] if layer["scales"].shape else 0
        check("scales", *([(groups, n)] if "g_idx" in layer or _group_rows(scheme, k, groups) else []))
        check("qzeros", (groups, n * bits // 32))
        return bits
    check("weight", (n, k))
    bits = (4, 8)[check("weight_packed", *[(n, math.ceil(k * bits / 32)) for bits in (4, 8)])]
    bits = 8 if "weight" in layer else bits
    scale = _scale_part(layer)
    entries = tuple(layer[scale].shape)
    if (form := _scale_form(scheme, entries, shape)) is None:
        check(scale)
    elif "weight_zero_point" in layer:
        packed = layer["weight_zero_point"].dtype == torch.int32
        check("weight_zero_point", (math.ceil(n * bits / 32), len(form.rows)) if packed else entries)
    return bits


def repack(scheme: Scheme, name: str, layer: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> Repacked:
    """A quantised layer in the form of graphs, of the same values bit by bit.

    Args:
        scheme: of the checkpoint.
        name: of the weight, for messages.
        layer: as `group_layers` gives it, with the values of the tensors.
        shape: [N, K] of the weight by the config.

    Raises:
        InputError: as `check_layer`, or values that contradict the shapes.
        UnsupportedModelError: groups of rows that cannot be cut into blocks of 16 or more.
    """
    found = frame(scheme, name, layer, shape)
    codes = _codes(scheme, layer, found.bits)
    if found.order is not None:
        codes = codes[found.order]
    if found.kind in ("int4", "int8"):
        codes = codes ^ np.uint8(1 << (found.bits - 1))
    return replace(found, values=_packed(codes, found.bits))


def frame(scheme: Scheme, name: str, layer: Mapping[str, Any], shape: tuple[int, int]) -> Repacked:
    """A layer as `repack` makes it, but for its values, of which there are none.

    Args:
        scheme, name, shape: as for `repack`.
        layer: the same; of the part that has the values, a header's entry is enough.

    Raises:
        InputError, UnsupportedModelError: as `repack`.
    """
    bits = check_layer(scheme, name, layer, shape)
    n, k = shape
    none = np.empty(0, np.uint8)
    of_words = "qweight" in layer
    scale, zeros, rows = (_of_words if of_words else _of_output_rows)(scheme, layer, bits, shape)
    if "weight_shape" in layer and tuple(layer["weight_shape"].tolist()) != shape:
        raise _mismatch(name, "weight_shape", layer["weight_shape"], f"{list(shape)} by config.json")
    if "weight" in layer and layer["weight"].dtype == torch.float8_e4m3fn:
        block, repeats = _blocks(name, rows)
        scale = np.repeat(scale, repeats, axis=0)
        return Repacked(8, "fp8", none, scale, None, block, None, (k, n))
    order: NDArray[np.int64] | None = None
    index = layer.get("g_idx", layer.get("weight_g_idx"))
    # compressed-tensors leaves -1 in an index that it does not use.
    if index is not None and not bool((index == -1).all()):
        places = _array(index)
        if places.min() < 0 or places.max() >= len(scale):
            raise _mismatch(name, "g_idx", index, f"{len(scale)} groups")
        rows = np.bincount(places, minlength=len(scale)).tolist()
        if (np.diff(places) < 0).any():
            order = np.argsort(places, kind="stable").astype(np.int64)
    block, repeats = _blocks(name, rows)
    middle = np.uint8(1 << (bits - 1))
    scale = np.repeat(scale, repeats, axis=0)
    if zeros is None or (zeros == middle).all():
        signed: Literal["int4", "int8"] = "int4" if bits == 4 else "int8"
        return Repacked(bits, signed, none, scale, None, block, order, (k, n))
    unsigned: Literal["uint4", "uint8"] = "uint4" if bits == 4 else "uint8"
    zero = _packed(np.repeat(zeros, repeats, axis=0), bits)
    return Repacked(bits, unsigned, none, scale, zero, block, order, (k, n))


def dequantise(weight: Repacked) -> NDArray[np.float32]:
    """The weight's values, float32 [N, K]: (value - zero) * scale, of input features in their own order."""
    k, n = weight.shape
    if weight.kind == "fp8":
        values = weight.values.view(ml_dtypes.float8_e4m3fn).reshape(k, n).astype(np.float32)
    else:
        values = _numbers(weight.values, weight, k)
    if weight.zero is not None:
        values -= np.repeat(_numbers(weight.zero, weight, k // weight.block), weight.block, axis=0)
    values *= np.repeat(weight.scale.astype(np.float32), weight.block, axis=0)
    if weight.order is not None:
        sorted_rows, values = values, np.empty_like(values)
        values[weight.order] = sorted_rows
    return np.ascontiguousarray(values.T)


def without_zeros(weight: Repacked) -> tuple[Repacked, NDArray[np.float32] | None]:
    """The same layer for a runtime that knows no zero points, as TensorRT: symmetric, and a correction.

    With q the values, z the zero points, s the scales and m the middle of the range,
    `x @ ((q - z) * s)` is `x @ ((q - m) * s) + sums(x) @ ((m - z) * s)`, where sums(x) [.., K / block] adds
    x up over the rows of each block.

    Returns:
        The layer without zero points, and (m - z) * s, float32 [K / block, N]; None where there were none.
    """
    if weight.zero is None:
        return weight, None
    k, _ = weight.shape
    middle = 1 << (weight.bits - 1)
    zero = _numbers(weight.zero, weight, k // weight.block)
    correction = (np.float32(middle) - zero) * weight.scale.astype(np.float32)
    signed: Literal["int4", "int8"] = "int4" if weight.bits == 4 else "int8"
    # The difference to the middle as two's complement is the value with its highest bit turned.
    turned = weight.values ^ np.uint8(0x88 if weight.bits == 4 else 0x80)
    return replace(weight, kind=signed, values=turned, zero=None), correction


def _codes(scheme: Scheme, layer: Mapping[str, torch.Tensor], bits: int) -> NDArray[np.uint8]:
    """The values [K, N] of 0 and more, of float8 their bytes."""
    if "qweight" in layer:
        words = _array(layer["qweight"])
        return _awq_columns(words) if scheme.kind == "awq" else _unpacked(words, bits, 0)
    if "weight_packed" in layer:
        return _unpacked(_array(layer["weight_packed"]), bits, 1).T
    codes = _array(layer["weight"]).view(np.uint8)
    return (codes ^ np.uint8(0x80) if layer["weight"].dtype == torch.int8 else codes).T  # less -128


# Scales [groups, N], zero points alike or None, rows of groups.
_Parts = tuple[NDArray[Any], "NDArray[np.uint8] | None", list[int]]


def _of_words(scheme: Scheme, layer: Mapping[str, torch.Tensor], bits: int, shape: tuple[int, int]) -> _Parts:
    """Of a layer of AWQ, packed along N, or of GPTQ, packed along K."""
    scale, zeros = _array(layer["scales"]), _array(layer["qzeros"])
    rows = _group_rows(scheme, shape[1], len(scale))
    if scheme.kind == "awq":
        return scale, _awq_columns(zeros), rows
    if scheme.zeros_less_one:
        # In the whole word, borrows and all: storing a zero point of 0 took one from its neighbour.
        zeros = zeros.view(np.uint32) + np.uint32(0x11111111 if bits == 4 else 0x01010101)
    return scale, _unpacked(zeros, bits, 1), rows


def _of_output_rows(
    scheme: Scheme, layer: Mapping[str, torch.Tensor], bits: int, shape: tuple[int, int]
) -> _Parts:
    """Of a layer of compressed-tensors or float8: [N, K], packed along K or not."""
    n, _ = shape
    entries = _array(layer[_scale_part(layer)])
    form = _scale_form(scheme, entries.shape, shape)
    assert form is not None  # `check_layer` has seen to it
    zeros: NDArray[np.uint8] | None = None
    if (stored := layer.get("weight_zero_point")) is not None:
        if stored.dtype == torch.int32:  # packed along N
            zeros = _unpacked(_array(stored), bits, 0)
        else:
            zeros = (_array(stored).astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
        zeros = form.spread(zeros, n)
    return form.spread(entries, n), zeros, form.rows


@dataclass(frozen=True)
class _ScaleForm:
    """Scales of compressed-tensors and float8: by tensor, channel, group or block.

    Attributes:
        rows: how many input features each group has.
        outputs: how many output features share an entry.
    """

    rows: list[int]
    outputs: int

    def spread(self, entries: NDArray[Any], n: int) -> NDArray[Any]:
        """The same as [groups, N]."""
        grid = entries.reshape(-1, len(self.rows)).repeat(self.outputs, axis=0)[:n]
        return np.ascontiguousarray(grid.T)


def _scale_form(scheme: Scheme, entries: tuple[int, ...], shape: tuple[int, int]) -> _ScaleForm | None:
    """What scales of these dimensions say of a weight [N, K]; None where they are none of such a weight."""
    n, k = shape
    if math.prod(entries) == 1:
        return _ScaleForm([k], n)
    if entries in ((n,), (n, 1)):
        return _ScaleForm([k], 1)
    if len(entries) != 2:
        return None
    if entries[0] == n:
        rows = _group_rows(scheme, k, entries[1])
        return _ScaleForm(rows, 1) if rows else None
    height, width = scheme.block or (128, 128)
    if entries != (math.ceil(n / height), math.ceil(k / width)):
        return None
    return _ScaleForm(_cut(k, width), height)


def _group_rows(scheme: Scheme, k: int, groups: int) -> list[int]:
    """Rows of each group; empty where so many groups cannot be."""
    if scheme.group is not None and math.ceil(k / scheme.group) == groups:
        return _cut(k, scheme.group)
    return [k // groups] * groups if groups and k % groups == 0 else []


def _cut(length: int, size: int) -> list[int]:
    """Lengths of pieces of one size; the last may be shorter."""
    return [min(size, length - start) for start in range(0, length, size)]


def _blocks(name: str, rows: Sequence[int]) -> tuple[int, list[int]]:
    """The longest block that all groups are made of, up to 128 rows, and how many each group has.

    Of a single one TensorRT for RTX 1.7 fails to compile the product.
    """
    block = math.gcd(_MOST, *rows)
    if block == sum(rows) and block > _LEAST:
        block //= 2
    if block < _LEAST:
        raise UnsupportedModelError(
            f"{shown(name)} is quantised in groups of {shown(sorted(set(rows)))} input features, "
            f"which cannot be cut into blocks of {_LEAST} or more: export the original model, from before "
            "quantisation"
        )
    return block, [count // block for count in rows]


def _scale_part(layer: Mapping[str, Any]) -> str:
    """What the scales of a layer with `weight` or `weight_packed` are called."""
    return "weight_scale_inv" if "weight_scale_inv" in layer else "weight_scale"


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    """The tensor's memory as numpy sees it; types that numpy has not, bit by bit."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8).numpy()
    if tensor.dtype == torch.float8_e8m0fnu:  # powers of two, which no graph has as scales
        return tensor.float().numpy()
    return tensor.numpy()


def _unpacked(words: NDArray[Any], bits: int, axis: int) -> NDArray[np.uint8]:
    """The fields of 32-bit words [R, C], lowest first, side by side along `axis`."""
    words = words.view(np.uint32)
    mask = np.uint32((1 << bits) - 1)
    fields = [((words >> np.uint32(low)) & mask).astype(np.uint8) for low in range(0, 32, bits)]
    shape = list(words.shape)
    shape[axis] *= len(fields)
    return np.stack(fields, axis=axis + 1).reshape(shape)


def _awq_columns(words: NDArray[Any]) -> NDArray[np.uint8]:
    """[R, C] words of AWQ as [R, 8 C] columns in their order."""
    fields = _unpacked(words, 4, 1)
    return np.ascontiguousarray(fields.reshape(len(fields), -1, 8)[:, :, _AWQ_PLACES]).reshape(fields.shape)


def _packed(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Values as ONNX keeps them: of 4 bits two a byte by rows, the first one low, the last byte filled up."""
    flat = np.ascontiguousarray(values).ravel()
    if bits == 8:
        return flat
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return flat[0::2] | (flat[1::2] << np.uint8(4))


def _numbers(packed: NDArray[np.uint8], weight: Repacked, rows: int) -> NDArray[np.float32]:
    """Packed integers of a weight's kind as numbers, float32 [rows, N]."""
    count = rows * weight.shape[1]
    codes = packed if weight.bits == 8 else np.stack([packed & 15, packed >> 4], axis=1).ravel()[:count]
    numbers = codes.reshape(rows, -1).astype(np.float32)
    if weight.kind in ("int4", "int8"):
        numbers -= (1 << weight.bits) * (numbers >= 1 << (weight.bits - 1))
    return numbers


def _mismatch(name: str, part: str, tensor: _Tensor, expected: str) -> InputError:
    return InputError(
        f"the checkpoint stores {part} of {shown(name)} as {tensor.dtype} of shape {tuple(tensor.shape)}, "
        f"expected {expected}: config.json and the weights do not belong together"
    )
