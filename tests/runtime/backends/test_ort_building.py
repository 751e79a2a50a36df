"""Building for ONNX Runtime: real engines of the sample bundle once; settings, choice and failures alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgeprune.errors import BackendError, BundleError
from edgeprune.interface import TensorSpec
from edgeprune.manifest import GraphSpec
from edgeprune.onnx_files import read_graph
from edgeprune.progress import Silent
from edgeprune.runtime import load
from edgeprune.runtime.backends import ort_building
from edgeprune.runtime.backends.ort import CPU, Options, OrtBackend
from edgeprune.runtime.backends.ort_building import Job, best_of, build, measured, optimise, thread_settings
from edgeprune.runtime.backends.ort_engines import Engines, OrtSidecar, Setting
from edgeprune.runtime.backends.sidecars import read_sidecar
from tests.edgeprune.cli.conftest import snapshot
from tests.manifests import make_manifest, write_bundle
from tests.runtime.backends.test_ort import value, write

SPEC = GraphSpec(
    file="graph.onnx",
    inputs=(TensorSpec(name="x", dtype="float32", shape=("n", 64)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("n", 32)),),
)


def product(folder: Path) -> np.ndarray:
    """y = x w, w a constant."""
    folder.mkdir()
    w = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    weight = helper.make_tensor("w", TensorProto.FLOAT, w.shape, w.tobytes(), raw=True)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    write(folder, nodes, [value("x", 1, "n", 64)], [value("y", 1, "n", 32)], (weight,))
    return w


def test_weights_that_no_kernel_reads_are_refused_before_anything_is_optimised(tmp_path: Path) -> None:
    fp4 = {"weights": "nvfp4", "block": 16, "method": "nearest"}
    bundle = write_bundle(
        tmp_path / "bundle", precision=make_manifest().precision.model_copy(update=fp4), opset=23
    )
    before = snapshot(bundle)
    with pytest.raises(BackendError, match="CPU kernels do not run nvfp4 weights"):
        build(bundle)
    assert snapshot(bundle) == before


def test_an_optimised_graph_gives_the_same_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w = product(tmp_path / "source")
    (output := tmp_path / "engines").mkdir()
    optimise(tmp_path / "source" / "graph.onnx", output / "small.onnx")
    assert read_graph(output / "small.onnx").external_files == {"small.bin"}
    assert (output / "small.bin").stat().st_size >= w.nbytes
    seen = []
    original = onnxruntime.InferenceSession

    def session(path: str, settings: Any, **options: Any) -> Any:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        seen.append((Path(path), settings.intra_op_num_threads, settings.graph_optimization_level == level))
        return original(path, settings, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    built = Engines(output, {"graph.onnx": "small.onnx"}, threads=1, spinning=False)
    backend = OrtBackend(CPU, Options(), built)
    graph = backend.load(tmp_path / "source", SPEC)
    x = np.ones((3, 64), dtype=np.float32)
    np.testing.assert_allclose(graph.run({"x": x}, ["y"])["y"].numpy(), x @ w, rtol=1e-5)
    assert seen == [(output / "small.onnx", 1, True)]
    assert backend.engines == "engines"


def test_a_graph_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"none")
    with pytest.raises(BackendError, match=r"ONNX Runtime cannot optimise .*graph\.onnx: "):
        optimise(tmp_path / "graph.onnx", tmp_path / "out.onnx")


@pytest.mark.slow
def test_engines_of_the_sample_bundle(
    sample_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(sample_bundle, bundle)
    picture = np.zeros((30, 40, 3), dtype=np.uint8)
    before = load(bundle, "onnxruntime")
    expected = before.generate("What is it?", [picture], max_new_tokens=8)
    folder = build(bundle)
    files = snapshot(folder)
    sidecar = read_sidecar(folder, OrtSidecar)
    assert {f"{entry.path}" for entry in sidecar.engines.values()} | {"engine.json"} == set(files)
    assert (sidecar.threads, sidecar.spinning) in {(one.threads, one.spinning) for one in sidecar.steps}
    assert all(one.seconds > 0 for one in sidecar.steps)
    assert sidecar.load.seconds > 0
    model = load(bundle, "onnxruntime")
    assert (before.engines, model.engines) == (None, folder.name)
    assert model.generate("What is it?", [picture], max_new_tokens=8).token_ids == expected.token_ids
    assert load(bundle, "onnxruntime", engines=False).engines is None
    build(bundle)  # in the place of the earlier ones
    assert [path.name for path in (bundle / "engines").iterdir()] == [folder.name]
    caplog.clear()
    (folder / "engine.json").write_text("{")
    assert load(bundle, "onnxruntime").engines is None
    assert "cannot be read" in caplog.text


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")  # its graphs are no graphs
    with pytest.raises(BackendError, match="ONNX Runtime cannot optimise"):
        build(bundle)
    assert list((bundle / "engines").iterdir()) == []
    (bundle / "model.safetensors").write_bytes(bytes(200))
    with pytest.raises(BundleError, match=r"model\.safetensors does not match its SHA-256 sum"):
        build(bundle)


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("os.kill(os.getpid(), 9)", "loads the graphs of .* was killed, as the system does when memory"),
        ("raise SystemExit(3)", "ONNX Runtime ended with status 3 while loading the graphs of"),
    ],
)
def test_a_child_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, words: str) -> None:
    (tmp_path / "dying.py").write_text(f"import os\n{ending}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ort_building, "_MODULE", "dying")
    with pytest.raises(BackendError, match=words):
        ort_building._run(Job(kind="load", source=tmp_path, output=tmp_path), Silent())


def test_settings_are_powers_of_two_and_all_cores() -> None:
    assert thread_settings(1) == [(1, False)]
    assert thread_settings(2) == [(1, False), (2, False), (2, True)]
    assert [threads for threads, spinning in thread_settings(12) if spinning] == [2, 4, 8, 12]


@given(st.integers(1, 300))
def test_settings_end_with_all_cores(cores: int) -> None:
    found = thread_settings(cores)
    assert len(set(found)) == len(found)
    assert found[-1][0] == cores
    assert found == sorted(found)


def setting(threads: int, spinning: bool, seconds: float) -> Setting:
    return Setting(threads=threads, spinning=spinning, seconds=seconds)


def test_the_fastest_wins_and_of_equals_the_one_with_most_threads_that_waits_quietly() -> None:
    slow, four, spun = setting(1, False, 1.0), setting(4, False, 0.305), setting(4, True, 0.3)
    assert best_of([slow, four, spun]) == four
    assert best_of([slow, setting(4, False, 0.4), spun]) == spun
    assert best_of([slow, setting(2, False, 0.32), spun, four]) == four
    assert best_of([setting(1, False, 0.1), spun]).threads == 1


@given(st.lists(st.tuples(st.integers(1, 64), st.booleans(), st.floats(1e-4, 10)), min_size=1))
def test_what_is_chosen_is_hardly_slower_than_the_fastest(tried: list[tuple[int, bool, float]]) -> None:
    settings = [setting(*one) for one in tried]
    best = best_of(settings)
    assert best.seconds <= 1.1 * min(one.seconds for one in settings)
    assert not any(one.threads > best.threads and one.seconds <= best.seconds for one in settings)


def test_settings_take_turns() -> None:
    turns = []

    def seconds(which: tuple[int, bool]) -> list[float]:
        turns.append(which)
        return [float(len(turns))] * 3

    found = measured([(1, False), (2, True)], seconds)
    assert turns == [(1, False), (2, True)] * 2
    assert found == [setting(1, False, 2.0), setting(2, True, 3.0)]
