"""One selection, every way: NumPy, torch op, ONNX function body, C++ reference, CUDA kernels on the CPU.

What the first three do on their own is tested beside them; here the same stages also go through C++.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgeprune.debias.selection import kept_count
from edgeprune.errors import BackendError, InputError
from plugins.check import prune_check
from plugins.check.prune_check import CheckLibrary
from tests.edgeprune.debias.test_selection import stages
from tests.export.test_op import (
    ADVERSARIAL,
    PROPERTY,
    Stage,
    assert_same,
    expected,
    feeds,
    on_onnxruntime,
    stage_of,
    torch_op,
)


def assert_every_way_agrees(
    library: CheckLibrary, stage: Stage, dtype: type[np.generic] = np.float32
) -> None:
    inputs = feeds(stage, dtype=dtype)
    wanted = expected(stage, inputs)
    assert_same(library.reference(inputs, stage["keep"]), wanted)
    assert_same(library.kernels(inputs, stage["keep"]), wanted)
    assert_same(torch_op(stage, inputs), wanted)
    assert_same(on_onnxruntime(stage, inputs), wanted)


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_adversarial_stages(check_library: CheckLibrary, name: str, dtype: type[np.generic]) -> None:
    assert_every_way_agrees(check_library, ADVERSARIAL[name], dtype)


@PROPERTY
@given(stage=stages(), order=st.integers(0, 9))
def test_random_stages(check_library: CheckLibrary, stage: Stage, order: int) -> None:
    assume(stage["score"].shape[1] > 0)  # the scoring token is always there
    check_library.thread_order(order)
    assert_every_way_agrees(check_library, stage)


@pytest.mark.parametrize("visual", [576, 2304, 16384])
@pytest.mark.parametrize("keep", [1, 3000, 9999])
def test_real_sizes(check_library: CheckLibrary, visual: int, keep: int) -> None:
    """Softmax weights that bfloat16 makes equal, a falling curve, padding above and below."""
    rng = np.random.default_rng(visual + keep)
    logits = rng.normal(scale=3, size=visual)
    score = (np.exp(logits) / np.exp(logits).sum()).astype(np.float32)
    score = (score.view(np.uint32) & 0xFFFF0000).view(np.float32)
    valid = np.ones(visual, np.float32)
    valid[: visual // 8] = valid[-visual // 8 :] = 0
    curve = np.exp(-2 * np.arange(visual + 5) / visual).astype(np.float32)
    assert_every_way_agrees(check_library, stage_of(score, valid, keep, curve, text=84))


def test_scores_that_are_denormal_keep_their_order(check_library: CheckLibrary) -> None:
    tiny = np.array([1, 3, 0, 2, 3, 1], np.uint32).view(np.float32)
    assert_every_way_agrees(check_library, stage_of(tiny, keep=5000))
    _, index = check_library.kernels(feeds(stage_of(tiny, keep=5000)), 5000)
    assert index.tolist() == [[0, 2, 4, 5, 7]]


def test_the_number_kept(check_library: CheckLibrary) -> None:
    for visual in (0, 1, 2, 3, 5, 144, 576, 577, 65536):
        for keep in (1, 2, 1111, 3000, 5000, 9999, 10000):
            assert check_library.kept_count(visual, keep) == kept_count(visual, keep)


def test_what_does_not_fit_is_refused(check_library: CheckLibrary) -> None:
    inputs = feeds(stage_of([0.1, 0.2, 0.3]))
    with pytest.raises(InputError, match=r"score is float64 \[1, 5\]: expected float32 \[1, 5\]; convert it"):
        check_library.kernels({**inputs, "score": inputs["score"].astype(np.float64)}, 5000)
    with pytest.raises(
        InputError, match=r"the kernels could not run: keep_per_10000 must be from 1 to 10000"
    ):
        check_library.kernels(inputs, 0)
    with pytest.raises(InputError, match=r"the reference could not run: the bias curve has fewer weights"):
        check_library.reference({**inputs, "bias_curve": inputs["bias_curve"][:2]}, 5000)


def test_without_a_gpu_the_kernels_for_it_are_refused(
    check_library: CheckLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_library.devices() == 1
    monkeypatch.setattr(CheckLibrary, "devices", lambda self: 0)
    with pytest.raises(BackendError, match=r"need an NVIDIA GPU and CUDA found none: run them on a machine"):
        check_library.kernels(feeds(stage_of([0.1, 0.2, 0.3])), 5000)


def test_a_build_that_fails_says_what_it_printed(check_library: CheckLibrary, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"(?s)cmake -S .* failed with 1; it printed:.*toolchain"):
        prune_check.build(tmp_path, options=("-DCMAKE_TOOLCHAIN_FILE=/no/such/toolchain.cmake",))


def test_missing_programs_and_files_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"nothing\.so cannot be loaded .*; build it again"):
        CheckLibrary(tmp_path / "nothing.so")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match=r"needs cmake and c\+\+ and nvcc: install them"):
        prune_check.build(tmp_path, cuda=True)
