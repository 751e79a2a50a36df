"""Caches that lie where they are: a language graph writes new keys and values behind the old ones.

Seen from outside such a graph is any other: it is fed the caches that an earlier run gave out, and gives out
longer ones. These are views of buffers with room behind what they hold, and where that is enough, the longer
cache is the same memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from edgeprune.errors import BackendError
from edgeprune.interface import present_of
from edgeprune.runtime.backends.base import Array


class Buffer(ABC):
    """A layer's keys or values, and room for more.

    Attributes:
        dtype: as in `TensorSpec`.
        filled: how many tokens it holds; -1 where its memory was given to other ones.
    """

    dtype: str
    filled = 0

    @abstractmethod
    def shape(self, length: int) -> tuple[int, int, int, int]:
        """Of its first tokens: [B, kv heads, length, head dim]."""

    @abstractmethod
    def nbytes(self, length: int) -> int:
        """What a cache of its first tokens takes."""

    @abstractmethod
    def numpy(self, length: int) -> Array:
        """A copy of its first tokens."""


class CacheTensor:
    """The first tokens of a buffer, [B, kv heads, P, head dim].

    It holds its values until a run continues a shorter view of the same buffer, which `first` gives, or the
    memory of the buffer is given to other tokens.
    """

    def __init__(self, buffer: Buffer, length: int) -> None:
        self.buffer = buffer
        self._length = length

    @property
    def shape(self) -> tuple[int, ...]:
        return self.buffer.shape(self._length)

    @property
    def dtype(self) -> str:
        return self.buffer.dtype

    @property
    def nbytes(self) -> int:
        return self.buffer.nbytes(self._length)

    def reshape(self, *shape: int) -> CacheTensor:
        raise BackendError(f"a cache of shape {list(self.shape)} lies in a buffer: it has no other shape")

    def first(self, length: int) -> CacheTensor:
        """Its first tokens; what stands behind them will be overwritten."""
        self.buffer.filled = length
        return CacheTensor(self.buffer, length)

    def numpy(self) -> Array:
        """A copy.

        Raises:
            BackendError: other tokens are there now.
        """
        if self.buffer.filled < self._length:
            raise BackendError("a cache was overwritten by a later run: fetch it before that")
        return self.buffer.numpy(self._length)


def continued(value: Any) -> Any:
    """The buffer of a cache that a run can go on with where it lies; None for any other value.

    A buffer that another run has continued holds something else behind these tokens.
    """
    if isinstance(value, CacheTensor) and value.buffer.filled == value.shape[2]:
        return value.buffer
    return None


def given_out(buffers: Mapping[str, Buffer], lengths: Mapping[str, int]) -> dict[str, CacheTensor]:
    """What a run gives out, by the outputs' names.

    Args:
        buffers: by the inputs' names.
        lengths: how many tokens each holds now, by the same.
    """
    for name, buffer in buffers.items():
        buffer.filled = lengths[name]
    return {present_of(name): CacheTensor(buffer, buffer.filled) for name, buffer in buffers.items()}
