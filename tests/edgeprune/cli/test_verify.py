"""`edgeprune verify`: hashes, graphs and results, alone and against the original."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeprune.manifest import MANIFEST_NAME, Check
from edgeprune.verification import standalone
from tests.conftest import SAMPLE_MODEL
from tests.edgeprune.cli.conftest import Cli
from tests.edgeprune.cli.fakes import make_reply
from tests.manifests import relist


@pytest.fixture
def copy(sample_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the sample bundle, to be damaged."""
    return Path(shutil.copytree(sample_bundle, tmp_path / "copy"))


def test_a_sound_bundle_alone(cli: Cli, sample_bundle: Path) -> None:
    result = cli("verify", sample_bundle)
    assert result.code == 0
    assert "6 files match their hashes" in result.out
    assert "stage 0: kept tokens besides the numpy reference's" in result.out
    assert "left out" not in result.err
    found = json.loads(cli("verify", sample_bundle, "--json").out)
    assert found["verified"]
    assert found["against"] is None
    assert found["left_out"] == []
    assert all(check["value"] == check["limit"] == 0 for check in found["checks"])
    assert len(found["checks"]) == 11


def test_an_unpruned_bundle_has_no_stage_to_check(cli: Cli, unpruned_bundle: Path) -> None:
    found = json.loads(cli("verify", unpruned_bundle, "--json").out)
    assert found["verified"]
    assert not any(check["name"].startswith("stage") for check in found["checks"])


def test_an_altered_file(cli: Cli, copy: Path) -> None:
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "model.safetensors does not match its SHA-256 sum" in cli("verify", copy).message


def test_weights_that_nothing_follows_from(cli: Cli, copy: Path) -> None:
    path = copy / "model.safetensors"
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(content[:start] + b"\xff" * (len(content) - start))  # every number is NaN
    relist(copy, "model.safetensors")
    result = cli("verify", copy)
    assert result.code != 0
    assert "error: the model computed logits" in result.err
    assert "Traceback" not in result.err


def test_weights_that_are_in_no_list(cli: Cli, copy: Path) -> None:
    path = copy / MANIFEST_NAME
    raw = json.loads(path.read_text())
    raw["files"] = [entry for entry in raw["files"] if entry["path"] != "model.safetensors"]
    path.write_text(json.dumps(raw))
    message = cli("verify", copy).message
    assert "keeps weights in model.safetensors, which edgeprune.json does not list" in message


def test_a_graph_that_is_none(cli: Cli, copy: Path) -> None:
    (copy / "vision.onnx").write_bytes(b"no graph")
    relist(copy, "vision.onnx")
    assert "vision.onnx is no ONNX graph" in cli("verify", copy).message
    (copy / "vision.onnx").write_bytes(b"")  # a message without fields
    relist(copy, "vision.onnx")
    assert "vision.onnx is not a valid ONNX graph" in cli("verify", copy).message


def test_a_graph_that_is_not_what_the_manifest_says(copy: Path) -> None:
    model = onnx.load(copy / "language.onnx", load_external_data=False)
    del model.functions[:]
    (node,) = [node for node in model.graph.node if node.op_type == "DebiasedTokenPrune"]
    node.domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    model.graph.output.pop()
    onnx.save(model, copy / "language.onnx")
    checks = {
        check.name: check.value for check in standalone.check_graphs(copy, relist(copy, "language.onnx"))
    }
    assert checks["language.onnx: pruning nodes besides the plan's"] == 1
    assert checks["language.onnx: inputs and outputs besides the manifest's"] == 1


def test_a_node_without_its_body_is_found(copy: Path) -> None:
    model = onnx.load(copy / "language.onnx", load_external_data=False)
    del model.functions[:]
    onnx.save(model, copy / "language.onnx")
    checks = {
        check.name: check.value for check in standalone.check_graphs(copy, relist(copy, "language.onnx"))
    }
    assert checks["language.onnx: pruning nodes without a function body"] == 1


def test_kept_tokens_are_compared_with_the_reference() -> None:
    # Scores fall from 2 to 1 and the first four tokens are padding: the reference keeps 4 to 8.
    (stage,) = make_reply().stages
    assert standalone._kept_apart(stage) == 0
    assert standalone._kept_apart(replace(stage, kept_visual=np.array([4, 5, 6, 7, 9]))) == 2
    # Weights that favour the last tokens have the reference keep those.
    rising = replace(stage, weight=np.linspace(1, 9, 16, dtype=np.float32))
    assert standalone._kept_apart(rising) > 0


def test_a_figure_beyond_its_limit_fails_after_it_was_printed(
    cli: Cli, sample_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = [Check(name="kept tokens", value=3.0, limit=0.0)]
    monkeypatch.setattr(standalone, "check_run", lambda *arguments: wrong)
    result = cli("verify", sample_bundle, "--json")
    assert result.code == 3
    assert not json.loads(result.out)["verified"]
    assert "kept tokens 3 (limit 0)" in result.err.splitlines()[-1]


def test_without_onnx_the_rest_is_checked_and_the_gap_is_said(
    cli: Cli, sample_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = cli("verify", sample_bundle)
    assert result.code == 0
    assert "stage 0" in result.out
    assert "left out: the graphs' full check, which needs the package onnx" in result.err


def test_against_the_original(cli: Cli, sample_bundle: Path) -> None:
    found = json.loads(cli("verify", sample_bundle, "--against", SAMPLE_MODEL, "--json").out)
    assert found["verified"]
    assert found["against"] == str(SAMPLE_MODEL)
    names = {check["name"] for check in found["checks"]}
    assert {"prefill logits, graph against torch", "kept tokens, graph against numpy"} <= names


def test_against_another_model(cli: Cli, sample_bundle: Path, tmp_path: Path) -> None:
    config = json.loads((SAMPLE_MODEL / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 5
    (tmp_path / "config.json").write_text(json.dumps(config))
    message = cli("verify", sample_bundle, "--against", tmp_path).message
    assert "is llama with 5 layers" in message
    assert "was made from llama with 4 layers" in message


@pytest.mark.parametrize(("name", "message"), [("none", "is not a folder"), (".", "it has no config.json")])
def test_against_what_is_no_model(
    cli: Cli, sample_bundle: Path, tmp_path: Path, name: str, message: str
) -> None:
    assert message in cli("verify", sample_bundle, "--against", tmp_path / name).message


def test_against_the_original_where_it_cannot_run(
    cli: Cli, sample_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "it needs 90 GB of memory"
    monkeypatch.setattr("edgeprune.verification.original.why_not", lambda *arguments: reason)
    message = cli("verify", sample_bundle, "--against", SAMPLE_MODEL).message
    assert "cannot be compared with its original here: it needs 90 GB" in message
