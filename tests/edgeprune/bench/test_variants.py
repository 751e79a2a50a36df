"""Variants of the sample bundle: unpruned equals a bundle exported so, without debias raw scores decide."""

from __future__ import annotations

import builtins
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgeprune
from edgeprune.bench.variants import NO_DEBIAS, PRUNED, UNPRUNED, weights_folder, write_variant
from edgeprune.bundle import read_manifest, sha256_of
from edgeprune.errors import BundleError, MissingDependencyError
from edgeprune.manifest import Manifest
from edgeprune.onnx_files import external_files
from edgeprune.plans import PruningPlan, TowerStage
from edgeprune.runtime import Model
from edgeprune.runtime.backends import open_backend
from edgeprune.runtime.session import Session
from edgeprune.verification.standalone import check_graphs
from tests.conftest import SAMPLE_MODEL
from tests.manifests import graph_pointing_to, into_hub, make_manifest

PICTURES = [str(SAMPLE_MODEL.parent / "pictures" / name) for name in ("wide.png", "column.png")]
PROMPT = "USER: <image>\n<image>\nwhat color is the star ASSISTANT:"


def variant(name: str, bundle: Path, folder: Path) -> Model:
    manifest = read_manifest(bundle)
    changed = write_variant(name, bundle, manifest, folder)
    # What is written for a worker can be read again.
    changed = Manifest.model_validate_json(changed.model_dump_json())
    backend = open_backend("onnxruntime", threads=1)
    session = Session(backend, folder, changed, weights=weights_folder(bundle, manifest))
    return Model(bundle, changed, backend, session)


def logits_of(model: Model) -> np.ndarray:
    state = model.session.prefill([model.prepare(PROMPT, PICTURES)])
    steps = [state.logits]
    for token in (7, 9, 11):
        steps.append(state.step(np.array([token])))
    return np.concatenate([*steps, [[state.cache_bytes]]], axis=None)


def test_unpruned_computes_what_a_bundle_exported_so_computes(
    sample_bundle: Path, unpruned_bundle: Path, tmp_path: Path
) -> None:
    model = variant(UNPRUNED, sample_bundle, tmp_path)
    assert not model.manifest.plan.prunes
    assert model.manifest.language.inputs == read_manifest(unpruned_bundle).language.inputs
    expected = logits_of(edgeprune.load(unpruned_bundle, "onnxruntime", threads=1))
    np.testing.assert_allclose(logits_of(model), expected, atol=1e-5, rtol=0)
    assert np.abs(expected - logits_of(edgeprune.load(sample_bundle, "onnxruntime"))).max() > 1e-2


def test_nothing_of_scoring_and_pruning_is_left_in_the_unpruned_graph(
    sample_bundle: Path, unpruned_bundle: Path, tmp_path: Path
) -> None:
    write_variant(UNPRUNED, sample_bundle, read_manifest(sample_bundle), tmp_path)
    shutil.copy(sample_bundle / "model.safetensors", tmp_path)  # the checker wants to see the weights
    onnx.checker.check_model(str(tmp_path / "language.onnx"), full_check=True)
    graph = onnx.load(tmp_path / "language.onnx", load_external_data=False)
    kinds = [node.op_type for node in graph.graph.node]
    plain = onnx.load(unpruned_bundle / "language.onnx", load_external_data=False)
    expected = [node.op_type for node in plain.graph.node]
    for kind in ("DebiasedTokenPrune", "Softmax", "MatMul", "TopK"):
        assert kinds.count(kind) == expected.count(kind)
    assert not graph.functions
    assert [entry.domain for entry in graph.opset_import] == [""]
    assert "bias_curve" not in {value.name for value in graph.graph.initializer}


def test_without_debias_the_raw_scores_decide(sample_bundle: Path, tmp_path: Path) -> None:
    model = variant(NO_DEBIAS, sample_bundle, tmp_path)
    original = edgeprune.load(sample_bundle, "onnxruntime", threads=1).generate(PROMPT, PICTURES)
    inputs = model.prepare(PROMPT, PICTURES)
    padding = inputs.visual_valid.copy()
    inputs.visual_valid[:] = 1
    ((stage,),) = model.session.prefill([inputs]).stages
    assert stage.kept_visual.tolist() == original.stages[0].without_debias().tolist()
    assert set(stage.kept_visual) != set(original.kept_visual[0])
    assert (padding[stage.kept_visual] == 0).any()


