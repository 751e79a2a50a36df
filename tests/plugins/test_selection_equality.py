"""One selection, every way: NumPy, torch op, ONNX function body, C++ reference, CUDA kernels on the CPU.

What the first three do on their own is tested beside them; here the same stages also go through C++.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeprune.errors import BackendError, InputError
from plugins.check import prune_check
from plugins.check.prune_check import CheckLibrary
from tests.edgeprune.debias.test_selection import stages
from tests.export.test_op import (
    ADVERSARIAL,
    INF,
    LARGEST,
    NAN,
    PROPERTY,
    Stage,
    assert_same,
    expected,
    feeds,
    on_onnxruntime,
    stage_of,
    torch_op,
)

# Beside those of the operator, what could go wrong in C++ alone.
DENORMALS = stage_of(np.array([1, 3, 0, 2, 3, 1], np.uint32).view(np.float32), 3)
STAGES = ADVERSARIAL | {
    "denormals": DENORMALS,
    "+inf ties with the largest": stage_of([1, LARGEST, INF, LARGEST], 1),
    "weights of NaN and inf": stage_of([0.5, 0.5, 0.0, 0.1], 2, weight=[NAN, INF, INF, 1]),
}


def assert_every_way_agrees(
    library: CheckLibrary, stage: Stage, rows: int = 1, dtype: type[np.generic] = np.float32
) -> None:
    inputs = feeds(stage, dtype, rows)
    wanted = expected(stage, inputs)
    for way in (library.reference, library.kernels, torch_op, on_onnxruntime):
        assert_same(way(inputs), wanted)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_adversarial_stages(check_library: CheckLibrary, name: str, dtype: type[np.generic]) -> None:
    assert_every_way_agrees(check_library, STAGES[name], dtype=dtype)


@PROPERTY
@given(stage=stages(), order=st.integers(0, 9), per_prompt=st.booleans())
def test_random_stages(check_library: CheckLibrary, stage: Stage, order: int, per_prompt: bool) -> None:
    assume(stage["score"].shape[1] > 0)  # the scoring token is always there
    check_library.thread_order(order)
    assert_every_way_agrees(check_library, stage, rows=len(stage["score"]) if per_prompt else 1)


@pytest.mark.parametrize("visual", [576, 2304, 16384])
@pytest.mark.parametrize("share", [0, 1e-4, 0.3, 0.9999, 1])
@pytest.mark.parametrize("text", [1, 84])
def test_real_sizes(check_library: CheckLibrary, visual: int, share: float, text: int) -> None:
    """Softmax weights that bfloat16 makes equal, a falling curve, padding above and below."""
    rng = np.random.default_rng(visual)
    logits = rng.normal(scale=3, size=visual)
    score = (np.exp(logits) / np.exp(logits).sum()).astype(np.float32)
    score = (score.view(np.uint32) & 0xFFFF0000).view(np.float32)
    weight = np.exp(-2 * np.arange(visual) / visual).astype(np.float32)
    weight[: visual // 8] = weight[-visual // 8 :] = 0
    assert_every_way_agrees(check_library, stage_of(score, round(visual * share), weight, text))


def test_scores_that_are_denormal_keep_their_order(check_library: CheckLibrary) -> None:
    _, index = check_library.kernels(feeds(DENORMALS))
    assert index.tolist() == [[0, 2, 4, 5, 7]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": np.zeros((1, 5))}, r"score is float64 \[1, 5\]: expected float32 \[1, 5\]; convert it"),
        ({"weight": np.ones((1, 2), np.float32)}, r"weight is float32 \[1, 2\]: expected float32 \[1, 3\]"),
        ({"kept_slots": np.zeros((2, 2), np.int64)}, r"kept_slots is int64 \[2, 2\]: expected .* \[1, 2\]"),
        ({"kept_slots": np.zeros((1, 2), np.int32)}, r"kept_slots is int32 \[1, 2\]: expected int64"),
        ({"kept_slots": np.zeros((1, 4), np.int64)}, r"could not run: more visual tokens are to be kept"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("way", ["reference", "kernels"])
def test_what_does_not_fit_is_refused(
    check_library: CheckLibrary, way: str, changes: dict[str, NDArray[Any]], message: str
) -> None:
    inputs = feeds(stage_of([0.1, 0.2, 0.3], 2))
    with pytest.raises(InputError, match=message):
        getattr(check_library, way)({**inputs, **changes})


def test_without_a_gpu_the_kernels_for_it_are_refused(
    check_library: CheckLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_library.devices() == 1
    monkeypatch.setattr(CheckLibrary, "devices", lambda self: 0)
    with pytest.raises(BackendError, match=r"need an NVIDIA GPU and CUDA found none: run them on a machine"):
        check_library.kernels(feeds(stage_of([0.1, 0.2, 0.3], 2)))


def test_a_build_that_fails_says_what_it_printed(check_library: CheckLibrary, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"(?s)cmake -S .* failed with 1; it printed:.*toolchain"):
        prune_check.build(tmp_path, options=("-DCMAKE_TOOLCHAIN_FILE=/no/such/toolchain.cmake",))


def test_missing_programs_and_files_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"nothing\.so cannot be loaded .*; build it again"):
        CheckLibrary(tmp_path / "nothing.so")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match=r"needs cmake and c\+\+ and nvcc: install them"):
        prune_check.build(tmp_path, cuda=True)
