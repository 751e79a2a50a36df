"""The caches of an engine on the GPU, each of them once; see `backends.caches` and `token_major`.

A cache has one piece of memory, taken when the engine is loaded, as large as its profiles ask for. The
engine reads its beginning and writes new tokens behind that. What one sequence of runs has there is lost when
another begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import cast

import numpy as np

from edgeprune.errors import BackendError
from edgeprune.interface import TensorSpec
from edgeprune.runtime.backends.base import ELEMENT_BYTES, Array, Tensor, to_bfloat16_bits
from edgeprune.runtime.backends.caches import Buffer, CacheTensor, continued, given_out
from edgeprune.runtime.backends.tensorrt.device import Device, Memory

# Of the addresses of inputs and outputs, in bytes: TensorRT asks for it.
_ALIGNMENT = 256


class _EngineBuffer(Buffer):
    """Device memory, [capacity, B, kv heads, head dim]."""

    def __init__(self, gpu: Device, memory: Memory, row: tuple[int, int, int], dtype: str) -> None:
        self._gpu = gpu
        self.memory = memory
        self._row = row
        self.dtype = dtype

    @property
    def end(self) -> int:
        """The address behind what it holds."""
        return self.memory.address + self.nbytes(self.filled)

    def shape(self, length: int) -> tuple[int, int, int, int]:
        batch, heads, width = self._row
        return (batch, heads, length, width)

    def nbytes(self, length: int) -> int:
        return length * prod(self._row) * ELEMENT_BYTES[self.dtype]

    def numpy(self, length: int) -> Array:
        if self.dtype == "bfloat16":
            raise BackendError("a bfloat16 cache cannot be fetched: numpy has no such type")
        values = np.empty((length, *self._row), dtype=self.dtype)
        self._gpu.download(self.memory.address, values)
        return np.ascontiguousarray(values.transpose(1, 2, 0, 3))


class EngineCaches:
    """The memory of an engine's caches, and what lies in it.

    Args:
        specs: the inputs that are caches, token-major.
        sizes: the bytes of each at its largest, by name.
        added: the most bytes that are added to a past, by name.
    """

    def __init__(
        self, gpu: Device, specs: Iterable[TensorSpec], sizes: Mapping[str, int], added: Mapping[str, int]
    ) -> None:
        self._gpu = gpu
        self._specs = {spec.name: spec for spec in specs}
        self._memory = {name: gpu.allocate(sizes[name]) for name in self._specs}
        self._apart = {
            name: gpu.allocate(added[name]) for name, spec in self._specs.items() if not _is_aligned(spec)
        }
        self._latest: dict[str, _EngineBuffer] = {}

    def shape(self, name: str, value: Tensor | Array) -> tuple[int, ...]:
        """Of an input in the engine: caches are fed as [B, kv heads, P, head dim], whatever lies below."""
        if name not in self._specs:
            return tuple(value.shape)
        batch, heads, tokens, width = value.shape
        return (tokens, batch, heads, width)

    def place(self, feeds: Mapping[str, Tensor | Array]) -> dict[str, _EngineBuffer]:
        """Where the caches lie that are fed, by the inputs' names; those from the host are brought there.

        Raises:
            BackendError: a cache is not what the last run gave out.
        """
        return {name: self._buffer(name, feeds[name]) for name in self._specs}

    def _buffer(self, name: str, value: Tensor | Array) -> _EngineBuffer:
        latest = self._latest.get(name)
        if latest is not None and continued(value) is latest:
            return latest
        if isinstance(value, CacheTensor):
            raise BackendError(
                f"the cache that {name} was fed is not the one of the last run, which took its place: go on "
                "with that, or begin anew"
            )
        array = cast(Array, value)
        batch, heads, tokens, width = array.shape
        spec = self._specs[name]
        if latest is not None:
            latest.filled = -1
        buffer = _EngineBuffer(self._gpu, self._memory[name], (batch, heads, width), spec.dtype)
        if array.size:
            # Caches from the host come up where results are compared, never in the loop.
            array = array.transpose(2, 0, 1, 3)
            bits = spec.dtype == "bfloat16"
            array = to_bfloat16_bits(array) if bits else np.ascontiguousarray(array, dtype=spec.dtype)
            staging = self._gpu.allocate_staging(array.nbytes)
            self._gpu.upload(buffer.memory.address, array, staging)
            self._gpu.synchronize()  # before the staging is freed
            buffer.filled = tokens
        self._latest[name] = buffer
        return buffer

    def target(self, name: str, buffer: _EngineBuffer) -> int:
        """The address for what a run adds: behind what the buffer holds, where TensorRT can write there."""
        return buffer.end if buffer.end % _ALIGNMENT == 0 else self._apart[name].address

    def given_out(
        self, buffers: Mapping[str, _EngineBuffer], added: Mapping[str, int]
    ) -> dict[str, CacheTensor]:
        """What a run gives out, by the outputs' names.

        Args:
            buffers: that `place` gave.
            added: how many tokens the run wrote to each one's `target`.
        """
        for name, buffer in buffers.items():
            target = self.target(name, buffer)
            if target != buffer.end:
                self._gpu.copy(buffer.end, target, buffer.nbytes(added[name]))
        return given_out(buffers, {name: buffer.filled + added[name] for name, buffer in buffers.items()})


def _is_aligned(spec: TensorSpec) -> bool:
    """Whether every token of a cache begins where TensorRT can write."""
    row = prod(axis for axis in spec.shape if isinstance(axis, int))
    return row * ELEMENT_BYTES[spec.dtype] % _ALIGNMENT == 0
