"""Caches in buffers: the memory lives, grows, is shared by nobody, and is refused where there is none."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeprune.errors import BackendError
from edgeprune.interface import TensorSpec, capacity_axis
from edgeprune.manifest import GraphSpec
from edgeprune.runtime.backends import in_place, open_backend
from edgeprune.runtime.backends.caches import CacheTensor

HEADS, WIDTH = 2, 8
CAPACITY = capacity_axis(0)


def _value(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _layer(folder: Path) -> GraphSpec:
    """One layer of attention in which every number is a key, a value and a query."""
    ints = {"one": [1], "minus": [-1], "shape": [1, -1, HEADS * WIDTH]}
    constants = [helper.make_tensor(n, TensorProto.INT64, [len(v)], v) for n, v in ints.items()]
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["numbers", "minus"], ["column"]),
        helper.make_node("Tile", ["column", "repeats"], ["x"]),
        helper.make_node("Concat", ["past_mask.0", "attention_mask"], ["present_mask.0"], axis=1),
        helper.make_node("Shape", ["present_mask.0"], ["total"], start=1, end=2),
        helper.make_node("Sub", ["total", "one"], ["last"]),
        helper.make_node("Cast", ["last"], ["last32"], to=TensorProto.INT32),
        helper.make_node("Squeeze", ["total"], ["total0"]),
        helper.make_node("Cast", ["total0"], ["total32"], to=TensorProto.INT32),
        helper.make_node(
            "GroupQueryAttention",
            ["x", "x", "x", "past_key.0", "past_value.0", "last32", "total32"],
            ["logits", "present_key.0", "present_value.0"],
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=HEADS,
        ),
    ]
    constants.append(helper.make_tensor("repeats", TensorProto.INT64, [3], [1, 1, HEADS * WIDTH]))
    cache = (1, HEADS, CAPACITY, WIDTH)
    inputs: list[tuple[str, Any, tuple[int | str, ...]]] = [
        ("input_ids", "int64", (1, "sequence")),
        ("attention_mask", "int64", (1, "sequence")),
        ("past_mask.0", "int64", (1, "past_0")),
        ("past_key.0", "float32", cache),
        ("past_value.0", "float32", cache),
    ]
    outputs: list[tuple[str, Any, tuple[int | str, ...]]] = [
        ("logits", "float32", (1, "sequence", HEADS * WIDTH)),
        ("present_mask.0", "int64", (1, "present_0")),
        ("present_key.0", "float32", cache),
        ("present_value.0", "float32", cache),
    ]
    kinds = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
    graph = helper.make_graph(
        nodes,
        "layer",
        [_value(name, kinds[kind], *shape) for name, kind, shape in inputs],
        [_value(name, kinds[kind], *shape) for name, kind, shape in outputs],
        constants,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "layer.onnx")
    return GraphSpec(
        file="layer.onnx",
        inputs=tuple(TensorSpec(name=n, dtype=k, shape=s) for n, k, s in inputs),
        outputs=tuple(TensorSpec(name=n, dtype=k, shape=s) for n, k, s in outputs),
    )


@pytest.fixture
def layer(tmp_path: Path) -> Any:
    return open_backend("onnxruntime", threads=1).load(tmp_path, _layer(tmp_path))


def run(graph: Any, numbers: list[int], past: dict[str, Any] | None = None) -> dict[str, Any]:
    empty = np.zeros((1, HEADS, 0, WIDTH), np.float32)
    past = past or {
        "present_mask.0": np.zeros((1, 0), np.int64),
        "present_key.0": empty,
        "present_value.0": empty,
    }
    feeds = {
        "input_ids": np.array([numbers]),
        "attention_mask": np.ones((1, len(numbers)), np.int64),
        **{name.replace("present", "past"): past[name] for name in past if name != "logits"},
    }
    found: dict[str, Any] = graph.run(feeds, ["logits", "present_mask.0", "present_key.0", "present_value.0"])
    return found


def held(found: dict[str, Any]) -> list[float]:
    """The numbers in a cache."""
    numbers: list[float] = found["present_key.0"].numpy()[0, 0, :, 0].tolist()
    return numbers


def test_a_step_writes_into_the_same_memory(layer: Any) -> None:
    layer.expect([8])
    found = run(layer, [1, 2, 3])
    place = found["present_key.0"].buffer.array.ctypes.data
    for number in range(4, 9):
        found = run(layer, [number], found)
        assert found["present_key.0"].buffer.array.ctypes.data == place
    assert held(found) == list(range(1, 9))
    assert found["present_key.0"].shape == (1, HEADS, 8, WIDTH)
    assert found["present_key.0"].nbytes == HEADS * 8 * WIDTH * 4


def test_the_memory_lives_as_long_as_the_cache(layer: Any) -> None:
    """What a run of ONNX Runtime hands out for a buffer does not keep it: everything else is let go here, and
    the memory of a freed buffer would be taken by what is allocated next.
    """
    layer.expect([2000])
    found = run(layer, [1] * 1000)
    gc.collect()
    for number in range(200):
        found = run(layer, [number], found)
        filled = [np.full((1, HEADS, 2000, WIDTH), np.nan, np.float32) for _ in range(3)]
        assert np.isfinite(found["logits"].numpy()).all()
        del filled
    assert held(found) == [1] * 1000 + list(range(200))


def test_more_than_was_told_is_copied_into_larger_buffers(layer: Any) -> None:
    found = run(layer, [1, 2, 3])
    assert found["present_key.0"].nbytes == HEADS * 3 * WIDTH * 4
    for number in range(4, 200):
        found = run(layer, [number], found)
    assert held(found) == list(range(1, 200))


def test_two_continuations_of_one_cache_do_not_mix(layer: Any) -> None:
    layer.expect([8])
    first = run(layer, [1, 2])
    left, right = run(layer, [3], first), run(layer, [4], first)
    left = run(layer, [5], left)
    assert held(left) == [1, 2, 3, 5]
    assert held(right) == [1, 2, 4]


def test_a_cache_cut_short_is_continued_in_its_place(layer: Any) -> None:
    layer.expect([8])
    found = run(layer, [1, 2, 3, 4])
    place = found["present_key.0"].buffer
    cut = {name: found[name].first(2) for name in ("present_key.0", "present_value.0")}
    found = run(layer, [7], {"present_mask.0": np.ones((1, 2), np.int64), **cut})
    assert held(found) == [1, 2, 7]
    assert found["present_key.0"].buffer is place


def test_a_cache_from_the_host_is_taken(layer: Any) -> None:
    found = run(layer, [1, 2])
    host = {name: value.numpy() for name, value in found.items()}
    again = run(layer, [3], host)
    assert held(again) == [1, 2, 3]
    np.testing.assert_array_equal(again["logits"].numpy(), run(layer, [3], found)["logits"].numpy())


def test_caches_that_do_not_fit_are_refused(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 2 * HEADS * 1000 * WIDTH * 4
    monkeypatch.setattr(in_place, "available_memory", lambda: needed - 1)
    layer.expect([1000])
    with pytest.raises(
        BackendError, match=r"the caches of a prompt of up to 1000 tokens need .* and .* are free: ask for "
    ):
        run(layer, [1])
    monkeypatch.setattr(in_place, "available_memory", lambda: needed)
    layer.expect([1000])
    assert held(run(layer, [1])) == [1]
    monkeypatch.setattr(in_place, "available_memory", lambda: None)
    assert held(run(layer, [1])) == [1]


def test_a_cache_has_one_shape(layer: Any) -> None:
    cache: CacheTensor = run(layer, [1])["present_key.0"]
    assert cache.dtype == "float32"
    with pytest.raises(BackendError, match=r"lies in a buffer: it has no other shape"):
        cache.reshape(HEADS, 1, WIDTH)
