"""ONNX files: weights by reference, nothing of the exporting machine in them, checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import save_file

from edgeprune.errors import VerificationError
from edgeprune.exporter import assemble, op
from edgeprune.exporter.weights import StoredTensor, read_header
from edgeprune.interface import Interface, TensorSpec
from tests.export.conftest import CURVE, Exported

FLOAT = ir.DataType.FLOAT
INTERFACE = Interface(
    (TensorSpec(name="x", dtype="float32", shape=("rows", 64)),),
    (TensorSpec(name="y", dtype="float32", shape=("rows", 64)),),
)


def transposed_product() -> ir.Model:
    """y = x W^T + (1 + 1), with the weight still to be attached."""
    x = ir.Input("in", ir.Shape(["n", 64]), ir.TensorType(FLOAT))
    weight = ir.Value(name="w", shape=ir.Shape([64, 64]), type=ir.TensorType(FLOAT))
    one = ir.Value(name="one", const_value=ir.tensor(np.ones(1, np.float32), name="one"))
    flipped = ir.node("Transpose", [weight], {"perm": [1, 0]})
    product = ir.node("MatMul", [x, flipped.outputs[0]])
    two = ir.node("Add", [one, one])
    total = ir.node("Add", [product.outputs[0], two.outputs[0]])
    total.metadata_props["pkg.torch.onnx.stack_trace"] = "/home/somebody/model.py"
    total.doc_string = "/home/somebody"
    total.outputs[0].type = ir.TensorType(FLOAT)
    graph = ir.Graph(
        [x],
        total.outputs,
        nodes=[flipped, product, two, total],
        initializers=[weight, one],
        opset_imports={"": 18},
        name="main",
    )
    return ir.Model(graph, ir_version=10)


@pytest.fixture
def stored(tmp_path: Path) -> StoredTensor:
    save_file({"other": torch.zeros(5), "weight": torch.randn(64, 64)}, tmp_path / "model.safetensors")
    return read_header(tmp_path / "model.safetensors")["weight"]


def test_a_weight_is_referred_to_and_never_folded(stored: StoredTensor, tmp_path: Path) -> None:
    model = transposed_product()
    assemble.attach(model, {"w": stored}, tmp_path)
    assemble.optimize(model)
    assemble.save(model, INTERFACE, tmp_path / "graph.onnx", "1.2.3")
    assemble.check(tmp_path / "graph.onnx", INTERFACE, 0)
    written = onnx.load(tmp_path / "graph.onnx", load_external_data=False)
    by_name = {value.name: value for value in written.graph.initializer}
    place = {entry.key: entry.value for entry in by_name["w"].external_data}
    assert (place["location"], int(place["offset"]), int(place["length"])) == (
        stored.file,
        stored.offset,
        stored.length,
    )
    # The transposition stays a node; the small constants do not.
    assert [node.op_type for node in written.graph.node] == ["Transpose", "MatMul", "Add"]
    assert (tmp_path / "graph.onnx").stat().st_size < stored.length


def test_tied_weights_are_one_initializer(stored: StoredTensor, tmp_path: Path) -> None:
    model = transposed_product()
    (flipped, product, *_) = model.graph
    tied = ir.Value(name="tied", const_value=ir.tensor(np.zeros((64, 64), np.float32), name="tied"))
    model.graph.register_initializer(tied)
    product.replace_input_with(0, tied)
    assemble.attach(model, {"w": stored, "tied": stored}, tmp_path)
    assert list(model.graph.initializers) == ["w", "one"]
    assert product.inputs[0] is flipped.inputs[0] is model.graph.initializers["w"]


def test_the_file_says_nothing_of_the_machine(stored: StoredTensor, tmp_path: Path) -> None:
    model = transposed_product()
    model.metadata_props["path"] = "/home/somebody"
    assemble.attach(model, {"w": stored}, tmp_path)
    assemble.save(model, INTERFACE, tmp_path / "graph.onnx", "1.2.3")
    assert b"/home" not in (tmp_path / "graph.onnx").read_bytes()
    written = onnx.load(tmp_path / "graph.onnx", load_external_data=False)
    assert (written.producer_name, written.producer_version) == ("edgeprune", "1.2.3")


def test_an_initializer_without_values_is_an_error(tmp_path: Path) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = transposed_product()
    with FakeTensorMode():
        fake = torch.empty(64, 64)
    model.graph.initializers["w"].const_value = ir.tensor_adapters.TorchTensor(fake, name="w")
    with pytest.raises(VerificationError, match="initializer w has no source"):
        assemble.attach(model, {}, tmp_path)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("kind", "opset", "wide"), [("BFLOAT16", 18, True), ("BFLOAT16", 22, False), ("FLOAT16", 18, False)]
)
def test_convolutions_have_a_dtype_that_the_opset_knows(
    kind: str, opset: int, wide: bool, biased: bool, tmp_path: Path
) -> None:
    dtype, stored = ir.TensorType(ir.DataType[kind]), getattr(torch, kind.lower())
    x = ir.Input("x", ir.Shape(["n", 3, 8, 8]), dtype)
    weight, bias = (
        ir.Value(name=n, const_value=ir.tensor(torch.ones(shape).to(stored), name=n))
        for n, shape in (("w", (2, 3, 4, 4)), ("b", (2,)))
    )
    conv = ir.node("Conv", [x, weight, bias] if biased else [x, weight], {"strides": [4, 4]})
    conv.outputs[0].type = dtype
    result = ir.node("Relu", conv.outputs)
    result.outputs[0].type = dtype
    graph = ir.Graph(
        [x],
        result.outputs,
        nodes=[conv, result],
        initializers=[weight, bias] if biased else [weight],
        opset_imports={"": opset},
        name="main",
    )
    model = ir.Model(graph, ir_version=10)
    assemble.optimize(model)
    path = tmp_path / "graph.onnx"
    ends = TensorSpec(name="y", dtype="float32", shape=("n", 2, 2, 2))
    interface = Interface((TensorSpec(name="x", dtype="float32", shape=("n", 3, 8, 8)),), (ends,))
    assemble.save(model, interface, path, "1")
    assemble.check(path, interface, 0)
    found = [node.op_type for node in onnx.load(path).graph.node]
    assert found == (["Cast"] * (3 if biased else 2) + ["Conv", "Cast", "Relu"] if wide else ["Conv", "Relu"])


def test_sources_follow_identity_through_other_names() -> None:
    """The traced module has names of its own for the model's tensors; tied ones share a source."""
    model = torch.nn.Module()
    model.inner = torch.nn.Linear(2, 2)
    model.tied = torch.nn.Linear(2, 2, bias=False)
    model.tied.weight = model.inner.weight
    model.register_buffer("table", torch.ones(3), persistent=False)
    module = torch.nn.Module()
    module.part, module.head = model.inner, model.tied
    module.register_buffer("again", model.table)
    module.register_buffer("own", torch.zeros(1))
    weight, bias = (StoredTensor("f", key, torch.float32, (2, 2), 0, 16) for key in ("w", "b"))
    stored = {"inner.weight": weight, "tied.weight": weight, "inner.bias": bias}
    table = torch.full((3,), 7.0)
    sources = assemble.initializer_sources(module, model, stored, {"table": table})
    assert sources == {
        "part.weight": weight,
        "head.weight": weight,
        "part.bias": bias,
        "again": sources["again"],
    }
    assert sources["again"] is table


