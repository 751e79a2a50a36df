"""Linear layers in blocks and narrow weights, in the graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from safetensors.torch import save_file

from edgeprune.errors import UnsupportedModelError
from edgeprune.exporter import assemble, placing
from edgeprune.exporter.precision.blocks import BlockForm, packed
from edgeprune.exporter.precision.linears import stored_blocks
from edgeprune.exporter.weights import read_header
from edgeprune.manifest import BlockKind

FLOAT = ir.DataType.FLOAT
K, N, BLOCK = 64, 24, 16


def graph_of(weights: list[ir.Value], nodes: list[ir.Node], inputs: list[ir.Value]) -> ir.Model:
    end = ir.node("Identity", nodes[-1].outputs)
    y = end.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(FLOAT), ir.Shape(["m", "n"])
    graph = ir.Graph(
        inputs, [y], nodes=[*nodes, end], initializers=weights, opset_imports={"": 21}, name="main"
    )
    return ir.Model(graph, ir_version=10)


def given() -> tuple[ir.Value, ir.Value]:
    return (
        ir.Input("x", ir.Shape(["n", K]), ir.TensorType(FLOAT)),
        ir.Value(name="w", shape=ir.Shape([N, K]), type=ir.TensorType(FLOAT)),
    )


def transposed(uses: int = 1) -> ir.Model:
    """The product of x with the weight; of two uses times that of |x|."""
    x, weight = given()
    nodes: list[ir.Node] = []
    found: list[ir.Value] = []
    for number in range(uses):
        flipped = ir.node("Transpose", [weight], {"perm": [1, 0]})
        one = ir.node("Abs" if number else "Identity", [x])
        one.outputs[0].shape, one.outputs[0].type = x.shape, x.type
        product = ir.node("MatMul", [one.outputs[0], flipped.outputs[0]])
        nodes += [flipped, one, product]
        found += product.outputs
    return graph_of([weight], [*nodes, ir.node("Mul", found)] if uses == 2 else nodes, [x])


def gemm(bias: bool) -> ir.Model:
    x, weight = given()
    more = [ir.Input("b", ir.Shape([N]), ir.TensorType(FLOAT))] if bias else []
    return graph_of([weight], [ir.node("Gemm", [x, weight, *more], {"transB": 1})], [x, *more])


def attached(model: ir.Model, weight: torch.Tensor, form: placing.Form, folder: Path) -> placing.Placed:
    (source := folder / "source").mkdir()
    save_file({"w": weight}, source / "model.safetensors")
    stored = read_header(source / "model.safetensors")
    placed, _ = placing.Placing(stored, {"w": form}, source, folder, torch.float32).convert(print)
    assemble.attach(model, placed, folder)
    onnx.save(ir.to_proto(model), folder / "model.onnx")
    onnx.checker.check_model(str(folder / "model.onnx"))
    found: placing.Placed = placed["w"]
    return found


def layer(folder: Path, name: str, corrected: bool, order: np.ndarray | None) -> placing.QuantisedTensor:
    """A layer as a quantised checkpoint has it, with zero points or with inputs in another order or both."""
    rng = np.random.default_rng(len(name))
    values = torch.from_numpy(rng.integers(-8, 8, (K, N), dtype=np.int8))
    parts = {"values": packed(values, "int4"), "scale": torch.rand(K // BLOCK, N) + 0.1}
    parts |= {"correction": torch.randn(K // BLOCK, N)} if corrected else {}
    parts |= {"order": torch.from_numpy(order)} if order is not None else {}
    save_file(parts, folder / f"{name}.safetensors")
    stored = read_header(folder / f"{name}.safetensors")
    return placing.QuantisedTensor(
        BlockForm("int4", BLOCK),
        (K, N),
        stored["values"],
        stored["scale"],
        stored.get("correction"),
        stored.get("order"),
    )


def product_of(folder: Path, quantised: placing.QuantisedTensor, x: np.ndarray) -> np.ndarray:
    """x times a layer in plain numpy: each row's value times its block's scale, plus its block's correction,
    and the inputs in the rows' order.
    """
    blocks = quantised.blocks(folder)
    rows = np.empty((K, N))
    for row in range(K):
        rows[row] = blocks.values[row].numpy() * blocks.scale[row // BLOCK].numpy()
        if blocks.correction is not None:
            rows[row] += blocks.correction[row // BLOCK].numpy()
    return (x if blocks.order is None else x[..., blocks.order.numpy()]) @ rows


def kinds(folder: Path) -> list[str]:
    """The operators of the graph as it was written."""
    return [node.op_type for node in onnx.load(folder / "model.onnx", load_external_data=False).graph.node]


def written(model: ir.Model, sources: dict[str, placing.QuantisedTensor], folder: Path) -> None:
    assemble.attach(model, sources, folder)
    onnx.save(ir.to_proto(model), folder / "model.onnx")
    onnx.checker.check_model(str(folder / "model.onnx"))


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("model", [transposed(), gemm(False), gemm(True)])
def test_zero_points_are_a_second_product(model: ir.Model, ordered: bool, tmp_path: Path) -> None:
    graph = model.clone()
    order = np.random.default_rng(1).permutation(K) if ordered else None
    quantised = layer(tmp_path, "w", True, order)
    written(graph, {"w": quantised}, tmp_path)
    x, bias = np.random.default_rng(2).standard_normal((3, K)).astype(np.float32), np.arange(N)
    feeds = {"x": x, "b": bias.astype(np.float32)}
    found, ran = run(tmp_path, **{one.name: feeds[one.name] for one in graph.graph.inputs})
    expected = product_of(tmp_path, quantised, x) + (bias if len(graph.graph.inputs) > 1 else 0)
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-3)
    assert kinds(tmp_path).count("MatMul") == 2
    assert (kinds(tmp_path).count("Gather"), ran.count("MatMulNBits")) == (int(ordered), 1)
    # Read back, it is what the checkpoint has.
    ((name, blocks),) = stored_blocks(tmp_path / "model.onnx")
    assert name == "w"
    assert torch.equal(blocks.weight(), quantised.blocks(tmp_path).weight())


@pytest.mark.parametrize(("orders", "gathers"), [((0, 0), 1), ((0, 1), 2), ((None, 0), 1), ((None, None), 0)])
def test_layers_of_one_input_share_its_order_and_sums(
    orders: tuple[int | None, int | None], gathers: int, tmp_path: Path
) -> None:
    x, weight = given()
    other = ir.Value(name="v", shape=weight.shape, type=weight.type)
    nodes = [ir.node("Gemm", [x, one], {"transB": 1}) for one in (weight, other)]
    graph = graph_of([weight, other], [*nodes, ir.node("Mul", [node.outputs[0] for node in nodes])], [x])
    permutations = [None if seed is None else np.random.default_rng(seed).permutation(K) for seed in orders]
    layers = {
        name: layer(tmp_path, name, True, order) for name, order in zip("wv", permutations, strict=True)
    }
    if orders == (0, 0):  # as `Placing` stores one order for layers that have it in common
        layers["v"] = replace(layers["v"], order=layers["w"].order)
    written(graph, layers, tmp_path)
    given_x = np.random.default_rng(2).standard_normal((3, K)).astype(np.float32)
    found, _ = run(tmp_path, x=given_x)
    expected = product_of(tmp_path, layers["w"], given_x) * product_of(tmp_path, layers["v"], given_x)
    assert np.allclose(found, expected, rtol=1e-3, atol=1e-2)
    made = kinds(tmp_path)
    assert (made.count("Gather"), made.count("ReduceSum")) == (gathers, len(set(orders)))


def run(folder: Path, **feeds: Any) -> tuple[np.ndarray, list[str]]:
    """The result, and the operators that ONNX Runtime ran."""
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(folder / "optimised.onnx")
    settings.log_severity_level = 3
    # Exact for 4 bits, where the default rounds the inputs to 8.
    settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), settings, disabled_optimizers=["ConstantFolding"]
    )
    ran = onnx.load(folder / "optimised.onnx", load_external_data=False).graph.node
    return session.run(None, feeds)[0], [node.op_type for node in ran]


@pytest.mark.parametrize("kind", ["int4", "int8"])
@pytest.mark.parametrize("model", [transposed(), transposed(2), gemm(False), gemm(True)])
def test_a_linear_layer_in_blocks_is_one_operator_of_onnx_runtime(
    model: ir.Model, kind: BlockKind, tmp_path: Path
) -> None:
    graph, uses = model.clone(), 2 if len(model.graph) > 4 else 1
    weight = torch.randn(N, K)
    placed = attached(graph, weight, BlockForm(kind, 32), tmp_path)
    assert isinstance(placed, placing.QuantisedTensor)
    x = torch.randn(3, K)
    feeds = {"x": x.numpy()}
    dequantised = placed.blocks(tmp_path).weight().T
    expected = x @ dequantised
    if uses == 2:
        expected = expected * (x.abs() @ dequantised)
    if len(model.graph.inputs) > 1:
        feeds["b"] = np.arange(N, dtype=np.float32)
        expected = expected + torch.arange(N)
    found, ran = run(tmp_path, **feeds)
    assert np.allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert ran.count("MatMulNBits") == uses
    assert "DequantizeLinear" not in ran


def test_eight_bit_floats_run_as_they_are(tmp_path: Path) -> None:
    graph = transposed()
    placed = attached(graph, torch.randn(N, K), BlockForm("fp8", 32), tmp_path)
    assert isinstance(placed, placing.QuantisedTensor)
    x = torch.randn(3, K)
    found, _ = run(tmp_path, x=x.numpy())
    assert np.allclose(found, x @ placed.blocks(tmp_path).weight().T, atol=1e-4)


@pytest.mark.parametrize("model", [transposed(2), gemm(True)])
@pytest.mark.parametrize("compute", [ir.DataType.FLOAT, ir.DataType.FLOAT16])
def test_four_bit_floats_are_scaled_twice(model: ir.Model, compute: ir.DataType, tmp_path: Path) -> None:
    """ONNX Runtime has no kernel; onnx's reference computes what the operators mean."""
    graph = model.clone()
    graph.opset_imports[""], graph.ir_version = 23, 11
    for value in (*graph.graph.inputs, *graph.graph.outputs, *graph.graph.initializers.values()):
        value.type = ir.TensorType(compute)
    placed = attached(graph, torch.randn(N, K), BlockForm("nvfp4", 16), tmp_path)
    assert isinstance(placed, placing.QuantisedTensor)
    ((name, blocks),) = stored_blocks(tmp_path / "model.onnx")
    expected = placed.blocks(tmp_path).weight()
    assert name == "w"
    assert torch.equal(blocks.weight(), expected)

    x, b = np.random.default_rng(0).standard_normal((3, K)), np.arange(N)
    feeds = {one.name: {"x": x, "b": b}[one.name].astype(compute.numpy()) for one in graph.graph.inputs}
    (found,) = ReferenceEvaluator(onnx.load(tmp_path / "model.onnx")).run(None, feeds)
    product = x @ expected.numpy().T
    meant = product + b if len(feeds) > 1 else product * (np.abs(x) @ expected.numpy().T)
    assert np.allclose(found, meant, rtol=1e-2, atol=0.5 if compute == ir.DataType.FLOAT16 else 1e-4)


