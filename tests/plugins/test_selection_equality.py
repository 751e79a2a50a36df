"""The operator in C++, as a reference and as the CUDA kernels on the CPU, against the selection's law.

The torch op and the ONNX function body are held against the same law beside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeprune.debias.selection import select
from edgeprune.errors import BackendError, InputError
from plugins.check import prune_check
from plugins.check.prune_check import CheckLibrary
from tests.edgeprune.debias.test_selection import stages

PROPERTY = settings(deadline=None, max_examples=200, derandomize=True)
Array = NDArray[Any]
Stage = dict[str, Any]

NAN, INF = float("nan"), float("inf")
LOWEST, LARGEST = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)


def stage_of(
    score: Any, weight: Any = None, kept: int = 2, text: int = 1, end: int = 1, batch: int = 1
) -> Stage:
    """A stage whose visual tokens, with these scores, have `text` tokens in front and `end` behind them."""
    visual = np.array(score, dtype=np.float32).reshape(batch, -1)
    count = visual.shape[1]
    scores = [np.full((batch, text), 9.0), visual, np.full((batch, end), 9.0)]
    weights = np.ones((batch, count)) if weight is None else np.array(weight).reshape(batch, count)
    return {
        "score": np.concatenate(scores, axis=1).astype(np.float32),
        "visual_index": np.tile(np.arange(text, text + count, dtype=np.int64), (batch, 1)),
        "weight": weights.astype(np.float32),
        "kept": kept,
    }


def feeds(stage: Stage, rows: int = 1, dtype: type[np.generic] = np.float32) -> dict[str, Array]:
    """The operator's inputs; the hidden state of position p is p, so that a wrong gather shows."""
    batch, sequence = stage["score"].shape
    hidden = np.arange(batch * sequence, dtype=np.float32).reshape(batch, sequence, 1) * [1.0, -1.0, 0.5]
    return {
        "hidden_states": hidden.astype(dtype),
        **{name: stage[name] for name in ("score", "visual_index", "weight")},
        "kept_slots": np.full((rows, stage["kept"]), -7),
    }


def assert_follows_the_law(
    library: CheckLibrary, stage: Stage, rows: int = 1, dtype: type[np.generic] = np.float32
) -> None:
    inputs = feeds(stage, rows, dtype)
    index = select(**stage).kept_index
    states = np.take_along_axis(inputs["hidden_states"], index[:, :, None], axis=1)
    for found_states, found_index in (library.reference(inputs), library.kernels(inputs)):
        assert found_states.dtype == states.dtype
        np.testing.assert_array_equal(found_index, index)
        np.testing.assert_array_equal(found_states, states)


ADVERSARIAL = {
    "all equal": stage_of([0.25] * 9, kept=4),
    "all zero": stage_of([0.0] * 6),
    "both zeros": stage_of([-0.0, 0.0, -0.0, 0.0]),
    "ties at the threshold": stage_of([3, 1, 2, 1, 1, 2, 1, 3], kept=5),
    "all NaN": stage_of([NAN] * 5),
    "NaN beside numbers": stage_of([NAN, 0.1, NAN, 0.2, -1], kept=3),
    "NaN and -inf tie with the lowest": stage_of([LOWEST, NAN, -INF, LOWEST]),
    "+inf ties with the largest": stage_of([1, LARGEST, INF, LARGEST], kept=1),
    "all +inf": stage_of([INF] * 5),
    "all -inf": stage_of([-INF] * 5),
    "-inf without a weight and of a score": stage_of([-INF, 5, 4, -INF], [1, 0, 0, 1]),
    "none has a weight": stage_of([0.4, 0.1, 0.3, 0.2], [0] * 4),
    "those without a weight fill up": stage_of([0.4, 0.1, 0.3, 0.2], [0, 0, 1, 0], kept=3),
    "NaN and inf without a weight": stage_of([NAN, INF, 0.0, -INF], [0, -0.0, 1, 0]),
    "weights of NaN and inf": stage_of([0.5, 0.5, 0.0, 0.1], [NAN, INF, INF, 1]),
    "underflow beats no weight": stage_of([1.0, 1e-45, 1.0], [0, 0.25, 0], kept=1),
    "overflow": stage_of([3e38, 3e38, 1.0], [4, 4, 1], kept=1),
    "denormals": stage_of(np.array([1, 3, 0, 2, 3, 1], np.uint32).view(np.float32), kept=3),
    "K is V": stage_of([0.1, 0.3, 0.2], kept=3),
    "K is 1": stage_of([0.1, 0.3, 0.2, 0.3], kept=1),
    "K is 0": stage_of([0.1, 0.3, 0.2, 0.3], kept=0),
    "K is 0 and the last one is visual": stage_of([0.1, 0.3], kept=0, end=0),
    "K is 0 and nothing is left": stage_of([0.1, 0.3], kept=0, text=0, end=0),
    "V is 1": stage_of([0.1], kept=1),
    "V is 0": stage_of([], kept=0),
    "the last one is visual": stage_of([0.3, 0.2, 0.1], kept=1, end=0),
    "the last one has no weight": stage_of([INF, INF, 0.1], [1, 1, 0], kept=1, end=0),
    "the last one is NaN": stage_of([INF, 0.2, NAN], [1, 0, 1], kept=2, end=0),
    "only visual tokens": stage_of([0.2, 0.1, 0.3], kept=2, text=0, end=0),
    "batch": stage_of([0.1, 0.3, 0.2, 0.4, 0.4, 0.1, NAN, 0.4], [1, 1, 1, 1, 1, 2, 0, 0.5], batch=2),
}


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_adversarial_stages(check_library: CheckLibrary, name: str, dtype: type[np.generic]) -> None:
    assert_follows_the_law(check_library, ADVERSARIAL[name], dtype=dtype)