def test_the_check_compares_with_plan_and_interface(stored: StoredTensor, tmp_path: Path) -> None:
    model = transposed_product()
    assemble.attach(model, {"w": stored}, tmp_path)
    path = tmp_path / "graph.onnx"
    assemble.save(model, INTERFACE, path, "1")
    with pytest.raises(VerificationError, match=r"\.onnx has 0 DebiasedTokenPrune nodes, the plan has 1"):
        assemble.check(path, INTERFACE, 1)
    renamed = Interface(INTERFACE.inputs, (TensorSpec(name="z", dtype="float32", shape=("rows", 64)),))
    with pytest.raises(VerificationError, match=r"outputs \['y'\], expected \['z'\]"):
        assemble.check(path, renamed, 0)


@pytest.mark.slow
def test_the_exported_file_carries_node_function_and_curve(pruned: Exported) -> None:
    path = pruned.bundle / "language.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    nodes = [node for node in model.graph.node if node.domain == "com.edgeprune"]
    assert [node.op_type for node in nodes] == ["DebiasedTokenPrune"]
    # How many it keeps, and by which weights, is told when it runs.
    assert not nodes[0].attribute
    assert nodes[0].input[4] == "kept_slots.0"
    assert [(body.domain, body.name) for body in model.functions] == [("com.edgeprune", "DebiasedTokenPrune")]
    assert {entry.domain for entry in model.opset_import} == {"", "com.edgeprune"}
    (place,) = (node.output[0] for node in model.graph.node if "curve_place" in node.input)
    (reader,) = (node for node in model.graph.node if place in node.input)
    (curve,) = (value for value in model.graph.initializer if value.name == reader.input[0])
    np.testing.assert_array_equal(numpy_helper.to_array(curve), [1, *CURVE.weights(36)])
    # Later shapes are known as far as they can be.
    shapes = {value.name: value for value in model.graph.value_info}
    assert nodes[0].output[0] in shapes


@pytest.mark.slow
@pytest.mark.parametrize("file", ["language.onnx", "vision.onnx"])
def test_every_weight_of_the_exported_file_is_the_models(pruned: Exported, file: str) -> None:
    parameters = dict(pruned.huggingface().named_parameters())
    model = onnx.load(pruned.bundle / file, load_external_data=False)
    external = [value for value in model.graph.initializer if value.external_data]
    assert len(external) > 10
    prefixes = {"text_model.": "model.language_model.", "tower.": "model.vision_tower."}
    prefixes |= {"projector.": "model.multi_modal_projector.", "lm_head.": "lm_head."}
    for value in external:
        (prefix,) = (prefix for prefix in prefixes if value.name.startswith(prefix))
        parameter = parameters[value.name.replace(prefix, prefixes[prefix], 1)]
        found = numpy_helper.to_array(value, base_dir=str(pruned.bundle))
        np.testing.assert_array_equal(found, parameter.detach().numpy())
    # What is in the file itself is small.
    assert sum(len(value.raw_data) for value in model.graph.initializer) < 8192


@pytest.mark.slow
def test_a_bfloat16_export_passes_the_checker(brain: Exported) -> None:
    for file in ("language.onnx", "vision.onnx"):
        onnx.checker.check_model(str(brain.bundle / file), full_check=True)
    model = onnx.load(brain.bundle / "language.onnx", load_external_data=False)
    weights = [value for value in model.graph.initializer if value.external_data]
    assert {value.data_type for value in weights} == {onnx.TensorProto.BFLOAT16}
    assert op.has_node(model) == 1


@pytest.mark.slow
def test_the_method_none_leaves_no_trace_of_pruning(unpruned: Exported) -> None:
    model = onnx.load(unpruned.bundle / "language.onnx", load_external_data=False)
    assert op.has_node(model) == 0
    assert not model.functions
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 23}
    assert "bias_curve" not in [value.name for value in model.graph.initializer]
