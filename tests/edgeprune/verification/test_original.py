"""The comparison of a bundle with its original: it holds for a faithful export, and sees every fault."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

import edgeprune
from edgeprune.errors import MissingDependencyError, VerificationError
from edgeprune.exporter import pipeline
from edgeprune.exporter.op import OP_NAME
from edgeprune.exporter.weights import read_header
from edgeprune.manifest import Check, Manifest, Precision, failures
from edgeprune.progress import Silent
from edgeprune.scratch import PARTIAL
from edgeprune.verification import original as verify
from tests.export.conftest import Exported
from tests.manifests import make_manifest


def test_the_worst_value_of_a_figure_counts() -> None:
    figures = verify.Figures()
    for value in (0.1, 0.3, 0.2):
        figures.add("logits", value, 1.0)
    figures.add("kept", 0.0, 0.0)
    assert figures.checks == [
        Check(name="logits", value=0.3, limit=1.0),
        Check(name="kept", value=0.0, limit=0.0),
    ]


@pytest.mark.parametrize("values", [(math.nan, 0.1), (0.1, math.nan), (0.1, math.nan, 0.2)])
def test_not_a_number_is_worse_than_any(values: tuple[float, ...]) -> None:
    figures = verify.Figures()
    for value in values:
        figures.add("logits", value, 1.0)
    assert "logits nan (limit 1)" in failures(figures.checks)


INT4 = Precision.plain("fp32").model_copy(
    update={"weights": "int4", "scoring": "int4", "head": "int8", "block": 128, "method": "nearest"}
)
NVFP4 = INT4.model_copy(update={"weights": "nvfp4", "block": 16})


@pytest.mark.parametrize(
    ("precision", "lacking"), [(Precision.plain("bf16"), "bfloat16"), (NVFP4, "nvfp4 weights")]
)
def test_what_onnx_runtime_does_not_run_is_not_compared(
    precision: Precision, lacking: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = make_manifest(precision=precision)
    found = verify.verify_bundle(tmp_path, manifest, tmp_path, Silent())
    assert found.skipped == f"ONNX Runtime's CPU kernels do not run {lacking}"
    assert caplog.messages == ["not compared with the original model: " + found.skipped]


@pytest.mark.parametrize(("lacking", "fits"), [(0, True), (1, False)])
@pytest.mark.parametrize(("precision", "times"), [(Precision.plain("fp32"), 4), (INT4, 18)])
def test_memory_decides_whether_it_is_compared(
    precision: Precision,
    times: int,
    lacking: int,
    fits: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = make_manifest(precision=precision)
    needed = times * sum(entry.bytes for entry in manifest.files)
    monkeypatch.setattr(verify, "available_memory", lambda: needed - lacking)
    reason = verify.why_not(tmp_path, manifest)
    assert (reason is None) == fits
    if reason:
        assert "of memory and" in reason
    # Where nothing tells how much is free, it is tried.
    monkeypatch.setattr(verify, "available_memory", lambda: None)
    assert verify.why_not(tmp_path, manifest) is None


def test_onnxruntime_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"needs the package onnxruntime.*edgeprune\[ort\]"):
        verify._session(tmp_path / "language.onnx")


def test_kept_tokens_that_differ_are_a_share() -> None:
    assert verify._differing(np.array([[0, 1, 3]]), np.array([[0, 1, 3]])) == 0
    assert verify._differing(np.array([[0, 1, 3, 4]]), np.array([[0, 1, 2, 4]])) == 0.25
    assert verify._differing(np.array([[0, 1, 3]]), np.array([[0, 1]])) == 1


@pytest.mark.slow
def test_a_faithful_bundle_agrees(pruned: Exported) -> None:
    checks = verify.compare(pruned.bundle, pruned.manifest, pruned.model)
    assert not failures(checks)
    assert {check.name for check in checks} == {
        "visual embeddings",
        "unpruned prefill logits, graph against Hugging Face",
        "prefill logits, graph against torch",
        "decode logits, graph against torch",
        "kept tokens, graph against torch",
        "kept tokens, graph against numpy",
        "score, graph against Hugging Face",
        "logits, in-place caches against copied ones",
        "kept tokens, in-place caches against copied ones",
    }
    by_name = {check.name: check for check in checks}
    assert by_name["kept tokens, graph against torch"].limit == 0
    assert by_name["prefill logits, graph against torch"].limit <= 1e-4
    assert by_name["unpruned prefill logits, graph against Hugging Face"].limit <= 1e-4


def alter_weight(key: str) -> Callable[[Path], None]:
    """Changes one byte of one weight: the exponent of its first number."""

    def change(bundle: Path) -> None:
        path = bundle / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[read_header(path)[key].offset + 3] ^= 0x04
        path.write_bytes(content)

    return change


def alter_graph(change: Callable[[onnx.ModelProto], None]) -> Callable[[Path], None]:
    def changed(bundle: Path) -> None:
        model = onnx.load(bundle / "language.onnx", load_external_data=False)
        change(model)
        onnx.save(model, bundle / "language.onnx")

    return changed


def _stage(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == OP_NAME)


def _fewer_kept(model: onnx.ModelProto) -> None:
    """The last of the slots is left out on the way to the node."""
    node = _stage(model)
    ends = {"zero": 0, "minus_one": -1, "one": 1}
    tensors = [numpy_helper.from_array(np.array([value]), name) for name, value in ends.items()]
    model.graph.initializer.extend(tensors)
    cut = helper.make_node("Slice", [node.input[4], *ends], ["fewer_slots"])
    model.graph.node.insert(list(model.graph.node).index(node), cut)
    node.input[4] = "fewer_slots"


def _no_weights(model: onnx.ModelProto) -> None:
    """The node is told that no token has a weight."""
    node = _stage(model)
    zeros = helper.make_node("Sub", [node.input[3]] * 2, ["no_weights"])
    model.graph.node.insert(list(model.graph.node).index(node), zeros)
    node.input[3] = "no_weights"


def _other_curve(model: onnx.ModelProto) -> None:
    curve = next(value for value in model.graph.initializer if list(value.dims) == [1 + 36])
    reversed_curve = np.ascontiguousarray(numpy_helper.to_array(curve)[::-1])
    curve.CopyFrom(numpy_helper.from_array(reversed_curve, curve.name))


def _other_frequencies(model: onnx.ModelProto) -> None:
    value = next(v for v in model.graph.initializer if v.name.endswith("inv_freq"))
    value.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(value) * np.float32(1.01), value.name))


def _weights_are_added(model: onnx.ModelProto) -> None:
    """In the function body, where scores are multiplied by them."""
    (function,) = model.functions
    node = next(node for node in function.node if node.op_type == "Mul")
    node.op_type = "Add"


ALTERED: dict[str, Callable[[Path], None]] = {
    "a layer before the stage": alter_weight("language_model.model.layers.0.mlp.up_proj.weight"),
    "the scoring layer": alter_weight("language_model.model.layers.1.self_attn.k_proj.weight"),
    "a layer behind the stage": alter_weight("language_model.model.layers.3.mlp.down_proj.weight"),
    "the vision tower": alter_weight("vision_tower.encoder.layers.0.mlp.fc1.weight"),
    "the number of kept tokens": alter_graph(_fewer_kept),
    "the weights": alter_graph(_no_weights),
    "the curve": alter_graph(_other_curve),
    "rotary frequencies": alter_graph(_other_frequencies),
    "the function body": alter_graph(_weights_are_added),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_bundle_is_seen(name: str, pruned: Exported, tmp_path: Path) -> None:
    bundle = pruned.copy(tmp_path / "copy")
    ALTERED[name](bundle)
    assert failures(verify.compare(bundle, pruned.manifest, pruned.model))


@pytest.mark.slow
def test_an_export_that_went_wrong_writes_nothing(
    pruned: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte of a weight gets lost on the way into the bundle."""

    def write(*arguments: Any) -> Manifest:
        scratch = next(
            value for value in arguments if isinstance(value, Path) and value.name.endswith(PARTIAL)
        )
        shutil.copytree(pruned.bundle, scratch, dirs_exist_ok=True)
        ALTERED["a layer behind the stage"](scratch)
        return pruned.manifest

    monkeypatch.setattr(pipeline, "_trace", lambda *_: None)
    monkeypatch.setattr(pipeline, "_write", write)
    with pytest.raises(
        VerificationError, match=r"does not agree with the original model: .*logits.*Nothing was"
    ):
        edgeprune.export(pruned.model, keep=0.3, output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_logits_are_compared_where_both_kept_the_same() -> None:
    kept = np.array([[0, 1, 4], [0, 2, 4], [0, 3, 4]])
    other = torch.tensor([[0, 1, 4], [0, 1, 4], [0, 3, 4]])
    found, expected = {"kept_index.0": kept}, {"kept_index.0": other}
    assert verify._same_selection(found, expected, 1).tolist() == [True, False, True]
    # Nothing to go by, or nothing left to compare: every row counts.
    assert verify._same_selection(found, expected, 0) == slice(None)
    assert verify._same_selection(found, {"kept_index.0": other + 1}, 1) == slice(None)
    assert verify._same_selection(found, {"kept_index.0": other[:, :2]}, 1) == slice(None)
