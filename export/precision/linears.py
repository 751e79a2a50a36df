"""Weights in the graph in the form in which they are stored: linear layers in blocks, others in fewer bits.

A linear layer becomes DequantizeLinear(values [K, N], scale [K / block, N], axis 0) -> MatMul. ONNX Runtime
makes one operator of the two by itself, TensorRT and TensorRT for RTX keep the values as they are. With the
checkpoint's own order, [N, K] and a transposition, ONNX Runtime would dequantise in every run. Of nvfp4 the
scale is made by another DequantizeLinear(scales of blocks, scale of the whole weight) -> Cast, as TensorRT
reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
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
NVFP4_OPSET = 23  # 4 bit floats
VALUES, SCALE, CORRECTION, ORDER = ".values", ".scale", ".correction", ".order"
TENSOR_SCALE = ".tensor_scale"

_IR_DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.int64: ir.DataType.INT64,
    torch.float8_e4m3fn: ir.DataType.FLOAT8E4M3FN,
}
_VALUES: dict[BlockKind, ir.DataType] = {
    "int4": ir.DataType.INT4,
    "int8": ir.DataType.INT8,
    "fp8": ir.DataType.FLOAT8E4M3FN,
    "nvfp4": ir.DataType.FLOAT4E2M1,
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
        scale = _stored_float(graph, quantised.scale, own + SCALE, folder)
        if quantised.tensor_scale is not None:
            whole = _stored_float(graph, quantised.tensor_scale, own + TENSOR_SCALE, folder)
            scale = _scaled(graph, scale, whole, value.dtype, user)
        node = ir.node("DequantizeLinear", [values, scale], {"axis": 0, "block_size": form.block})
        made = node.outputs[0]
        made.shape, made.type = ir.Shape(shape), ir.TensorType(value.dtype)
        graph.insert_before(user, node)
        if user.op_type == "Transpose":
            products = [use.node for use in user.outputs[0].uses()]
            ir.convenience.replace_all_uses_with(user.outputs[0], made)
            graph.remove(user, safe=True)
        else:
            products = [_product_of(graph, user, made)]
        for product in products:
            if quantised.order is not None:
                _sort_inputs(graph, product, quantised.order, own, folder)
            if quantised.correction is not None:
                correction = _stored_float(graph, quantised.correction, own + CORRECTION, folder)
                _add_correction(graph, product, correction)
    del graph.initializers[name]


def _scaled(
    graph: ir.Graph, scale: ir.Value, whole: ir.Value, dtype: ir.DataType, before: ir.Node
) -> ir.Value:
    """The scales of blocks times that of the whole weight, in the type of the graph."""
    node = ir.node("DequantizeLinear", [scale, whole])
    nodes, made = [node], node.outputs[0]
    made.shape, made.type = scale.shape, whole.type
    if whole.dtype != dtype:
        nodes.append(ir.node("Cast", [made], {"to": dtype}))
        made = nodes[-1].outputs[0]
        made.shape, made.type = scale.shape, ir.TensorType(dtype)
    graph.insert_before(before, nodes)
    return made


def _sort_inputs(graph: ir.Graph, product: ir.Node, order: StoredTensor, name: str, folder: Path) -> None:
    """Puts the input features of a product into the order of its weight's rows."""
    given = product.inputs[0]
    assert given is not None
    stored = external(order, name + ORDER, folder)

    def sorts(node: ir.Node) -> bool:
        found = node.inputs[1].const_value if node.op_type == "Gather" and node.inputs[1] else None
        return isinstance(found, ir.ExternalTensor) and (found.location, found.offset) == (
            stored.location,
            stored.offset,
        )

    # Layers side by side often share their order, as q, k and v do.
    gather = next((use.node for use in given.uses() if use.idx == 0 and sorts(use.node)), None)
    if gather is None:
        index = _initializer(graph, order, ir.DataType.INT64, order.shape, name + ORDER, folder)
        gather = ir.node("Gather", [given, index], {"axis": -1})
        gather.outputs[0].shape, gather.outputs[0].type = given.shape, given.type
        _insert_behind(graph, given, gather)
    product.replace_input_with(0, gather.outputs[0])


