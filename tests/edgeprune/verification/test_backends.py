"""Comparing back ends, output by output; the tested one is a fake TensorRT, tampered with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprune.bundle import read_manifest
from edgeprune.errors import InputError
from edgeprune.manifest import Check, Precision, failures
from edgeprune.runtime import backends
from edgeprune.runtime.backends.tensorrt import build
from edgeprune.verification.backends import _Comparison, comparable, compare, compare_backends
from tests.manifests import make_manifest


class Tampered:
    """ONNX Runtime whose outputs pass through a function of (name, array), and what it gave out itself and is
    fed again, through another one.
    """

    name = "tampered"

    def __init__(
        self,
        change: Callable[[str, np.ndarray], np.ndarray],
        carry: Callable[[str, np.ndarray], np.ndarray] = lambda name, value: value,
    ) -> None:
        self._change, self._carry = change, carry
        self._backend = backends.open_backend("onnxruntime")

    def load(self, folder: Path, spec: Any) -> Any:
        graph, change, carry = self._backend.load(folder, spec), self._change, self._carry

        class Graph:
            def run(self, feeds: Any, outputs: Any) -> dict[str, Any]:
                own = {n: carry(n, value.array) for n, value in feeds.items() if isinstance(value, _Array)}
                found = graph.run({**feeds, **own}, outputs)
                return {name: _Array(change(name, value.numpy())) for name, value in found.items()}

        return Graph()


class _Array:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def numpy(self) -> np.ndarray:
        return self.array


def checks(bundle: Path, *changes: Callable[[str, np.ndarray], np.ndarray]) -> list[Check]:
    backend: Any = Tampered(*changes)
    return compare_backends(bundle, read_manifest(bundle), backend, backends.open_backend("onnxruntime"))


def test_an_engine_is_compared_in_prefill_and_every_step(
    sample_bundle: Path, tmp_path: Path, tensorrt: object
) -> None:
    copy = Path(shutil.copytree(sample_bundle, tmp_path / "bundle"))
    assert comparable(copy, "auto") == []
    build(copy, backend="tensorrt")
    assert comparable(copy, "auto") == ["tensorrt"]
    found = compare(copy, read_manifest(copy), "tensorrt")
    assert failures(found) == ""
    names = [check.name.partition(" (")[0] for check in found]
    assert names[:2] == ["tensorrt: vision, visual_embeds", "tensorrt: prefill, logits"]
    for kind in ("logits", "kept_index", "score", "present_mask", "present_key", "present_value"):
        assert f"tensorrt: decode step 3, {kind}" in names
    assert names[-1] == "tensorrt: decode step 3 with its own caches, logits"
    assert comparable(copy, "onnxruntime") == []


def test_an_engine_is_compared_where_its_stages_keep_all(
    sample_bundle: Path, tmp_path: Path, tensorrt: object
) -> None:
    copy = Path(shutil.copytree(sample_bundle, tmp_path / "bundle"))
    build(copy, backend="tensorrt")
    manifest = read_manifest(copy)
    whole = manifest.model_copy(update={"plan": manifest.plan.keeping_all()})
    found = compare(copy, whole, "tensorrt")
    assert failures(found) == ""
    assert "tensorrt: prefill, kept_index" in [check.name.partition(" (")[0] for check in found]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("logits", "prefill, logits"),
        ("present_value.3", r"present_value (worst: present_value.3)"),
        ("visual_embeds", "vision, visual_embeds"),
    ],
)
@pytest.mark.parametrize("wrong", [0.05, float("nan")])
def test_what_differs_is_named(sample_bundle: Path, output: str, words: str, wrong: float) -> None:
    def change(name: str, value: np.ndarray) -> np.ndarray:
        return value + np.abs(value).max(initial=0) * np.float32(wrong) if name == output else value

    bad = failures(checks(sample_bundle, change))
    assert words in bad
    assert bad.count(";") == (0 if output == "visual_embeds" else 6)


def test_another_choice_of_tokens_is_told_without_what_follows_from_it(sample_bundle: Path) -> None:
    def change(name: str, value: np.ndarray) -> np.ndarray:
        if name == "kept_index.0" and value.shape[1] > 1:
            value = value.copy()
            value[0, 8] = value[0, 9] - 1 if value[0, 9] - 1 != value[0, 8] else value[0, 9] + 1
        return value

    found = checks(sample_bundle, change)
    assert "prefill, kept_index" in failures(found)
    assert not any("prefill, present_key" in check.name for check in found)


def test_a_graph_that_loses_its_own_caches_is_told(sample_bundle: Path) -> None:
    """Fed the reference's, every step is right."""

    def lose(name: str, value: np.ndarray) -> np.ndarray:
        return np.zeros_like(value) if name.startswith("past_value") else value

    bad = failures(checks(sample_bundle, lambda name, value: value, lose))
    found = [one.partition(", logits")[0] for one in bad.split("; ")]
    assert found == [f"tampered: decode step {step} with its own caches" for step in (1, 2, 3)]


class Fixed:
    """A graph with outputs of its own, whatever it is fed."""

    def __init__(self, **outputs: list[list[float]]) -> None:
        self._outputs = {name: np.array(value, dtype=np.float32) for name, value in outputs.items()}

    def run(self, feeds: Any, outputs: Any) -> dict[str, Any]:
        return {name: _Array(self._outputs[name]) for name in outputs}


def vision_checks(tested: list[float], expected: list[float]) -> list[Check]:
    """Of a tower whose scores are these, and whose embeddings differ."""
    comparison = _Comparison(make_manifest(), "tested")
    names = ["visual_embeds", "tower_score.0"]
    graphs: Any = [
        Fixed(**{names[0]: [[embeds]], names[1]: [scores]})
        for embeds, scores in ((1.0, tested), (2.0, expected))
    ]
    comparison.run("vision", graphs, {}, names)
    return comparison.checks


def test_means_of_tokens_merged_in_another_order_are_not_compared() -> None:
    told, score = vision_checks([0.5, 0.3, 0.3 + 1e-7], [0.5, 0.3 + 1e-7, 0.3])
    assert told.name == "tested: vision, tokens merged in another order, so visual_embeds is not compared"
    assert score.name.startswith("tested: vision, tower_score")
    assert failures([told, score]) == ""


def test_means_of_tokens_merged_in_the_same_order_are_compared() -> None:
    embeds, _ = vision_checks([0.5, 0.3, 0.2], [0.5, 0.3, 0.2])
    assert not embeds.holds


def test_scores_that_differ_are_told_even_where_they_merge_in_another_order() -> None:
    assert "tower_score" in failures(vision_checks([0.5, 0.2, 0.3], [0.5, 0.3, 0.2]))


def test_a_type_that_the_reference_does_not_run(sample_bundle: Path) -> None:
    manifest = read_manifest(sample_bundle)
    bf16 = manifest.model_copy(update={"precision": Precision.plain("bf16")})
    with pytest.raises(InputError, match="do not run bfloat16: export with `dtype='fp16'` or `dtype='fp32'`"):
        compare(sample_bundle, bf16, "tensorrt")
    fp4 = {"weights": "nvfp4", "block": 16, "method": "nearest"}
    nvfp4 = manifest.model_copy(update={"precision": manifest.precision.model_copy(update=fp4)})
    with pytest.raises(InputError, match="do not run nvfp4 weights: export with, say, `weights='int4'` to"):
        compare(sample_bundle, nvfp4, "tensorrt")
