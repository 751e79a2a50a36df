"""From a traced graph to the ONNX file of a bundle: weights attached by reference, body added, checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import onnx
import onnx_ir as ir
import onnxscript.optimizer
import onnxscript.rewriter
import torch
from torch import nn

from edgeprune.errors import VerificationError
from edgeprune.exporter.graph import quiet_exporter
from edgeprune.exporter.op import append_function, has_node
from edgeprune.exporter.placing import Placed, QuantisedTensor
from edgeprune.exporter.precision.linears import external, quantise_linear, widen
from edgeprune.interface import OP_NAME, Described

Source: TypeAlias = "Placed | torch.Tensor"
"""Where an initializer's values are: stored, or at hand."""


def initializer_sources(
    module: nn.Module,
    model: nn.Module,
    stored: Mapping[str, Placed],
    buffers: Mapping[str, torch.Tensor],
) -> dict[str, Source]:
    """For every parameter and buffer name of `module`, made of parts of `model`, where its values are."""
    by_identity: dict[int, Source] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_identity[id(parameter)] = stored[name]
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name in buffers:
            by_identity[id(buffer)] = buffers[name]
        elif name in stored:
            by_identity[id(buffer)] = stored[name]
    tensors = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return {name: by_identity[id(tensor)] for name, tensor in tensors if id(tensor) in by_identity}


def attach(graph: ir.Model, sources: Mapping[str, Source], folder: Path) -> None:
    """Gives every initializer its values: a reference into a file of `folder`, or a constant.

    Tied weights become one initializer, so that a runtime holds them once. What is stored in fewer bits than
    the graph computes in is widened in the graph.
    """
    first: dict[Placed, ir.Value] = {}
    for name, value in list(graph.graph.initializers.items()):
        source = sources.get(name)
        if source is None:
            if isinstance(value.const_value, ir.Value) or _is_fake(value):
                raise VerificationError(
                    f"the graph's initializer {name} has no source: this is a bug of the exporter"
                )
            continue
        if isinstance(source, torch.Tensor):
            value.const_value = ir.tensor_adapters.TorchTensor(source, name=name)  # numpy has no bfloat16
            continue
        if source in first:
            ir.convenience.replace_all_uses_with(value, first[source])
            del graph.graph.initializers[name]
            continue
        first[source] = value
        if isinstance(source, QuantisedTensor):
            quantise_linear(graph.graph, value, source, folder)
        else:
            widen(graph.graph, value, source.dtype)
            value.const_value = external(source, name, folder)


def _is_fake(value: ir.Value) -> bool:
    raw = getattr(value.const_value, "raw", None)
    return isinstance(raw, torch._subclasses.fake_tensor.FakeTensor) or (
        isinstance(raw, nn.Parameter) and isinstance(raw.data, torch._subclasses.fake_tensor.FakeTensor)
    )


# What runtimes look for when they make one kernel of a root-mean-square normalisation.
_DIVIDED_BY_ROOT = onnxscript.rewriter.RewriteRule(
    lambda op, x, square: op.Mul(x, op.Reciprocal(op.Sqrt(square))),
    lambda op, x, square: op.Div(x, op.Sqrt(square)),
)


def optimize(graph: ir.Model) -> None:
    """Folds constants and removes dead nodes, never touching a weight that lies in a file.

    What the opset lacks in the export's dtype is computed in a wider one.
    """

    def should_fold(node: ir.Node) -> bool | None:
        stored = any(
            value is not None and isinstance(value.const_value, ir.ExternalTensor) for value in node.inputs
        )
        return False if stored else None

    with quiet_exporter():
        onnxscript.optimizer.optimize_ir(graph, should_fold=should_fold, input_size_limit=4096)
        onnxscript.rewriter.rewrite(graph, pattern_rewrite_rules=[_DIVIDED_BY_ROOT])
    _widen_convolutions(graph)


def _widen_convolutions(graph: ir.Model) -> None:
    """Lets bfloat16 convolutions compute in float32: before opset 22 ONNX has none in bfloat16."""
    opset = graph.opset_imports.get("")
    if opset is not None and opset >= 22:
        return
    for node in list(graph.graph):
        if node.op_type != "Conv" or node.inputs[0] is None or node.inputs[0].dtype != ir.DataType.BFLOAT16:
            continue
        result = node.outputs[0]
        narrow = ir.node("Cast", [result], {"to": ir.DataType.BFLOAT16})
        narrow.outputs[0].shape, narrow.outputs[0].type = result.shape, result.type
        ir.convenience.replace_all_uses_with(result, narrow.outputs[0])
        narrow.replace_input_with(0, result)
        result.type = ir.TensorType(ir.DataType.FLOAT)
        narrow_inputs = [value for value in node.inputs if value is not None]
        wide = [ir.node("Cast", [value], {"to": ir.DataType.FLOAT}) for value in narrow_inputs]
        for place, cast in enumerate(wide):
            cast.outputs[0].shape = narrow_inputs[place].shape
            cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            node.replace_input_with(place, cast.outputs[0])
        graph.graph.insert_before(node, wide)
        graph.graph.insert_after(node, narrow)


def _name_axes(values: list[ir.Value], specs: Described, kind: str) -> None:
    for value, spec in zip(values, getattr(specs, kind), strict=True):
        value.name = spec.name
        value.shape = ir.Shape(list(spec.shape))


def save(
    graph: ir.Model,
    interface: Described,
    path: Path,
    producer: str,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes the ONNX file with the interface's names and axes, and metadata; weights stay where they are."""
    _name_axes(list(graph.graph.inputs), interface, "inputs")
    _name_axes(list(graph.graph.outputs), interface, "outputs")
    graph.producer_name, graph.producer_version = "edgeprune", producer
    for node in graph.graph:
        # Stack traces and module paths of the exporting machine have no place in the file.
        node.metadata_props.clear()
        node.doc_string = None
    for value in graph.graph.initializers.values():
        value.metadata_props.clear()
    proto = ir.to_proto(graph)
    onnx.helper.set_model_props(proto, dict(metadata or {}))
    if has_node(proto):
        append_function(proto)
    onnx.save(proto, path)


def check(path: Path, interface: Described, stages: int) -> None:
    """Onnx's full check, and that the file is what the manifest will say.

    Raises:
        VerificationError: what does not hold.
    """
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    if has_node(model) != stages:
        raise VerificationError(
            f"{path.name} has {has_node(model)} {OP_NAME} nodes, the plan has {stages} stages"
        )
    for kind, found in (("input", model.graph.input), ("output", model.graph.output)):
        expected = [spec.name for spec in getattr(interface, kind + "s")]
        names = [value.name for value in found]
        if names != expected:
            raise VerificationError(f"{path.name} has {kind}s {names}, expected {expected}")
