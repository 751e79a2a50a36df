"""The operator's torch form and its ONNX function body against the numpy reference."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, defs, helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from edgeprune.debias.selection import kept_count, select
from edgeprune.exporter import op
from tests.edgeprune.debias.test_selection import stages

PROPERTY = settings(deadline=None, max_examples=120, derandomize=True)
OPSETS = (18, 22)
INPUTS = {
    "hidden_states": ("batch", "sequence", "width"),
    "score": ("batch", "sequence"),
    "visual_index": ("batch", "visual"),
    "visual_valid": ("batch", "visual"),
    "bias_curve": ("curve",),
}
Array = NDArray[Any]
Stage = dict[str, Any]


@functools.cache
def one_node(keep: int, opset: int = 18, hidden_type: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A graph of one DebiasedTokenPrune node, every axis dynamic, with its function body."""
    types = {"hidden_states": hidden_type, "visual_index": TensorProto.INT64}
    inputs = [
        helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), shape)
        for name, shape in INPUTS.items()
    ]
    outputs = [
        helper.make_tensor_value_info("pruned_states", hidden_type, ("batch", "kept", "width")),
        helper.make_tensor_value_info("kept_index", TensorProto.INT64, ("batch", "kept")),
    ]
    node = helper.make_node(
        op.OP_NAME, list(INPUTS), ["pruned_states", "kept_index"], domain=op.DOMAIN, keep_per_10000=keep
    )
    graph = helper.make_graph([node], "one", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    op.append_function(model)
    return model


@functools.cache
def session(keep: int, opset: int = 18, hidden_type: int = TensorProto.FLOAT) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    model = one_node(keep, opset, hidden_type).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def feeds(stage: Stage, width: int = 3, dtype: type[np.generic] = np.float32) -> dict[str, Array]:
    """The operator's inputs; the hidden state of position p is p, so that a wrong gather shows."""
    batch, sequence = stage["score"].shape
    hidden = np.arange(batch * sequence, dtype=np.float32).reshape(batch, sequence, 1) * [1.0, -1.0, 0.5]
    return {
        "hidden_states": hidden[:, :, :width].astype(dtype),
        **{name: stage[name] for name in INPUTS if name != "hidden_states"},
    }


def expected(stage: Stage, inputs: dict[str, Array]) -> tuple[Array, Array]:
    index = select(**stage).kept_index
    return np.take_along_axis(inputs["hidden_states"], index[:, :, None], axis=1), index


def torch_op(stage: Stage, inputs: dict[str, Array]) -> tuple[Array, Array]:
    states, index = op.debiased_token_prune(
        *(torch.from_numpy(inputs[name].copy()) for name in INPUTS), stage["keep"]
    )
    return states.numpy(), index.numpy()


def on_onnxruntime(stage: Stage, inputs: dict[str, Array], opset: int = 18) -> tuple[Array, Array]:
    half = inputs["hidden_states"].dtype == np.float16
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    states, index = session(stage["keep"], opset, kind).run(None, inputs)
    return states, index


def on_reference_evaluator(stage: Stage, inputs: dict[str, Array]) -> tuple[Array, Array]:
    with np.errstate(all="ignore"):
        states, index = ReferenceEvaluator(one_node(stage["keep"])).run(None, inputs)
    return states, index


def assert_same(found: tuple[Array, Array], wanted: tuple[Array, Array]) -> None:
    for have, want in zip(found, wanted, strict=True):
        assert have.dtype == want.dtype
        np.testing.assert_array_equal(have, want)


def stage_of(
    score: Any, valid: Any = None, keep: int = 5000, curve: Any = None, text: int = 2, batch: int = 1
) -> Stage:
    """A stage whose visual tokens, with these scores, stand behind the first of the text tokens."""
    visual = np.array(score, dtype=np.float32).reshape(batch, -1)
    count = visual.shape[1]
    scores = np.concatenate([np.full((batch, 1), 9.0), visual, np.full((batch, text - 1), 9.0)], axis=1)
    shown = np.ones((batch, count)) if valid is None else np.array(valid).reshape(batch, count)
    return {
        "score": scores.astype(np.float32),
        "visual_index": np.tile(np.arange(1, count + 1, dtype=np.int64), (batch, 1)),
        "visual_valid": shown.astype(np.float32),
        "bias_curve": np.ones(count, np.float32) if curve is None else np.array(curve, dtype=np.float32),
        "keep": keep,
    }


NAN, INF = float("nan"), float("inf")
LOWEST = float(np.finfo(np.float32).min)
ADVERSARIAL = {
    "all equal": stage_of([0.25] * 9, keep=4000),
    "all zero": stage_of([0.0] * 6),
    "both zeros": stage_of([-0.0, 0.0, -0.0, 0.0]),
    "ties at the threshold": stage_of([3, 1, 2, 1, 1, 2, 1, 3], keep=6250),
    "all NaN": stage_of([NAN] * 5),
    "NaN beside numbers": stage_of([NAN, 0.1, NAN, 0.2, -1], keep=6000),
    "NaN and -inf tie with the lowest": stage_of([LOWEST, NAN, -INF, LOWEST], keep=5000),
    "all +inf": stage_of([INF] * 5),
    "all -inf": stage_of([-INF] * 5),
    "-inf of padding and of a score": stage_of([-INF, 5, 4, -INF], valid=[1, 0, 0, 1]),
    "all padded": stage_of([0.4, 0.1, 0.3, 0.2], valid=[0] * 4),
    "padded ones fill up": stage_of([0.4, 0.1, 0.3, 0.2], valid=[0, 0, 1, 0], keep=7500),
    "padded NaN and inf": stage_of([NAN, INF, 0.0, -INF], valid=[0, 0, 1, 0]),
    "underflow beats padding": stage_of([1.0, 1e-45, 1.0], valid=[0, 1, 0], keep=3334, curve=[1, 0.25, 1]),
    "overflow": stage_of([3e38, 3e38, 1.0], curve=[4, 4, 1], keep=3334),
    "K is V": stage_of([0.1, 0.3, 0.2], keep=10000),
    "K is 1": stage_of([0.1, 0.3, 0.2, 0.3], keep=1),
    "V is 1": stage_of([0.1], keep=1),
    "V is 0": stage_of([], curve=[1, 1]),
    "curve longer than V": stage_of([1, 1, 1], curve=[1, 2, 3, 99, 99], keep=3334),
    "only visual tokens after the first": stage_of([0.2, 0.1, 0.3], text=1),
    "batch": stage_of([0.1, 0.3, 0.2, 0.4, 0.4, 0.1, NAN, 0.4], batch=2),
}


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("run", [torch_op, on_onnxruntime, on_reference_evaluator])
def test_keeps_what_the_reference_keeps(run: Any, name: str) -> None:
    stage = ADVERSARIAL[name]
    inputs = feeds(stage)
    assert_same(run(stage, inputs), expected(stage, inputs))


@PROPERTY
@given(stage=stages())
def test_torch_keeps_what_the_reference_keeps(stage: Stage) -> None:
    inputs = feeds(stage)
    assert_same(torch_op(stage, inputs), expected(stage, inputs))


@PROPERTY
@given(stage=stages(), opset=st.sampled_from(OPSETS))
def test_the_body_keeps_what_the_reference_keeps(stage: Stage, opset: int) -> None:
    assume(stage["score"].shape[1] > 0)  # the scoring token is always there
    inputs = feeds(stage)
    assert_same(on_onnxruntime(stage, inputs, opset), expected(stage, inputs))


@pytest.mark.parametrize("count", [1, 2, 7, 144, 576, 2880])
@pytest.mark.parametrize("keep", [1, 1111, 3000, 5000, 9999, 10000])
def test_the_body_keeps_the_same_number(count: int, keep: int) -> None:
    stage = stage_of(np.linspace(1, 0, count), keep=keep)
    _, index = on_onnxruntime(stage, feeds(stage))
    assert index.shape[1] == 2 + kept_count(count, keep)


@pytest.mark.parametrize("run", [torch_op, on_onnxruntime])
def test_half_precision_hidden_states_leave_the_scores_in_float32(run: Any) -> None:
    # In float16 both scores would be equal, and the lower index would win.
    stage = stage_of([0.5, 0.5 + 2**-20, 0.1], keep=3334)
    inputs = feeds(stage, dtype=np.float16)
    states, index = run(stage, inputs)
    assert states.dtype == np.float16
    assert_same((states, index), expected(stage, inputs))
    assert index.tolist() == [[0, 2, 4]]


@pytest.mark.parametrize("run", [torch_op, on_onnxruntime])
def test_a_curve_shorter_than_the_visual_tokens_is_refused(run: Any) -> None:
    stage = stage_of([0.1, 0.2, 0.3], curve=[1, 1])
    with pytest.raises((RuntimeError, Fail), match=r"2.*3|3.*2"):
        run(stage, feeds(stage))


def test_torch_is_traced_as_one_node_of_dynamic_length() -> None:
    """`torch.export` keeps the op whole, and its output length is not derived from the sample's."""
    stage = stage_of([0.1, 0.3, 0.2], keep=3000)
    inputs = [torch.from_numpy(value) for value in feeds(stage).values()]

    class Prune(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return op.debiased_token_prune(*tensors, 3000)

    program = torch.export.export(Prune(), tuple(inputs))
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names.count("edgeprune.debiased_token_prune.default") == 1
    torch.library.opcheck(
        op.debiased_token_prune, (*inputs, 3000), test_utils=("test_schema", "test_faketensor")
    )


def test_the_schema_is_registered_once_with_the_documented_names() -> None:
    op.register_schema()
    op.register_schema()
    schema = defs.get_schema(op.OP_NAME, domain=op.DOMAIN)
    assert schema.since_version == op.OP_VERSION == 1
    assert [value.name for value in schema.inputs] == list(INPUTS)
    assert [value.name for value in schema.outputs] == ["pruned_states", "kept_index"]
    attribute = schema.attributes[op.KEEP_ATTRIBUTE]
    assert attribute.required
    assert attribute.type == defs.OpSchema.AttrType.INT


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_the_checker_accepts_node_and_body(opset: int, kind: int) -> None:
    op.register_schema()
    model = one_node(3000, opset, kind)
    onnx.checker.check_model(model, full_check=True)
    (function,) = model.functions
    assert (function.domain, function.name) == (op.DOMAIN, op.OP_NAME)
    assert [entry.version for entry in function.opset_import if entry.domain == ""] == [opset]
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": opset, op.DOMAIN: 1}
    assert {node.domain for node in function.node} == {""}


def test_the_checker_refuses_a_node_without_its_keep_ratio() -> None:
    op.register_schema()
    model = onnx.ModelProto()
    model.CopyFrom(one_node(3000))
    del model.graph.node[0].attribute[:]
    del model.functions[:]
    with pytest.raises(onnx.checker.ValidationError, match=op.KEEP_ATTRIBUTE):
        onnx.checker.check_model(model)


def test_counts_its_nodes() -> None:
    assert op.has_node(one_node(3000)) == 1
    assert op.has_node(onnx.ModelProto()) == 0
