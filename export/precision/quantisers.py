"""What a model folder says of its quantised weights: by whom, and in which of the forms that repack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeprune.errors import UnsupportedModelError
from edgeprune.fields import shown
from edgeprune.json_file import read_json
from edgeprune.log import note

Kind = Literal["awq", "gptq", "compressed-tensors", "fp8"]

# The fields of config.json, and the files beside it, in which a quantiser describes what it did, and the
# quantiser where it does not say who it is.
_FIELDS: dict[str, Kind | None] = {"quantization_config": None, "compression_config": "compressed-tensors"}
_FILES: dict[str, Kind | None] = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": None,
}
_NAMES = ("quant_method", "quant_algo", "format", "load_in_4bit", "load_in_8bit", "producer")

# The formats of compressed-tensors that hold one integer or one float8 a weight: the type, and its bits.
_FORMATS: dict[str, tuple[tuple[str, int], ...]] = {
    "pack-quantized": (("int", 4), ("int", 8)),
    "int-quantized": (("int", 8),),
    "float-quantized": (("float", 8),),
    "naive-quantized": (("int", 8), ("float", 8)),
}


@dataclass(frozen=True)
class Scheme:
    """How a checkpoint's quantised weights are stored.

    What belongs to one layer alone (its bits, its groups, whether it is quantised at all) its tensors say.

    Attributes:
        kind: whose layout it is.
        bits: of a weight; the fewest, where layers differ.
        group: input features that share a scale; None where all do, or a `block`'s.
        symmetric: whether zero points are all in the middle. A checkpoint may store them all the same.
        act_order: whether the input features of a group may lie apart, as GPTQ's desc_act has them.
        zeros_less_one: whether zero points are stored less one, as GPTQ's first format has them.
        block: output and input features that share a scale, in formats with such blocks.
        activations: whether activations were to be quantised, too.
    """

    kind: Kind
    bits: int
    group: int | None = None
    symmetric: bool = True
    act_order: bool = False
    zeros_less_one: bool = False
    block: tuple[int, int] | None = None
    activations: bool = False


@dataclass(frozen=True)
class Description:
    """What a quantiser left in a model folder.

    Attributes:
        content: as it was parsed; None where it cannot be.
        where: for messages.
        kind: whose it is where the content does not say.
    """

    content: Any
    where: str
    kind: Kind | None

    def refused(self, reason: str) -> UnsupportedModelError:
        """The error for a model that cannot be exported; `reason` continues the sentence behind a comma."""
        return UnsupportedModelError(
            f"the model is stored quantised by {_named(self.content)} (see {self.where}), {reason}: export "
            "the original model, from before quantisation, whose weights the export can quantise itself"
        )


def find_quantization(folder: Path, config: Mapping[str, Any]) -> Description | None:
    """What says that a model is quantised, or None.

    Args:
        folder: the model.
        config: the object of its config.json.
    """
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for field, kind in _FIELDS.items():
        for part in parts:
            if part.get(field) is not None:
                return Description(part[field], f"{field} in {folder / 'config.json'}", kind)
    for name, kind in _FILES.items():
        if (folder / name).is_file():
            try:
                content = read_json(folder / name)
            except (ValueError, OSError):
                content = None  # its name says enough
            return Description(content, str(folder / name), kind)
    return None


def read_quantization(folder: Path, config: Mapping[str, Any]) -> Scheme | None:
    """How the weights of a model are quantised; None for a model that is not.

    Args:
        folder: the model.
        config: the object of its config.json.

    Raises:
        UnsupportedModelError: the quantiser, or a form of it, is not among those that repack without loss.
    """
    found = find_quantization(folder, config)
    if found is None:
        return None
    content = found.content
    if not isinstance(content, dict):
        raise found.refused("which is not supported")
    method = content.get("quant_method", found.kind)
    # The files of old go without a name; what makes them a quantiser's are these fields.
    if "quant_method" not in content and not {"bits", "w_bit", "config_groups"} & set(content):
        method = None
    method = "compressed-tensors" if method == "compressed_tensors" else method
    reader = _READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise found.refused(
            "whose values no graph holds without loss"
            if "bitsandbytes" in _named(content)
            else "which is not supported"
        )
    return reader(found, content)


def note_activations(scheme: Scheme) -> None:
    """Tells where a bundle computes finer than the checkpoint's own runtime: its activations stay floats."""
    if scheme.activations:
        note(
            f"the checkpoint quantises activations, too ({scheme.kind}): the bundle has its weights bit by "
            "bit and unquantised activations, so its results differ a little from the checkpoint's own"
        )


