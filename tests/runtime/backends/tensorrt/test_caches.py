"""An engine's caches on a fake GPU: where they lie, what is copied, and which can be gone on with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from edgeprune.errors import BackendError
from edgeprune.interface import TensorSpec
from edgeprune.runtime.backends.base import ELEMENT_BYTES, to_bfloat16_bits
from edgeprune.runtime.backends.caches import CacheTensor
from edgeprune.runtime.backends.tensorrt.caches import EngineCaches
from edgeprune.runtime.backends.tensorrt.device import Device
from tests.runtime.backends.tensorrt import fakes

NAME, OUTPUT = "past_key.0", "present_key.0"
HEADS, CAPACITY = 2, 16
# Of a head; a token takes 256 bytes, or no multiple of that.
ALIGNED, ODD = 32, 8


class Engine:
    """A layer that remembers numbers: each becomes a token whose every element it is."""

    def __init__(self, cudart: fakes.FakeCudart, width: int, dtype: Any = "float32", batch: int = 1) -> None:
        self.cudart, self.width, self.dtype, self.batch = cudart, width, dtype, batch
        self.gpu = Device(cudart)
        spec = TensorSpec(name=NAME, dtype=dtype, shape=("past_0", "batch", HEADS, width))
        token = batch * HEADS * width * ELEMENT_BYTES[dtype]
        self.caches = EngineCaches(self.gpu, [spec], {NAME: CAPACITY * token}, {NAME: 2 * token})

    def run(self, numbers: Sequence[int], past: Any = None) -> CacheTensor:
        if past is None:
            past = np.zeros((self.batch, HEADS, 0, self.width), np.float32)
        buffers = self.caches.place({NAME: past})
        target = self.caches.target(NAME, buffers[NAME])
        assert target % 256 == 0
        new = np.ones((len(numbers), self.batch, HEADS, self.width)) * np.reshape(numbers, (-1, 1, 1, 1))
        bits = self.dtype == "bfloat16"
        new = to_bfloat16_bits(new) if bits else new.astype(self.dtype)
        self.gpu.upload(target, new, self.gpu.allocate_staging(new.nbytes))
        return self.caches.given_out(buffers, {NAME: len(numbers)})[OUTPUT]

    def memory(self) -> list[int]:
        """The numbers that lie where the cache does, whoever asks."""
        address = self.caches._memory[NAME].address
        content = self.cudart.live[address].view(np.uint16 if self.dtype == "bfloat16" else self.dtype)
        return content.reshape(CAPACITY, -1)[:, 0].astype(int).tolist()


def held(cache: CacheTensor) -> list[int]:
    return cache.numpy()[0, 0, :, 0].astype(int).tolist()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("width", [ALIGNED, ODD])
@pytest.mark.parametrize("batch", [1, 3])
def test_there_is_one_memory_for_what_was_and_what_is_new(
    cudart: fakes.FakeCudart, width: int, dtype: str, batch: int
) -> None:
    engine = Engine(cudart, width, dtype, batch)
    token = batch * HEADS * width * ELEMENT_BYTES[dtype]
    found = engine.run([1, 2, 3])
    taken, copied = cudart.used, cudart.copied
    for number in range(4, 10):
        found = engine.run([number], found)
    assert held(found) == list(range(1, 10)) == engine.memory()[:9]
    assert found.shape == (batch, HEADS, 9, width)
    assert (found.dtype, found.nbytes) == (dtype, 9 * token)
    assert cudart.used == taken
    # Of each run what is new, and that only where TensorRT cannot write it where it belongs.
    whole = [length for length in range(3, 9) if length * token % 256 == 0]
    assert cudart.copied - copied == (6 - len(whole)) * token
    assert (not cudart.copied) == (len(whole) == 6)


def test_a_second_sequence_takes_the_place_of_the_first(cudart: fakes.FakeCudart) -> None:
    engine = Engine(cudart, ALIGNED)
    first = engine.run([1, 2, 3])
    second = engine.run([7, 8, 9])
    assert held(second) == [7, 8, 9]
    with pytest.raises(BackendError, match=r"a cache was overwritten by a later run: fetch it before that"):
        first.numpy()
    with pytest.raises(
        BackendError, match=r"past_key\.0 was fed is not the one of the last run.*go on with that, or begin"
    ):
        engine.run([4], first)
    assert held(engine.run([10], second)) == [7, 8, 9, 10]


def test_a_cache_that_was_gone_on_with_is_not_gone_on_with_again(cudart: fakes.FakeCudart) -> None:
    engine = Engine(cudart, ODD)
    first = engine.run([1, 2])
    left = engine.run([3], first)
    with pytest.raises(BackendError, match=r"is not the one of the last run"):
        engine.run([4], first)
    assert held(first) == [1, 2]
    assert held(engine.run([5], left)) == [1, 2, 3, 5]


def test_the_cache_of_another_engine_is_refused(cudart: fakes.FakeCudart) -> None:
    engine, other = Engine(cudart, ALIGNED), Engine(cudart, ALIGNED)
    engine.run([1])
    with pytest.raises(BackendError, match=r"is not the one of the last run"):
        engine.run([2], other.run([1]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cache_cut_short_is_continued_in_its_place(cudart: fakes.FakeCudart, dtype: str) -> None:
    engine = Engine(cudart, ODD, dtype)
    engine.run([6], engine.run([1, 2, 3]).first(2))
    wanted = np.array([1, 2, 6], np.float32)
    assert engine.memory()[:3] == (to_bfloat16_bits(wanted) if dtype == "bfloat16" else wanted).tolist()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cache_from_the_host_is_brought_there(cudart: fakes.FakeCudart, dtype: str) -> None:
    engine = Engine(cudart, ODD, dtype, batch=2)
    past = np.arange(2 * HEADS * 3 * ODD, dtype=np.float32).reshape(2, HEADS, 3, ODD)
    found = engine.run([9], past)
    assert found.shape == (2, HEADS, 4, ODD)
    if dtype == "bfloat16":
        with pytest.raises(BackendError, match=r"a bfloat16 cache cannot be fetched: numpy has no such type"):
            found.numpy()
        return
    np.testing.assert_array_equal(found.numpy()[:, :, :3], past)
    assert (found.numpy()[:, :, 3] == 9).all()
