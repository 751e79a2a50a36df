"""Weights in the graph in the form in which they are stored: linear layers in blocks, others in fewer bits.

A linear layer becomes DequantizeLinear(values [K, N], scale [K / block, N], axis 0) -> MatMul. ONNX Runtime
makes one operator of the two by itself, TensorRT and TensorRT for RTX keep the values as they are. With the
checkpoint's own order, [N, K] and a transposition, ONNX Runtime would dequantise in every run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
import torch

from edgeprune.errors import UnsupportedModelError
from edgeprune.exporter.placing import QuantisedTensor
from edgeprune.exporter.precision.blocks import Blocks, unpacked
from edgeprune.exporter.weights import StoredTensor
from edgeprune.files import open_regular
from edgeprune.manifest import BlockKind

BLOCKS_OPSET = 21  # blocks of DequantizeLinear, and 4 bit integers
VALUES, SCALE = ".values", ".scale"

_IR_DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
}
_VALUES: dict[BlockKind, ir.DataType] = {
    "int4": ir.DataType.INT4,
    "int8": ir.DataType.INT8,
    "fp8": ir.DataType.FLOAT8E4M3FN,
}


def external(stored: StoredTensor, name: str, folder: Path) -> ir.ExternalTensor:
    """A stored tensor as an initializer's values, by reference."""
    return _external(stored, _IR_DTYPES[stored.dtype], stored.shape, name, folder)


def _external(
    stored: StoredTensor, dtype: ir.DataType, shape: tuple[int, ...], name: str, folder: Path
) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        stored.file, stored.offset, stored.length, dtype, shape=ir.Shape(shape), name=name, base_dir=folder
    )


def widen(graph: ir.Graph, value: ir.Value, stored: torch.dtype) -> None:
    """Lets an initializer be of the type that it is stored in, and what reads it go on with its own.

    Of a table rows are taken first and then widened.
    """
    wide = value.dtype
    kind = _IR_DTYPES[stored]
    assert wide is not None
    if kind == wide:
        return
    value.type = ir.TensorType(kind)
    gathers = [use.node for use in value.uses() if use.node.op_type == "Gather" and use.idx == 0]
    for gather in gathers:
        _cast(graph, gather.outputs[0], kind, wide, gather)
    others = [use for use in value.uses() if use.node not in gathers]
    if others:
        cast = ir.node("Cast", [value], {"to": wide})
        cast.outputs[0].shape, cast.outputs[0].type = value.shape, ir.TensorType(wide)
        for use in others:
            use.node.replace_input_with(use.idx, cast.outputs[0])
        graph.insert_before(graph[0], cast)


def _cast(graph: ir.Graph, value: ir.Value, narrow: ir.DataType, wide: ir.DataType, after: ir.Node) -> None:
    cast = ir.node("Cast", [value], {"to": wide})
    made = cast.outputs[0]
    made.shape, made.type = value.shape, ir.TensorType(wide)
    ir.convenience.replace_all_uses_with(value, made)
    cast.replace_input_with(0, value)
    value.type = ir.TensorType(narrow)
    graph.insert_after(after, cast)


def quantise_linear(graph: ir.Graph, value: ir.Value, quantised: QuantisedTensor, folder: Path) -> None:
    """Puts a weight in blocks in the place of the initializer [N, K] of linear layers.

    Raises:
        UnsupportedModelError: it is used otherwise than by a product with its transposed.
    """
    assert value.name is not None
    assert value.dtype is not None
    name, form, shape = value.name, quantised.form, quantised.shape
    for number, user in enumerate(_users(value)):
        # Nodes and initializers of its own for each: ONNX Runtime leaves what has two readers as it is, and
        # dequantises in every run.
        own = f"{name}.{number}" if number else name
        values = _initializer(graph, quantised.values, _VALUES[form.kind], shape, own + VALUES, folder)
        stored = quantised.scale
        scale = _initializer(graph, stored, _IR_DTYPES[stored.dtype], stored.shape, own + SCALE, folder)
        node = ir.node("DequantizeLinear", [values, scale], {"axis": 0, "block_size": form.block})
        made = node.outputs[0]
        made.shape, made.type = ir.Shape(shape), ir.TensorType(value.dtype)
        graph.insert_before(user, node)
        if user.op_type == "Transpose":
            ir.convenience.replace_all_uses_with(user.outputs[0], made)
            graph.remove(user, safe=True)
        else:
            _product_of(graph, user, made)
    del graph.initializers[name]


def _users(value: ir.Value) -> Iterable[ir.Node]:
    users = [use.node for use in value.uses()]
    for user in users:
        transposes = user.op_type == "Transpose" and all(
            use.node.op_type == "MatMul" and use.idx == 1 for use in user.outputs[0].uses()
        )
        multiplies = (
            user.op_type == "Gemm"
            and user.inputs[1] is value
            and user.attributes.get_int("transB", 0) == 1
            and user.attributes.get_int("transA", 0) == 0
            and user.attributes.get_float("alpha", 1.0) == user.attributes.get_float("beta", 1.0) == 1.0
        )
        if not transposes and not multiplies:
            raise UnsupportedModelError(
                f"the weight {value.name} is read by {user.op_type}, and in blocks only products with linear "
                "layers can be: export with weights of a floating type"
            )
    return users


def _product_of(graph: ir.Graph, gemm: ir.Node, weight: ir.Value) -> None:
    """Makes a Gemm a MatMul and, where it has a bias, an Add."""
    result, given = gemm.outputs[0], gemm.inputs[0]
    bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
    product = ir.node("MatMul", [given, weight], name=gemm.name)
    nodes = [product]
    if bias is not None:
        product.outputs[0].shape, product.outputs[0].type = result.shape, result.type
        nodes.append(ir.node("Add", [product.outputs[0], bias]))
    made = nodes[-1].outputs[0]
    made.shape, made.type = result.shape, result.type
    ir.convenience.replace_nodes_and_values(graph, gemm, [gemm], nodes, [result], [made])


def _initializer(
    graph: ir.Graph,
    stored: StoredTensor,
    dtype: ir.DataType,
    shape: tuple[int, ...],
    name: str,
    folder: Path,
) -> ir.Value:
    found = ir.Value(
        name=name,
        shape=ir.Shape(shape),
        type=ir.TensorType(dtype),
        const_value=_external(stored, dtype, shape, name, folder),
    )
    graph.register_initializer(found)
    return found


def stored_blocks(path: Path) -> Iterator[tuple[str, Blocks]]:
    """The weights in blocks of an ONNX file, each by its parameter's name, one after the other."""
    graph = onnx.load(path, load_external_data=False).graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    kinds = {dtype.value: kind for kind, dtype in _VALUES.items()}
    floats = {dtype.value: stored for stored, dtype in _IR_DTYPES.items()}
    for name, values in initializers.items():
        own = name.removesuffix(VALUES)
        if own == name or own.rpartition(".")[2].isdecimal():  # a second reader has the same
            continue
        scale = initializers[own + SCALE]
        raw = torch.frombuffer(_bytes_of(values, path.parent), dtype=torch.uint8)
        held = unpacked(raw, kinds[values.data_type]).reshape(tuple(values.dims))
        scales = torch.frombuffer(_bytes_of(scale, path.parent), dtype=floats[scale.data_type])
        yield own, Blocks(held, scales.reshape(tuple(scale.dims)))


def _bytes_of(tensor: onnx.TensorProto, folder: Path) -> bytearray:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    with open_regular(folder / entries["location"]) as file:
        file.seek(int(entries["offset"]))
        return bytearray(file.read(int(entries["length"])))