def _awq(found: Description, content: Mapping[str, Any]) -> Scheme:
    """AutoAWQ's fields, under today's names and those of old."""
    version = _first(content, "version", "format", "checkpoint_format") or "gemm"
    if not isinstance(version, str) or version.lower() != "gemm":
        raise found.refused(f"in the layout {shown(repr(version))}, of which only 'gemm' is supported")
    bits = _bits(found, _first(content, "bits", "w_bit"), {4})
    group = _group(found, _first(content, "group_size", "q_group_size"))
    return Scheme("awq", bits, group, symmetric=not content.get("zero_point", True))


def _gptq(found: Description, content: Mapping[str, Any]) -> Scheme:
    """The fields of AutoGPTQ, GPTQModel and Optimum."""
    layout = _first(content, "checkpoint_format", "format") or "gptq"
    if layout not in ("gptq", "gptq_v2") or content.get("is_marlin_format"):
        layout = "marlin" if content.get("is_marlin_format") else layout
        raise found.refused(
            f"in the layout {shown(repr(layout))}, of which only 'gptq' and 'gptq_v2' are supported"
        )
    for feature, plain in (("pack_dtype", "int32"), ("rotation", None), ("adapter", None)):
        if (value := content.get(feature)) not in (None, plain):
            raise found.refused(f"with {feature} {shown(repr(value))}, which is not supported")
    return Scheme(
        "gptq",
        _bits(found, content.get("bits"), {4, 8}),
        _group(found, _first(content, "group_size", "groupsize")),
        symmetric=bool(content.get("sym", True)),
        act_order=bool(content.get("desc_act", False)),
        zeros_less_one=layout == "gptq",
    )


def _compressed(found: Description, content: Mapping[str, Any]) -> Scheme:
    """The fields of compressed-tensors, which LLM Compressor writes."""
    if (status := content.get("quantization_status", "compressed")) != "compressed":
        raise found.refused(
            f"with quantization_status {shown(repr(status))}, where only 'compressed' is supported"
        )
    sparsity = content.get("sparsity_config") or {}
    if sparsity.get("format", "dense") != "dense" if isinstance(sparsity, dict) else True:
        raise found.refused("with sparse weights, which are not supported")
    if content.get("transform_config"):
        raise found.refused("with a transform_config, which is not supported")
    groups = content.get("config_groups")
    groups = list(groups.values()) if isinstance(groups, dict) else []
    schemes = [
        _compressed_group(found, group, content.get("format"))
        for group in groups
        if not isinstance(group, dict) or group.get("weights") is not None
    ]
    if not schemes:
        raise found.refused("without a group in its config_groups that says how weights are stored")
    blocks = {scheme.block for scheme in schemes} - {None}
    if len(blocks) > 1:
        raise found.refused("in blocks of several sizes, which are not supported")
    sizes = {scheme.group for scheme in schemes}
    return Scheme(
        "compressed-tensors",
        min(scheme.bits for scheme in schemes),
        sizes.pop() if len(sizes) == 1 else None,
        symmetric=all(scheme.symmetric for scheme in schemes),
        act_order=any(scheme.act_order for scheme in schemes),
        block=blocks.pop() if blocks else None,
        activations=any(scheme.activations for scheme in schemes),
    )


