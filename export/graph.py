"""Tracing the two graphs: vision and language, as ONNX models whose weights are still to be attached.

Models are built under FakeTensorMode, so that tracing needs no memory for weights. Names of inputs and
outputs are the interface of the bundle; `language_interface` is their single source.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

from edgeprune.export.decoder import PrunedDecoder
from edgeprune.export.op import translation
from edgeprune.manifest import DType, ModelInfo, TensorSpec
from edgeprune.plans import PruningPlan

TORCH_DTYPES: dict[DType, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
_ONNX_NAMES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int64: "int64",
}


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs of a graph, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def _spec(name: str, dtype: torch.dtype, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=_ONNX_NAMES[dtype], shape=shape)


def language_interface(info: ModelInfo, plan: PruningPlan) -> Interface:
    """Names, dtypes and shapes of the language graph. Group g's past length is the axis `past_g`."""
    dtype, i64, f32 = TORCH_DTYPES[info.dtype], torch.int64, torch.float32
    groups = len(plan.stages) + 1
    heads = (info.kv_heads, info.head_dim)
    inputs = [
        _spec("input_ids", i64, "batch", "sequence"),
        _spec("visual_embeds", dtype, "batch", "visual", info.hidden_size),
        _spec("visual_index", i64, "batch", "visual"),
        _spec("visual_valid", f32, "batch", "visual"),
        _spec("position_ids", i64, "batch", "sequence"),
        _spec("attention_mask", i64, "batch", "sequence"),
        *(_spec(f"past_mask.{g}", i64, "batch", f"past_{g}") for g in range(groups)),
    ]
    outputs = [_spec("logits", f32, "batch", info.vocab_size)]
    outputs += [_spec(f"kept_index.{s}", i64, "batch", f"kept_{s + 1}") for s in range(len(plan.stages))]
    outputs += [
        _spec(f"score.{s}", f32, "batch", f"kept_{s}" if s else "sequence") for s in range(len(plan.stages))
    ]
    outputs += [_spec(f"present_mask.{g}", i64, "batch", f"present_{g}") for g in range(groups)]
    for kind in ("key", "value"):
        for layer in range(info.layers):
            g = plan.group_of_layer(layer)
            inputs.append(_spec(f"past_{kind}.{layer}", dtype, "batch", heads[0], f"past_{g}", heads[1]))
            outputs.append(
                _spec(f"present_{kind}.{layer}", dtype, "batch", heads[0], f"present_{g}", heads[1])
            )
    return Interface(tuple(inputs), tuple(outputs))


def vision_interface(
    info: ModelInfo, plan: PruningPlan, image_size: tuple[int, int], places: int
) -> Interface:
    """Names, dtypes and shapes of the vision graph; where the tower merges, also places and scores."""
    dtype, tokens = TORCH_DTYPES[info.dtype], plan.tokens_per_image(places)
    outputs = [_spec("visual_embeds", dtype, "images", tokens, info.hidden_size)]
    if plan.tower:
        outputs.append(_spec("visual_place", torch.int64, "images", tokens))
    for number, stage in enumerate(plan.tower):
        outputs.append(_spec(f"tower_score.{number}", torch.float32, "images", places))
        places = stage.kept
    return Interface((_spec("pixel_values", dtype, "images", 3, *image_size),), tuple(outputs))


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """The exporter's warnings are about its own internals; a user can do nothing with them."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torch.fx")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


# Distinct sizes of at least 2: the tracer turns sizes of 0, 1, and equal ones into constants.
_SIZES = {"batch": 2, "sequence": 23, "visual": 11, "images": 2}
_PAST_SIZES = (5, 3, 4, 7, 6, 13, 17, 19)
_SMALLEST = {"batch": 1, "sequence": 1}


def _sample(spec: TensorSpec) -> torch.Tensor:
    sizes = _SIZES | {f"past_{group}": size for group, size in enumerate(_PAST_SIZES)}
    shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape]
    return torch.zeros(shape, dtype=next(dtype for dtype, name in _ONNX_NAMES.items() if name == spec.dtype))


def _dims(spec: TensorSpec, dims: dict[str, Dim]) -> dict[int, Dim]:
    return {
        axis: dims.setdefault(name, Dim(name, min=_SMALLEST.get(name, 0), max=1 << 20))
        for axis, name in enumerate(spec.shape)
        if isinstance(name, str)
    }


def _trace(
    module: nn.Module, arguments: tuple[object, ...], shapes: object, interface: Interface, opset: int
) -> ir.Model:
    with quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module,
            arguments,
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=opset,
            dynamic_shapes=shapes,
            input_names=[spec.name for spec in interface.inputs],
            output_names=[spec.name for spec in interface.outputs],
            custom_translation_table=translation(),
        )
    return program.model


def trace_vision(vision: nn.Module, interface: Interface, mode: FakeTensorMode, opset: int) -> ir.Model:
    """Traces pixel_values -> visual_embeds; the number of images is dynamic."""
    (spec,) = interface.inputs
    with mode:
        sample = _sample(spec)
        return _trace(vision, (sample,), (_dims(spec, {}),), interface, opset)


def decoder_arguments(values: Mapping[str, Any]) -> tuple[Any, ...]:
    """The inputs of the language graph, in its order, as `PrunedDecoder.forward` takes them."""
    single = [value for name, value in values.items() if "." not in name]
    lists = [
        [v for n, v in values.items() if n.startswith(p)] for p in ("past_mask.", "past_key.", "past_value.")
    ]
    return (*single, *lists)


def trace_language(
    decoder: PrunedDecoder, interface: Interface, mode: FakeTensorMode, opset: int
) -> ir.Model:
    """Traces the pruned decoder; batch, sequence, visual tokens and every past length are dynamic."""
    dims: dict[str, Dim] = {}
    with mode:
        samples = {spec.name: _sample(spec) for spec in interface.inputs}
    shapes = {spec.name: _dims(spec, dims) for spec in interface.inputs}

    with mode:
        return _trace(decoder, decoder_arguments(samples), decoder_arguments(shapes), interface, opset)