def test_pruned_is_the_bundle_itself(sample_bundle: Path, tmp_path: Path) -> None:
    found = variant(PRUNED, sample_bundle, tmp_path).generate(PROMPT, PICTURES)
    expected = edgeprune.load(sample_bundle, "onnxruntime", threads=1).generate(PROMPT, PICTURES)
    assert (found.text, found.kept_visual) == (expected.text, expected.kept_visual)


def test_a_snapshot_of_the_hubs_cache_runs_and_so_do_its_variants(
    sample_bundle: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(sample_bundle, tmp_path / "bundle")
    expected = edgeprune.load(copy, "onnxruntime", threads=1).generate(PROMPT, PICTURES).token_ids
    snapshot = into_hub(copy)
    assert edgeprune.load(snapshot, "onnxruntime", threads=1).generate(PROMPT, PICTURES).token_ids == expected
    (folder := tmp_path / "variant").mkdir()
    assert variant(PRUNED, snapshot, folder).generate(PROMPT, PICTURES).token_ids == expected
    assert all(check.holds for check in check_graphs(snapshot, read_manifest(snapshot)))


def test_weights_in_several_folders_have_no_variants(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    for name, location in (("language.onnx", "a/w"), ("vision.onnx", "b/w")):
        (tmp_path / "bundle" / name).write_bytes(graph_pointing_to(location))
    with pytest.raises(BundleError, match="lie in several folders"):
        weights_folder(tmp_path / "bundle", make_manifest())


def test_a_graph_that_is_none_is_refused(sample_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sample_bundle, tmp_path / "bundle")
    (copy / "language.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"language\.onnx is no ONNX graph"):
        write_variant(UNPRUNED, copy, read_manifest(sample_bundle), tmp_path)


def test_the_graphs_name_the_files_that_onnx_finds(sample_bundle: Path) -> None:
    for name in ("language.onnx", "vision.onnx"):
        assert external_files(sample_bundle / name) == {"model.safetensors"}
        model = onnx.load(sample_bundle / name, load_external_data=False)
        found = {e.value for i in model.graph.initializer for e in i.external_data if e.key == "location"}
        assert found == {"model.safetensors"}


def test_the_bundle_is_only_read_and_weights_are_not_copied(sample_bundle: Path, tmp_path: Path) -> None:
    before = {path.name: sha256_of(path) for path in sample_bundle.iterdir()}
    for number, name in enumerate((UNPRUNED, NO_DEBIAS, PRUNED)):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_variant(name, sample_bundle, read_manifest(sample_bundle), folder)
        assert sum(path.stat().st_size for path in folder.iterdir()) < 200_000
    assert {path.name: sha256_of(path) for path in sample_bundle.iterdir()} == before


def test_a_graph_without_the_plan_s_stages_is_refused(
    sample_bundle: Path, unpruned_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="has 0 pruning stages and the plan 1"):
        write_variant(UNPRUNED, unpruned_bundle, read_manifest(sample_bundle), tmp_path)


@pytest.mark.parametrize("method", ["tokencarve", "illava-decoder"])
@pytest.mark.parametrize("name", [UNPRUNED, NO_DEBIAS])
def test_merging_before_the_node_cannot_be_taken_out(method: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=rf"in layer \d.*{method}.*method='none'.* as `baselines`"):
        write_variant(name, tmp_path, make_manifest(method), tmp_path)


def test_merging_in_the_vision_tower_cannot_be_taken_out(tmp_path: Path) -> None:
    plan = PruningPlan(method="illava", tower=(TowerStage(layer=0, kept=9),))
    with pytest.raises(BundleError, match=r"in the vision tower .* would not be unpruned without"):
        write_variant(UNPRUNED, tmp_path, make_manifest("none", plan=plan), tmp_path)


def test_without_onnx_the_extra_is_named(
    sample_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnx":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingDependencyError, match=r"edgeprune\[bench\]"):
        write_variant(PRUNED, sample_bundle, read_manifest(sample_bundle), tmp_path)