@PROPERTY
@given(stage=stages(), order=st.integers(0, 9), a_row_each=st.booleans())
def test_random_stages(check_library: CheckLibrary, stage: Stage, order: int, a_row_each: bool) -> None:
    check_library.thread_order(order)
    assert_follows_the_law(check_library, stage, rows=len(stage["score"]) if a_row_each else 1)


@pytest.mark.parametrize("visual", [576, 2304, 16384])
@pytest.mark.parametrize("share", [0, 1e-4, 0.3, 0.9999, 1])
@pytest.mark.parametrize("end", [0, 49])
def test_real_sizes(check_library: CheckLibrary, visual: int, share: float, end: int) -> None:
    """Softmax weights that bfloat16 makes equal, a falling curve, padding above and below."""
    rng = np.random.default_rng(visual)
    logits = rng.normal(scale=3, size=visual)
    score = (np.exp(logits) / np.exp(logits).sum()).astype(np.float32)
    score = (score.view(np.uint32) & 0xFFFF0000).view(np.float32)
    weight = np.exp(-2 * np.arange(visual) / visual).astype(np.float32)
    weight[: visual // 8] = weight[-visual // 8 :] = 0
    stage = stage_of(score, weight, kept=round(visual * share), text=35, end=end)
    assert_follows_the_law(check_library, stage)


def test_scores_that_are_denormal_keep_their_order(check_library: CheckLibrary) -> None:
    _, index = check_library.kernels(feeds(ADVERSARIAL["denormals"]))
    assert index.tolist() == [[0, 2, 4, 5, 7]]


def test_the_last_position_stays(check_library: CheckLibrary) -> None:
    _, index = check_library.kernels(feeds(ADVERSARIAL["the last one has no weight"]))
    assert index.tolist() == [[0, 3]]


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
    check_library: CheckLibrary, way: str, changes: dict[str, Array], message: str
) -> None:
    inputs = feeds(stage_of([0.1, 0.2, 0.3]))
    with pytest.raises(InputError, match=message):
        getattr(check_library, way)({**inputs, **changes})


def test_without_a_gpu_the_kernels_for_it_are_refused(
    check_library: CheckLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_library.devices() == 1
    monkeypatch.setattr(CheckLibrary, "devices", lambda self: 0)
    with pytest.raises(BackendError, match=r"need an NVIDIA GPU and CUDA found none: run them on a machine"):
        check_library.kernels(feeds(stage_of([0.1, 0.2, 0.3])))


def test_a_build_that_fails_says_what_it_printed(check_library: CheckLibrary, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"(?s)cmake -S .* failed with 1; it printed:.*toolchain"):
        prune_check.build(tmp_path, options=("-DCMAKE_TOOLCHAIN_FILE=/no/such/toolchain.cmake",))


def test_missing_programs_and_files_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"nothing\.so cannot be loaded .*; build it again"):
        CheckLibrary(tmp_path / "nothing.so")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match=r"needs cmake and c\+\+ and nvcc: install them"):
        prune_check.build(tmp_path, cuda=True)
