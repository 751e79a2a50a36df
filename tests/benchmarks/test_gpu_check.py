"""The GPU check without a GPU: what is skipped says why, what fails stops nothing else, and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu_check, random_model
from edgeprune.bench import run as bench
from edgeprune.debias.selection import select
from edgeprune.errors import BackendError

FACTS = {
    "gpu": None,
    "driver": None,
    "cuda_toolkit": "13.0",
    "cpu": "a CPU",
    "system": "Linux",
    "python": "3.11",
    "versions": {"edgeprune": "0.1.0"},
}
NO_GPU = {"tensorrt-rtx": None, "onnxruntime-cuda": "no NVIDIA GPU answers here"}


def test_the_eager_step_is_the_same_step() -> None:
    rng = np.random.default_rng(0)
    score = rng.random((2, 50), dtype=np.float32)
    index = np.stack([np.arange(5, 35), np.arange(8, 38)])
    weight = np.tile(np.linspace(1, 0.3, 30, dtype=np.float32), (2, 1))
    weight[1, :4] = 0
    hidden = rng.random((2, 50, 3), dtype=np.float32)
    arrays = (torch.from_numpy(array) for array in (hidden, score, index, weight))
    states, kept_index = gpu_check.eager_step(torch, *arrays, 9)
    expected = select(score, index, weight, 9)
    np.testing.assert_array_equal(kept_index.numpy(), expected.kept_index)
    np.testing.assert_array_equal(
        states.numpy(), np.take_along_axis(hidden, expected.kept_index[:, :, None], 1)
    )


def test_every_part_ends_in_words_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(place: gpu_check.Place) -> dict[str, Any]:
        raise BackendError("the engine does not fit")

    def differs(place: gpu_check.Place) -> dict[str, Any]:
        return {"logits": 0.5, "failed": "logits 0.5 (limit 0.02)"}

    def runs(place: gpu_check.Place) -> dict[str, Any]:
        return {"rows": [{"visual": 576, "us": 1.25}]}

    monkeypatch.setattr(gpu_check, "machine", lambda: (FACTS, None))
    monkeypatch.setattr(gpu_check, "backends_for", lambda target: NO_GPU)
    parts = {"sanitizer": gpu_check.sanitizer, "a": fails, "b": differs, "c": runs}
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    page = tmp_path / "page.md"
    assert gpu_check.main(["--work", str(tmp_path / "work"), "--markdown", str(page)]) == 1
    report = json.loads(capsys.readouterr().out)
    assert {name: part["status"] for name, part in report["parts"].items()} == {
        "sanitizer": "skipped",
        "a": "failed",
        "b": "failed",
        "c": "ran",
    }
    assert report["parts"]["sanitizer"]["reason"] == "no NVIDIA GPU answers here"
    assert report["parts"]["a"]["reason"] == "the engine does not fit"
    text = page.read_text(encoding="utf-8")
    assert f"`python benchmarks/gpu_check.py --work {tmp_path / 'work'}" in text
    assert "- onnxruntime-cuda: no" in text
    assert "## sanitizer: skipped\n\nno NVIDIA GPU answers here" in text
    assert "| rows / 0 / us | 1.25 |" in text
    monkeypatch.setattr(gpu_check, "PARTS", {"c": runs})
    assert gpu_check.main(["--work", str(tmp_path / "work"), "--parts", "c"]) == 0


def test_the_first_token_is_measured_by_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exported(place: gpu_check.Place, model: Path, name: str, dtype: str, keep: float | None) -> Any:
        kept[name] = keep
        return tmp_path / name, None

    def run(bundle: Path, **options: Any) -> Any:
        asked.append((bundle, options["baselines"], options["backend"], options["runs"]))
        return type("Report", (), {"to_dict": lambda self: {"speed_ups": [2.0]}})()

    kept: dict[str, float | None] = {}
    asked: list[Any] = []
    monkeypatch.setattr(gpu_check, "_random_model", lambda place, shape: tmp_path)
    monkeypatch.setattr(gpu_check, "_bundle_with_engines", exported)
    monkeypatch.setattr(gpu_check, "_torch_with_cuda", lambda: None)
    monkeypatch.setattr(bench, "run", run)
    place = gpu_check.Place(tmp_path, "sm89", "large", 3, ("tensorrt-rtx", "onnxruntime-cuda"))
    results = gpu_check.first_token(place)
    assert kept == {"large-unpruned": None, "large-pruned": gpu_check.KEEP}
    expected = [tmp_path / "large-pruned", [tmp_path / "large-unpruned"]]
    assert asked == [(*expected, "tensorrt-rtx", 3), (*expected, "onnxruntime-cuda", 3)]
    assert results["bench"] == {name: {"speed_ups": [2.0]} for name in place.backends}
    assert "not measured" in results["Hugging Face"]


def test_failed_tests_of_ctest_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = (
        "1/3 Test #1: test_reference ...................   Passed    0.10 sec\n"
        "2/3 Test #2: test_kernels_cuda ................***Skipped   0.01 sec\n"
        "3/3 Test #3: test_contract ....................***Failed    0.01 sec\n"
    )
    monkeypatch.setattr(gpu_check, "_build_plugins", lambda place: tmp_path)
    monkeypatch.setattr(gpu_check.shutil, "which", lambda tool: tool)

    def ctest(*_: object, **__: object) -> Any:
        return type("Done", (), {"stdout": output, "stderr": "", "returncode": 8})

    monkeypatch.setattr(gpu_check.subprocess, "run", ctest)
    results = gpu_check.kernels(gpu_check.Place(tmp_path, None, "large", 1))
    assert results["tests"]["test_kernels_cuda"] == "Skipped"
    assert results["failed"] == "ctest: test_contract"


def test_no_two_tensors_of_a_random_model_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builders keep equal tensors once, so an engine of such a model would be too small."""
    from safetensors.numpy import load_file

    small = {
        "vision": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "heads": 2},
        "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "heads": 2},
        "vocab_size": 64,
    }
    monkeypatch.setitem(random_model.SHAPES, "small", small)
    random_model.write("small", tmp_path / "model", "fp32")
    (file,) = (tmp_path / "model").glob("*.safetensors")
    contents = [array.tobytes() for array in load_file(file).values()]
    assert len(set(contents)) == len(contents)


def test_a_back_end_that_cannot_run_says_why(tmp_path: Path) -> None:
    found = gpu_check.backends_for("sm90")
    assert "cannot build for sm90" in (found["tensorrt-rtx"] or "")
    assert found["onnxruntime-cuda"]
    place = gpu_check.Place(tmp_path, "sm90", "large", 1, ())
    for name in ("sample", "batches", "large", "families", "first-token", "pixels"):
        with pytest.raises(gpu_check.SkippedError, match="no back end of a GPU can run here"):
            gpu_check.PARTS[name](place)
    assert not list(tmp_path.iterdir())


def test_replies_that_differ_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = gpu_check.Place(tmp_path, "sm89", "large", 1, ("onnxruntime",))
    results = gpu_check.batches(place)
    together, alone = (results[f"onnxruntime, batches of {size}"] for size in (4, 1))
    assert together["replies that differ"] == alone["replies that differ"] == 0
    assert together["cache_bytes"] > 0
    replies = gpu_check._replies

    def other(bundle: Path, backend: str, size: int) -> Any:
        found = replies(bundle, backend, size)
        return found if size == 1 else found[::-1]

    monkeypatch.setattr(gpu_check, "_replies", other)
    failed = gpu_check.batches(place)["failed"]
    assert failed.startswith("onnxruntime, batches of 4: ")
    assert failed.endswith(" of 4 replies differ")
