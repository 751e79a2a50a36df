"""Tracing the two graphs: vision and language, as ONNX models whose weights are still to be attached.

Models are built under FakeTensorMode, so that tracing needs no memory for weights. What goes in and out is
the interface of the bundle, `edgeprune.interface`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

from edgeprune.exporter.decoder import PrunedDecoder
from edgeprune.exporter.op import translation
from edgeprune.interface import (
    CACHE_KINDS,
    Described,
    ElementType,
    TensorSpec,
    deepstack,
    kept_axis,
    kept_slots,
    past,
    past_axis,
    past_mask,
)
from edgeprune.manifest import DType

TORCH_DTYPES: dict[DType, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
_IR_VERSIONS = {23: 11}  # of the file's format, the least for an opset, where the tracer writes less
_ELEMENTS: dict[ElementType, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
}


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
_SIZES = {
    "batch": 2,
    "sequence": 23,
    "visual": 11,
    "tiles": 2,
    "blocks": 3,
    "slots": 5,
    "windows": 7,
    "frames": 4,
}
_PAST_SIZES = (5, 3, 4, 7, 6, 13, 17, 19)
_KEPT_SIZES = (10, 9, 8)
_SMALLEST = {"batch": 1, "sequence": 1}
# By a later opset the tracer would write attention and norms as one node each, which not every runtime reads.
# What this one has, later ones have, too.
_TRACED_OPSET = 22


def _sample(spec: TensorSpec) -> torch.Tensor:
    sizes = _SIZES | {past_axis(group): size for group, size in enumerate(_PAST_SIZES)}
    sizes |= {kept_axis(stage): size for stage, size in enumerate(_KEPT_SIZES)}
    shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape]
    return torch.zeros(shape, dtype=_ELEMENTS[spec.dtype])


def _dims(spec: TensorSpec, dims: dict[str, Dim]) -> dict[int, Dim]:
    return {
        axis: dims.setdefault(name, Dim(name, min=_SMALLEST.get(name, 0), max=1 << 20))
        for axis, name in enumerate(spec.shape)
        if isinstance(name, str)
    }


def _trace(
    module: nn.Module, arguments: tuple[Any, ...], shapes: tuple[Any, ...], interface: Described, opset: int
) -> ir.Model:
    with quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module,
            arguments,
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=min(opset, _TRACED_OPSET),
            dynamic_shapes=shapes,
            input_names=[spec.name for spec in interface.inputs],
            output_names=[spec.name for spec in interface.outputs],
            custom_translation_table=translation(),
        )
    assert program is not None  # with dynamo
    model = program.model
    model.opset_imports[""] = opset
    model.ir_version = max(model.ir_version, _IR_VERSIONS.get(opset, 0))
    return model


def trace_vision(vision: nn.Module, interface: Described, mode: FakeTensorMode, opset: int) -> ir.Model:
    """Traces the vision graph; how many tiles there are, and every other named axis, is dynamic."""
    dims: dict[str, Dim] = {}
    with mode:
        samples = tuple(_sample(spec) for spec in interface.inputs)
        shapes = tuple(_dims(spec, dims) for spec in interface.inputs)
        return _trace(vision, samples, shapes, interface, opset)


def decoder_arguments(values: Mapping[str, Any]) -> tuple[Any, ...]:
    """The inputs of the language graph, in its order, as `PrunedDecoder.forward` takes them."""
    single = [value for name, value in values.items() if "." not in name]
    prefixes = (deepstack(0), kept_slots(0), past_mask(0), *(past(kind, 0) for kind in CACHE_KINDS))
    lists = [
        [value for name, value in values.items() if name.startswith(prefix.removesuffix("0"))]
        for prefix in prefixes
    ]
    return (*single, *lists)


def trace_language(
    decoder: PrunedDecoder, interface: Described, mode: FakeTensorMode, opset: int
) -> ir.Model:
    """Traces the pruned decoder; batch, sequence, visual tokens and every past length are dynamic."""
    dims: dict[str, Dim] = {}
    with mode:
        samples = {spec.name: _sample(spec) for spec in interface.inputs}
    shapes = {spec.name: _dims(spec, dims) for spec in interface.inputs}

    with mode:
        return _trace(decoder, decoder_arguments(samples), decoder_arguments(shapes), interface, opset)