def test_a_weight_that_is_read_otherwise_is_refused(tmp_path: Path) -> None:
    x, weight = given()
    graph = graph_of([weight], [ir.node("Add", [x, weight])], [x])
    with pytest.raises(UnsupportedModelError, match=r"the weight w is read by Add, .*weights of a floating"):
        attached(graph, torch.randn(N, K), BlockForm("int4", 32), tmp_path)


def test_a_narrow_weight_is_widened_where_it_is_read(tmp_path: Path) -> None:
    graph, weight = transposed(2), torch.randn(N, K)
    attached(graph, weight, torch.float16, tmp_path)
    x = torch.randn(3, K)
    found, _ = run(tmp_path, x=x.numpy())
    narrow = weight.half().float().T
    assert np.allclose(found, (x @ narrow) * (x.abs() @ narrow), atol=1e-3)
    written = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    assert [node.op_type for node in written.node].count("Cast") == 1
    assert written.initializer[0].data_type == onnx.TensorProto.FLOAT16


def test_of_a_narrow_table_rows_are_widened(tmp_path: Path) -> None:
    rows = ir.Input("x", ir.Shape(["n"]), ir.TensorType(ir.DataType.INT64))
    weight, table = given()[1], torch.randn(N, K)
    node = ir.node("Gather", [weight, rows])
    attached(graph_of([weight], [node], [rows]), table, torch.float16, tmp_path)
    found, ran = run(tmp_path, x=np.array([3, 1]))
    assert np.array_equal(found, table[[3, 1]].half().float())
    assert ran == ["Gather", "Cast"]
