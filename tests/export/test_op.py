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
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from edgeprune.debias.selection import select
from edgeprune.exporter import op
from tests.edgeprune.debias.test_selection import stages

PROPERTY = settings(deadline=None, max_examples=120, derandomize=True)
OPSETS = (18, 23)
INPUTS = {
    "hidden_states": ("batch", "sequence", "width"),
    "score": ("batch", "sequence"),
    "visual_index": ("batch", "visual"),
    "weight": ("batch", "visual"),
    "kept_slots": ("rows", "slots"),
}
Array = NDArray[Any]
Stage = dict[str, Any]


@functools.cache
def one_node(opset: int = 18, hidden_type: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A graph of one DebiasedTokenPrune node, every axis dynamic, with its function body."""
    types = {"hidden_states": hidden_type, "visual_index": TensorProto.INT64, "kept_slots": TensorProto.INT64}
    inputs = [
        helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), shape)
        for name, shape in INPUTS.items()
    ]
    outputs = [
        helper.make_tensor_value_info("pruned_states", hidden_type, ("batch", "kept", "width")),
        helper.make_tensor_value_info("kept_index", TensorProto.INT64, ("batch", "kept")),
    ]
    node = helper.make_node(op.OP_NAME, list(INPUTS), ["pruned_states", "kept_index"], domain=op.DOMAIN)
    graph = helper.make_graph([node], "one", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    op.append_function(model)
    return model


@functools.cache
def session(opset: int = 18, hidden_type: int = TensorProto.FLOAT) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    model = one_node(opset, hidden_type).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def feeds(stage: Stage, dtype: type[np.generic] = np.float32, rows: int = 1) -> dict[str, Array]:
    """The operator's inputs; the hidden state of position p is made of p, so that a wrong gather shows.

    Args:
        stage: as `select` takes it.
        dtype: of the hidden states.
        rows: of `kept_slots`, whose values are none that an index could be.
    """
    batch, sequence = stage["score"].shape
    hidden = np.arange(batch * sequence, dtype=np.float32).reshape(batch, sequence, 1) * [1.0, -1.0, 0.5]
    return {
        "hidden_states": hidden.astype(dtype),
        **{name: stage[name] for name in ("score", "visual_index", "weight")},
        "kept_slots": np.full((rows, stage["kept"]), -(2**40), dtype=np.int64),
    }


def expected(stage: Stage, inputs: dict[str, Array]) -> tuple[Array, Array]:
    index = select(**stage).kept_index
    return np.take_along_axis(inputs["hidden_states"], index[:, :, None], axis=1), index


def torch_op(inputs: dict[str, Array]) -> tuple[Array, Array]:
    states, index = op.debiased_token_prune(*(torch.from_numpy(inputs[name].copy()) for name in INPUTS))
    return states.numpy(), index.numpy()


def on_onnxruntime(inputs: dict[str, Array], opset: int = 18) -> tuple[Array, Array]:
    half = inputs["hidden_states"].dtype == np.float16
    states, index = session(opset, TensorProto.FLOAT16 if half else TensorProto.FLOAT).run(None, inputs)
    return states, index


def on_reference_evaluator(inputs: dict[str, Array]) -> tuple[Array, Array]:
    with np.errstate(all="ignore"):
        states, index = ReferenceEvaluator(one_node()).run(None, inputs)
    return states, index


def assert_same(found: tuple[Array, Array], wanted: tuple[Array, Array]) -> None:
    for have, want in zip(found, wanted, strict=True):
        assert have.dtype == want.dtype
        np.testing.assert_array_equal(have, want)


def stage_of(score: Any, kept: int, weight: Any = None, text: int = 2, batch: int = 1) -> Stage:
    """A stage whose visual tokens, with these scores, stand behind the first of the text tokens.

    With one text token they end the prompt.
    """
    visual = np.array(score, dtype=np.float32).reshape(batch, -1)
    count = visual.shape[1]
    scores = np.concatenate([np.full((batch, 1), 9.0), visual, np.full((batch, text - 1), 9.0)], axis=1)
    weights = np.ones((batch, count)) if weight is None else np.array(weight).reshape(batch, count)
    return {
        "score": scores.astype(np.float32),
        "visual_index": np.tile(np.arange(1, count + 1, dtype=np.int64), (batch, 1)),
        "weight": weights.astype(np.float32),
        "kept": kept,
    }


NAN, INF = float("nan"), float("inf")
LOWEST = float(np.finfo(np.float32).min)
LARGEST = float(np.finfo(np.float32).max)
ADVERSARIAL = {
    "all equal": stage_of([0.25] * 9, 4),
    "all zero": stage_of([0.0] * 6, 3),
    "both zeros": stage_of([-0.0, 0.0, -0.0, 0.0], 2),
    "ties at the threshold": stage_of([3, 1, 2, 1, 1, 2, 1, 3], 5),
    "all NaN": stage_of([NAN] * 5, 3),
    "NaN beside numbers": stage_of([NAN, 0.1, NAN, 0.2, -1], 3),
    "NaN and -inf tie with the lowest": stage_of([LOWEST, NAN, -INF, LOWEST], 2),
    "all +inf": stage_of([INF] * 5, 3),
    "all -inf": stage_of([-INF] * 5, 3),
    "-inf of padding and of a score": stage_of([-INF, 5, 4, -INF], 2, weight=[1, 0, 0, 1]),
    "all padded": stage_of([0.4, 0.1, 0.3, 0.2], 2, weight=[0] * 4),
    "padded ones fill up": stage_of([0.4, 0.1, 0.3, 0.2], 3, weight=[0, 0, 1, 0]),
    "padded NaN and inf": stage_of([NAN, INF, 0.0, -INF], 2, weight=[0, 0, 1, 0]),
    "underflow beats padding": stage_of([1.0, 1e-45, 1.0], 1, weight=[0, 0.25, 0]),
    "overflow": stage_of([3e38, 3e38, 1.0], 1, weight=[4, 4, 1]),
    "a negative zero is no weight": stage_of([0.3, 0.2, 0.1], 2, weight=[-0.0, 1, 0]),
    "weights turn the order": stage_of([0.4, 0.3, 0.2], 1, weight=[0.25, 0.5, 1]),
    "K is V": stage_of([0.1, 0.3, 0.2], 3),
    "K is 1": stage_of([0.1, 0.3, 0.2, 0.3], 1),
    "K is 0": stage_of([0.1, 0.3, 0.2, 0.3], 0),
    "K is 0, with +inf": stage_of([INF, NAN, INF], 0),
    "V is 1": stage_of([0.1], 1),
    "V is 0": stage_of([], 0),
    "batch": stage_of([0.1, 0.3, 0.2, 0.4, 0.4, 0.1, NAN, 0.4], 2, batch=2),
    "a visual token at the last position": stage_of([0.4, 0.3, 0.1], 1, text=1),
    "padding at the last position": stage_of([0.4, 0.3, 0.9], 2, weight=[1, 1, 0], text=1),
    "NaN at the last position": stage_of([0.4, 0.3, NAN], 1, text=1),
    "the last position beats the largest and +inf": stage_of([LARGEST, INF, -1], 1, text=1),
    "the last position where K is 0": stage_of([0.4, 0.3, 0.1], 0, text=1),
    "the last position where K is V": stage_of([0.4, 0.3, 0.1], 3, weight=[0, 0, 0], text=1),
    "the last position, all padded": stage_of([0.4, 0.3, 0.1, 0.2], 2, weight=[0] * 4, text=1),
}


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("run", [torch_op, on_onnxruntime, on_reference_evaluator])
def test_keeps_what_the_reference_keeps(run: Any, name: str) -> None:
    stage = ADVERSARIAL[name]
    inputs = feeds(stage)
    assert_same(run(inputs), expected(stage, inputs))


@PROPERTY
@given(stage=stages(), per_prompt=st.booleans())
def test_torch_keeps_what_the_reference_keeps(stage: Stage, per_prompt: bool) -> None:
    inputs = feeds(stage, rows=len(stage["score"]) if per_prompt else 1)
    assert_same(torch_op(inputs), expected(stage, inputs))


@PROPERTY
@given(stage=stages(), per_prompt=st.booleans(), opset=st.sampled_from(OPSETS))
def test_the_body_keeps_what_the_reference_keeps(stage: Stage, per_prompt: bool, opset: int) -> None:
    assume(stage["score"].shape[1] > 0)  # the scoring token is always there
    inputs = feeds(stage, rows=len(stage["score"]) if per_prompt else 1)
    assert_same(on_onnxruntime(inputs, opset), expected(stage, inputs))


@PROPERTY
@given(stage=stages(), end=st.sampled_from(["none", "all"]))
def test_keeping_none_and_all(stage: Stage, end: str) -> None:
    batch, sequence = stage["score"].shape
    visual = stage["visual_index"].shape[1]
    assume(sequence > 0 and visual > 0)
    stage = {**stage, "kept": 0 if end == "none" else visual}
    inputs = feeds(stage)
    found = on_onnxruntime(inputs)
    assert_same(found, expected(stage, inputs))
    assert_same(torch_op(inputs), found)
    if end == "all":
        assert found[1].tolist() == [list(range(sequence))] * batch
    else:
        rows = zip(found[1], stage["visual_index"], strict=True)
        assert not any(np.isin(kept, of_row).any() for kept, of_row in rows)


class TopK(OpRun):
    """As ONNX Runtime's CUDA kernel: it fills rows up with the lowest finite number, which is above -inf."""

    def _run(self, values: Array, count: Array, **_: Any) -> tuple[Array, Array]:
        length = 1 << values.shape[1].bit_length()
        filled = np.full((values.shape[0], length), np.finfo(values.dtype).min, dtype=values.dtype)
        filled[:, : values.shape[1]] = values
        best = np.argsort(-filled, axis=1, kind="stable")[:, : int(count[0])]
        return np.take_along_axis(filled, best, axis=1), best


@PROPERTY
@given(stage=stages(), end=st.sampled_from(["some", "all"]))
def test_the_body_does_not_lean_on_minus_infinity_in_topk(stage: Stage, end: str) -> None:
    if end == "all":
        stage = {**stage, "kept": stage["visual_index"].shape[1]}
    inputs = feeds(stage)
    inlined = inline_local_functions(one_node())
    found = ReferenceEvaluator(inlined, new_ops=[TopK]).run(None, inputs)
    assert_same((found[0], found[1]), expected(stage, inputs))


@PROPERTY
@given(stage=stages(), weight=st.sampled_from([0.0, 1.0]), score=st.sampled_from([NAN, -INF, 0.0]))
def test_the_last_position_stays(stage: Stage, weight: float, score: float) -> None:
    sequence = stage["score"].shape[1]
    assume(stage["visual_index"].shape[1] > 0)
    # The last visual token of every prompt is moved to the end, and is the worst of all.
    stage = {name: np.copy(value) for name, value in stage.items()}
    stage["visual_index"][:, -1] = sequence - 1
    stage["score"][:, -1], stage["weight"][:, -1] = score, weight
    stage["kept"] = max(1, int(stage["kept"]))
    inputs = feeds(stage)
    for found in (torch_op(inputs), on_onnxruntime(inputs)):
        assert_same(found, expected(stage, inputs))
        assert (found[1][:, -1] == sequence - 1).all()


@pytest.mark.parametrize("count", [1, 2, 7, 144, 576, 2880])
@pytest.mark.parametrize("share", [0.0, 0.1111, 0.5, 0.9999, 1.0])
def test_the_body_keeps_as_many_as_there_are_slots(count: int, share: float) -> None:
    kept = int(count * share)
    _, index = on_onnxruntime(feeds(stage_of(np.linspace(1, 0, count), kept)))
    assert index.tolist() == [[*range(1 + kept), count + 1]]


@pytest.mark.parametrize("run", [torch_op, on_onnxruntime])
def test_half_precision_hidden_states_leave_the_scores_in_float32(run: Any) -> None:
    # In float16 both scores would be equal, and the lower index would win.
    stage = stage_of([0.5, 0.5 + 2**-20, 0.1], 1)
    inputs = feeds(stage, np.float16)
    states, index = run(inputs)
    assert states.dtype == np.float16
    assert_same((states, index), expected(stage, inputs))
    assert index.tolist() == [[0, 2, 4]]


def test_torch_is_traced_as_one_node_of_dynamic_length() -> None:
    """`torch.export` keeps the op whole, and its output length is not derived from the sample's."""
    inputs = [torch.from_numpy(value) for value in feeds(stage_of([0.1, 0.3, 0.2], 2)).values()]

    class Prune(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return op.debiased_token_prune(*tensors)

    program = torch.export.export(Prune(), tuple(inputs))
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names.count("edgeprune.debiased_token_prune.default") == 1
    torch.library.opcheck(
        op.debiased_token_prune, tuple(inputs), test_utils=("test_schema", "test_faketensor")
    )


def test_the_schema_is_registered_once_with_the_documented_names() -> None:
    op.register_schema()
    op.register_schema()
    schema = defs.get_schema(op.OP_NAME, domain=op.DOMAIN)
    assert schema.since_version == op.OP_VERSION == 2
    assert [value.name for value in schema.inputs] == list(INPUTS)
    assert [value.name for value in schema.outputs] == ["pruned_states", "kept_index"]
    assert not schema.attributes


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_the_checker_accepts_node_and_body(opset: int, kind: int) -> None:
    op.register_schema()
    model = one_node(opset, kind)
    onnx.checker.check_model(model, full_check=True)
    (function,) = model.functions
    assert (function.domain, function.name) == (op.DOMAIN, op.OP_NAME)
    assert [entry.version for entry in function.opset_import if entry.domain == ""] == [opset]
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": opset, op.DOMAIN: 2}
    assert {node.domain for node in function.node} == {""}


def test_the_checker_refuses_a_node_without_its_slots() -> None:
    op.register_schema()
    model = onnx.ModelProto()
    model.CopyFrom(one_node())
    del model.graph.node[0].input[-1:]
    del model.functions[:]
    with pytest.raises(onnx.checker.ValidationError, match=op.OP_NAME):
        onnx.checker.check_model(model)


def test_counts_its_nodes() -> None:
    assert op.has_node(one_node()) == 1
    assert op.has_node(onnx.ModelProto()) == 0
