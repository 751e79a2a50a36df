"""Engines measured by `bench`: its own worker processes, in which CUDA and TensorRT are fakes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune.bench import run as bench
from edgeprune.bench.bundles import NO_DEBIAS, PRUNED, UNPRUNED, opened
from edgeprune.bundle import read_manifest
from edgeprune.errors import BackendError, InputError
from edgeprune.runtime.backends import open_backend
from edgeprune.runtime.backends.tensorrt import build
from edgeprune.runtime.backends.tensorrt.backend import GPU_METRIC
from edgeprune.runtime.backends.tensorrt.sidecar import read_sidecar
from tests.edgeprune.bench.test_run import RUN
from tests.runtime.backends.tensorrt import fakes

LIMITS: dict[str, Any] = {"max_prompt": 200, "max_new_tokens": 16}
Built = Callable[..., Path]


@pytest.fixture
def built(sample_bundle: Path, unpruned_bundle: Path, tmp_path: Path, tensorrt: object) -> Built:
    """`built("pruned")` or `built("none")`: a copy of the bundle with engines by the fake, or without."""

    def make(name: str, engines: bool = True, **limits: Any) -> Path:
        copy = tmp_path / name
        shutil.copytree(sample_bundle if name == "pruned" else unpruned_bundle, copy)
        if engines:
            build(copy, backend="tensorrt", **{**LIMITS, **limits})
        return copy

    return make


class Worker:
    """In the place of a process."""

    def __init__(self, name: str, job: Path) -> None:
        self.name = name

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self) -> Any:
        return replace(RUN, visual_tokens=144, tower_tokens=144, prompt_tokens=152)


@pytest.mark.slow
def test_an_engine_is_measured_beside_the_unpruned_one(built: Built) -> None:
    own, none = built("pruned"), built("none")
    options: dict[str, Any] = {"runs": 2, "warmup": 1, "max_new_tokens": 3}
    report = bench.run(own, baselines=[none], backend="tensorrt", **options)
    assert (report.backend, report.threads, report.interleaved) == ("tensorrt", None, True)
    assert [variant.name for variant in report.variants] == [str(none), UNPRUNED, NO_DEBIAS, PRUNED]
    unpruned, *_, pruned = report.variants
    assert unpruned.engine == f"tensorrt-{fakes.__version__}-sm89"
    # One engine keeps all, or what it is told.
    engines = {variant.engine for variant in report.variants[1:]}
    assert engines == {f"tensorrt-{fakes.__version__}-sm89, pruning by the function body"}
    assert [variant.kept for variant in report.variants] == [144, 144, 43, 43]
    assert pruned.visual_tokens == 144
    assert (unpruned.padded_kept, report.variants[1].padded_kept, pruned.padded_kept) == (24, 24, 0)
    on_onnx = bench.run(own, baselines=[none], backend="onnxruntime", **options)
    assert [one.cache_bytes for one in report.variants] == [one.cache_bytes for one in on_onnx.variants]
    assert report.speed_ups[0].prefill_bound == on_onnx.speed_ups[0].prefill_bound > 1
    assert report.peak_memory_metric == f"{GPU_METRIC}, until the end of the first run"
    # The caches of the longest prompt are there, and once.
    longest = (LIMITS["max_prompt"] + LIMITS["max_new_tokens"]) * read_manifest(own).cache_bytes_per_token
    assert unpruned.peak_memory_bytes is not None
    assert longest < unpruned.peak_memory_bytes < 2 * longest
    assert report.not_measured == ()


def test_an_engine_alone_is_measured_in_its_forms(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    own = built("pruned")
    monkeypatch.setattr(bench, "_worker", Worker)
    report = bench.run(own)  # "auto" takes the engine, as `run` does
    assert report.backend == "tensorrt"
    assert [variant.name for variant in report.variants] == [UNPRUNED, NO_DEBIAS, PRUNED]
    assert [speed_up.over for speed_up in report.speed_ups] == [UNPRUNED, NO_DEBIAS]
    assert report.not_measured == ()


def test_a_bundle_without_an_engine_names_the_command(built: Built) -> None:
    own, none = built("pruned"), built("none", engines=False)
    with pytest.raises(BackendError, match=rf"`edgeprune build {none} --backend tensorrt --target sm89`"):
        bench.run(own, baselines=[none], backend="tensorrt")
    with pytest.raises(BackendError, match=rf"`edgeprune build {none} --backend tensorrt --target sm89`"):
        bench.run(none, backend="tensorrt")


def test_engines_of_other_limits_do_not_fit(built: Built) -> None:
    own, none = built("pruned"), built("none", max_prompt=300)
    with pytest.raises(InputError) as caught:
        bench.run(own, baselines=[none], backend="tensorrt")
    message = str(caught.value)
    assert "1 prompts of 300 tokens and 1 images with 16 new tokens, and that of the bundle" in message
    (sidecar,) = (read_sidecar(folder) for folder in (own / "engines").iterdir())
    assert f"`{sidecar.build_command(none)}`" in message


def test_whether_engines_fit_together_is_a_matter_of_the_gpu(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = built("pruned")
    (folder,) = (own / "engines").iterdir()
    size = sum(path.stat().st_size for path in folder.glob("*.engine"))
    for capacity, expected in ((5 * size, True), (3 * size, False)):
        monkeypatch.setattr(fakes, "CUDART", fakes.FakeCudart(capacity=capacity))
        backend = open_backend("tensorrt")
        variants = opened(own, [], backend) * 2
        assert bench.fit_together(backend, [variant.size for variant in variants]) is expected


def test_no_gpu_is_one_sentence(
    sample_bundle: Path, tensorrt: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fakes, "CUDART", fakes.FakeCudart(gpus=0))
    with pytest.raises(BackendError, match=r"^the back end tensorrt cannot run here: no NVIDIA GPU answers"):
        bench.run(sample_bundle, backend="tensorrt")
