"""Names of the graphs' tensors, and what is fed first and next."""

from __future__ import annotations

import numpy as np

from edgeprune import interface
from edgeprune.manifest import Precision
from tests.manifests import make_manifest

MANIFEST = make_manifest("himap")
LANGUAGE = interface.language_interface(MANIFEST.model, MANIFEST.precision, MANIFEST.plan, MANIFEST.positions)
B, S, V = 2, 9, 3


def first() -> dict[str, np.ndarray]:
    mask = np.ones((B, S), dtype=np.int64)
    mask[0, :4] = 0
    return interface.first_feeds(
        LANGUAGE.inputs,
        np.arange(B * S).reshape(B, S),
        mask,
        np.maximum(np.cumsum(mask, axis=1) - 1, 0),
        np.array([[4, 5, 6], [1, 2, 3]]),
        np.ones((B, V), dtype=np.float32),
        np.arange(B * V).reshape(B, V),
        [2, 1],
        np.zeros((B, V, MANIFEST.model.hidden_size), dtype=np.float32),
    )


def outputs(length: int) -> dict[str, np.ndarray]:
    """What a run gives out, every open axis but the batch so long."""
    sizes = {spec.name: [B if a == "batch" else a for a in spec.shape] for spec in LANGUAGE.outputs}
    return {
        name: np.full([size if isinstance(size, int) else length for size in shape], 7)
        for name, shape in sizes.items()
    }


def test_the_first_feeds_are_the_graph_s_inputs_in_order() -> None:
    feeds = first()
    assert list(feeds) == [spec.name for spec in LANGUAGE.inputs]
    for spec in LANGUAGE.inputs:
        assert feeds[spec.name].ndim == len(spec.shape), spec.name
        assert str(feeds[spec.name].dtype) == spec.dtype, spec.name
        if interface.is_past(spec.name):
            assert feeds[spec.name].size == 0
    assert [feeds[interface.kept_slots(stage)].shape for stage in (0, 1)] == [(1, 2), (1, 1)]
    assert feeds[interface.POSITION_IDS].tolist() == [[0, 0, 0, 0, 0, 1, 2, 3, 4], list(range(9))]


def test_a_next_position_is_the_same_on_every_axis() -> None:
    three = [
        spec.model_copy(update={"shape": (3, *spec.shape)}) if spec.name == interface.POSITION_IDS else spec
        for spec in LANGUAGE.inputs
    ]
    feeds = interface.next_feeds(three, np.array([11, 12]), np.array([5, 9]), outputs(5))
    assert feeds[interface.POSITION_IDS].tolist() == [[[5], [9]]] * 3


def test_the_next_feeds_carry_every_cache_on_and_nothing_else() -> None:
    gave = outputs(5)
    feeds = interface.next_feeds(LANGUAGE.inputs, np.array([11, 12]), np.array([5, 9]), gave)
    assert set(feeds) == {spec.name for spec in LANGUAGE.inputs}
    assert feeds[interface.INPUT_IDS].tolist() == [[11], [12]]
    assert feeds[interface.POSITION_IDS].tolist() == [[5], [9]]
    assert feeds[interface.ATTENTION_MASK].tolist() == [[1], [1]]
    assert feeds[interface.VISUAL_EMBEDS].shape == (B, 0, MANIFEST.model.hidden_size)
    assert feeds[interface.kept_slots(1)].shape == (1, 0)
    assert feeds[interface.past("key", 3)] is gave[interface.present("key", 3)]
    assert feeds[interface.past_mask(2)] is gave[interface.present_mask(2)]


def test_names_belong_to_one_kind() -> None:
    names = [spec.name for spec in (*LANGUAGE.inputs, *LANGUAGE.outputs)]
    assert len(set(names)) == len(names)
    layers = MANIFEST.model.layers
    assert sum(map(interface.is_cache, names)) == 4 * layers
    assert sum(map(interface.is_past, names)) == sum(map(interface.is_present, names)) == 2 * layers + 3
    assert not [name for name in names if interface.is_past(name) and interface.is_present(name)]


def test_half_precision_caches_begin_in_it() -> None:
    half = Precision.plain("fp16")
    inputs = interface.language_interface(MANIFEST.model, half, MANIFEST.plan, MANIFEST.positions).inputs
    feeds = interface.next_feeds(inputs, np.zeros(1, np.int64), np.zeros(1, np.int64), {})
    assert feeds[interface.VISUAL_EMBEDS].dtype == np.float16