def _compressed_group(found: Description, group: Any, layout: Any) -> Scheme:
    """One group of layers that are quantised alike."""
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise found.refused(f"with a config group {shown(repr(group))}, which is not supported")
    layout = group.get("format") or layout
    kind, bits = weights.get("type", "int"), weights.get("num_bits", 8)
    allowed = _FORMATS.get(layout) if isinstance(layout, str) else None
    if allowed is None or (kind, bits) not in allowed:
        raise found.refused(
            f"in the format {shown(repr(layout))} with weights of type {shown(repr(kind))} and "
            f"{shown(repr(bits))} bits, which is not supported"
        )
    return Scheme(
        "compressed-tensors",
        bits,
        _group(found, weights.get("group_size")),
        symmetric=bool(weights.get("symmetric", True)),
        act_order=weights.get("actorder") in ("group", "dynamic"),
        block=_block(found, weights.get("block_structure")),
        activations=group.get("input_activations") is not None,
    )


def _fp8(found: Description, content: Mapping[str, Any]) -> Scheme:
    """The fields of DeepSeek's and Qwen's float8 checkpoints, and of AutoFP8."""
    if (layout := content.get("fmt", "e4m3")) not in ("e4m3", "float8_e4m3fn"):
        raise found.refused(f"in the format {shown(repr(layout))}, of which only 'e4m3' is supported")
    if (expert := content.get("expert_dtype", "fp8")) != "fp8":
        raise found.refused(f"with experts of {shown(repr(expert))}, which are not supported")
    block = _block(found, content.get("weight_block_size"))
    return Scheme("fp8", 8, block=block, activations=True)


_READERS: dict[str, Callable[[Description, Mapping[str, Any]], Scheme]] = {
    "awq": _awq,
    "gptq": _gptq,
    "compressed-tensors": _compressed,
    "fp8": _fp8,
}


def _first(content: Mapping[str, Any], *names: str) -> Any:
    """The value of the first of these fields that has one."""
    return next((content[name] for name in names if content.get(name) is not None), None)


def _bits(found: Description, bits: Any, allowed: set[int]) -> int:
    if not isinstance(bits, int) or bits not in allowed:
        words = " and ".join(map(str, sorted(allowed)))
        raise found.refused(f"with {shown(repr(bits))} bits a weight, of which only {words} are supported")
    return bits


def _group(found: Description, size: Any) -> int | None:
    """Input features of a group; quantisers write -1 for one group of all."""
    if size in (None, -1):
        return None
    if isinstance(size, bool) or not isinstance(size, int) or size <= 0:
        raise found.refused(
            f"in groups of {shown(repr(size))}, where a number of input features was expected"
        )
    return size


def _block(found: Description, sizes: Any) -> tuple[int, int] | None:
    """Output and input features of a block; older configs write "128x128"."""
    if sizes is None:
        return None
    try:
        rows, columns = (int(size) for size in (sizes.split("x") if isinstance(sizes, str) else sizes))
        if min(rows, columns) <= 0:
            raise ValueError("not positive")
    except (TypeError, ValueError):
        raise found.refused(
            f"in blocks of {shown(repr(sizes))}, where numbers of output and input features were expected"
        ) from None
    return rows, columns


def _named(content: Any) -> str:
    """What a quantiser calls itself."""
    named = []
    for part in (content, *content.values()) if isinstance(content, dict) else ():
        for key in _NAMES if isinstance(part, dict) else ():
            value = part.get(key)
            if isinstance(value, str):
                named.append(value)
            elif value is True:  # bitsandbytes of old: load_in_4bit alone
                named.append("bitsandbytes")
            elif isinstance(value, dict) and isinstance(value.get("name"), str):
                named.append(value["name"])
    return shown(" ".join(dict.fromkeys(named))) if named else "an unknown method"