def _add_correction(graph: ir.Graph, product: ir.Node, correction: ir.Value) -> None:
    """Adds the inputs' sums over blocks times the correction to a product: what zero points come to."""
    given, result = product.inputs[0], product.outputs[0]
    assert given is not None
    assert given.shape is not None
    assert correction.shape is not None
    blocks = correction.shape[0]
    assert isinstance(blocks, int)
    # Products of one input share its sums.
    cut = next((use.node for use in given.uses() if _is_cut_for_sums(use.node, blocks)), None)
    if cut is None:
        sizes = [*[0] * (len(given.shape) - 1), blocks, -1]
        cut = ir.node("Reshape", [given, _constant(graph, sizes)])
        cut.outputs[0].type = given.type
        sums = ir.node("ReduceSum", [cut.outputs[0], _constant(graph, [-1])], {"keepdims": 0})
        sums.outputs[0].shape = ir.Shape([*given.shape[:-1], blocks])
        sums.outputs[0].type = given.type
        _insert_behind(graph, given, cut, sums)
    (use,) = cut.outputs[0].uses()
    summed = use.node.outputs[0]
    plain = ir.node("MatMul", [given, product.inputs[1]], name=product.name)
    more = ir.node("MatMul", [summed, correction])
    total = ir.node("Add", [plain.outputs[0], more.outputs[0]])
    for node in (plain, more, total):
        node.outputs[0].shape, node.outputs[0].type = result.shape, result.type
    nodes = [plain, more, total]
    ir.convenience.replace_nodes_and_values(graph, product, [product], nodes, [result], total.outputs)


def _is_cut_for_sums(node: ir.Node, blocks: int) -> bool:
    """Whether a node is the Reshape in front of sums over so many blocks."""
    if node.op_type != "Reshape" or node.inputs[1] is None or node.inputs[1].const_value is None:
        return False
    sizes = node.inputs[1].const_value.numpy().tolist()
    readers = [use.node.op_type for use in node.outputs[0].uses()]
    return sizes[-2:] == [blocks, -1] and not any(sizes[:-2]) and readers == ["ReduceSum"]


def _insert_behind(graph: ir.Graph, value: ir.Value, *nodes: ir.Node) -> None:
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)


def _constant(graph: ir.Graph, values: list[int]) -> ir.Value:
    name = f"int64.{'.'.join(map(str, values))}"
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(values, dtype=np.int64), name=name)
        graph.register_initializer(
            ir.Value(
                name=name,
                shape=ir.Shape([len(values)]),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
        )
    return graph.initializers[name]


def _stored_float(graph: ir.Graph, stored: StoredTensor, name: str, folder: Path) -> ir.Value:
    return _initializer(graph, stored, _IR_DTYPES[stored.dtype], stored.shape, name, folder)


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


def _product_of(graph: ir.Graph, gemm: ir.Node, weight: ir.Value) -> ir.Node:
    """Makes a Gemm a MatMul, which is returned, and, where it has a bias, an Add."""
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
    return product


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
    dtypes = {dtype.value: stored for stored, dtype in _IR_DTYPES.items()}
    readers = {name: node for node in graph.node for name in node.input}
    makers = {name: node for node in graph.node for name in node.output}

    def read(name: str) -> torch.Tensor:
        tensor = initializers[name]
        raw = _bytes_of(tensor, path.parent)
        return torch.frombuffer(raw, dtype=dtypes[tensor.data_type]).reshape(tuple(tensor.dims))

    def read_of(node: onnx.NodeProto | None, kind: str, end: str) -> torch.Tensor | None:
        """The second input of a node of this kind, where its name ends so."""
        made = node is not None and node.op_type == kind and node.input[1].endswith(end)
        return read(node.input[1]) if made and node is not None else None

    for name, values in initializers.items():
        own = name.removesuffix(VALUES)
        if own == name or own.rpartition(".")[2].isdecimal():  # a second reader has the same
            continue
        raw = torch.frombuffer(_bytes_of(values, path.parent), dtype=torch.uint8)
        held = unpacked(raw, kinds[values.data_type]).reshape(tuple(values.dims))
        # By the nodes: what two layers have alike may have become one initializer.
        dequantised = readers[name]
        product = readers[dequantised.output[0]]
        added = readers.get(product.output[0])
        other = makers.get(added.input[1]) if added is not None and added.op_type == "Add" else None
        correction = read_of(other, "MatMul", CORRECTION)
        order = read_of(makers.get(product.input[0]), "Gather", ORDER)
        scale, tensor_scale = dequantised.input[1], None
        if (maker := makers.get(scale)) is not None:
            scaled = makers[maker.input[0]] if maker.op_type == "Cast" else maker
            scale, tensor_scale = scaled.input[0], read(scaled.input[1])
        yield own, Blocks(held, read(scale), correction, order, tensor_scale)


def _bytes_of(tensor: onnx.TensorProto, folder: Path) -> bytearray:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    with open_regular(folder / entries["location"]) as file:
        file.seek(int(entries["offset"]))
        return bytearray(file.read(int(entries["length"])))
