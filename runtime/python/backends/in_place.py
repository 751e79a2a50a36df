"""A language graph of ONNX Runtime whose caches lie in buffers; see `caches`.

A buffer has room for what was asked for, and gives way to a larger one where more comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeprune.errors import BackendError
from edgeprune.interface import (
    INPUT_IDS,
    TensorSpec,
    group_of_axis,
    is_cache,
    kept_index,
    past_mask,
    present_mask,
    present_of,
)
from edgeprune.memory import available_memory
from edgeprune.runtime.backends.base import Array, Tensor
from edgeprune.runtime.backends.caches import Buffer, continued, given_out
from edgeprune.units import bytes_text

# Room that a buffer gets beyond what was asked for, once more came than was told.
_MORE = 64


class _Buffer(Buffer):
    """An array [B, kv heads, capacity, head dim].

    Attributes:
        array: the memory.
        value: the same as ONNX Runtime's, which holds on to the array. What a run hands out for an output
            that it wrote here does not, so that is never kept.
    """

    def __init__(self, array: Array) -> None:
        import onnxruntime

        self.array = array
        self.dtype = str(array.dtype)
        self.value: Any = onnxruntime.OrtValue.ortvalue_from_numpy(array)

    def shape(self, length: int) -> tuple[int, int, int, int]:
        batch, heads, _, width = self.array.shape
        return (batch, heads, length, width)

    def nbytes(self, length: int) -> int:
        """Of the whole buffer."""
        return self.array.nbytes

    def numpy(self, length: int) -> Array:
        return self.array[:, :, :length].copy()


class InPlaceGraph:
    """A language graph whose caches lie in buffers.

    Args:
        graph: an `OrtGraph` of that form.
        inputs: of the form, whose axes say which group a cache belongs to.
    """

    max_length: int | None = None
    most_behind_past: int | None = None

    def __init__(self, graph: Any, inputs: Sequence[TensorSpec]) -> None:
        self._graph = graph
        self.inputs: tuple[TensorSpec, ...] = graph.inputs
        self.outputs: tuple[TensorSpec, ...] = graph.outputs
        self._caches = {spec.name: spec for spec in inputs if is_cache(spec.name)}
        self._groups = {name: group_of_axis(str(spec.shape[2])) for name, spec in self._caches.items()}
        self._wanted: tuple[int, ...] | None = None

    def expect(self, capacities: Sequence[int]) -> None:
        """See `Graph.expect`."""
        self._wanted = tuple(capacities)

    def run(self, feeds: Mapping[str, Tensor | Array], outputs: Sequence[str]) -> dict[str, Tensor]:
        groups = sorted(set(self._groups.values()))
        pasts = [feeds[past_mask(group)].shape[1] for group in groups]
        new = feeds[INPUT_IDS].shape[1]
        buffers = self._buffers(feeds, [past + new for past in pasts])
        others = [name for name in outputs if not is_cache(name)]
        needed = [present_mask(group) for group in groups]
        trims = kept_index(0) in {spec.name for spec in self.outputs}
        asked = dict.fromkeys([*others, *needed, *([kept_index(0)] if trims else [])])
        found = self._graph.run_into(
            {**feeds, **{name: buffer.value for name, buffer in buffers.items()}},
            list(asked),
            {present_of(name): buffer.value for name, buffer in buffers.items()},
        )
        totals = [found[name].shape[1] for name in needed]
        if totals[0] < pasts[0] + new:
            # The plan cuts the caches before its stage to the tokens that stay.
            index = found[kept_index(0)].numpy()[:, None, :, None]
            for name, buffer in buffers.items():
                if self._groups[name] == 0:
                    added = buffer.array[:, :, pasts[0] : pasts[0] + new]
                    stay = np.take_along_axis(added, index, axis=2)
                    buffer.array[:, :, pasts[0] : totals[0]] = stay
        presents = given_out(buffers, {name: totals[group] for name, group in self._groups.items()})
        return {name: presents[name] if is_cache(name) else found[name] for name in outputs}

    def _buffers(self, feeds: Mapping[str, Tensor | Array], lengths: Sequence[int]) -> dict[str, _Buffer]:
        """The buffers of all caches by their inputs, with room for so many tokens of each group."""
        wanted, self._wanted = self._wanted, None
        kept: dict[str, _Buffer] = {}
        sizes: dict[str, tuple[int, ...]] = {}
        for name in self._caches:
            value, group = feeds[name], self._groups[name]
            batch, heads, past, width = value.shape
            room = wanted[group] if wanted else lengths[group]
            buffer = continued(value)
            if buffer is not None and buffer.array.shape[2] >= room:
                kept[name] = buffer
            else:
                more = 0 if wanted or not past else max(_MORE, past // 2)
                sizes[name] = (batch, heads, room + more, width)
        self._check_memory(sizes)
        for name, size in sizes.items():
            value = feeds[name]
            buffer = _Buffer(np.zeros(size, dtype=self._caches[name].dtype))
            if value.shape[2]:
                past = value if isinstance(value, np.ndarray) else value.numpy()
                buffer.array[:, :, : past.shape[2]] = past
            kept[name] = buffer
        return kept

    def _check_memory(self, sizes: Mapping[str, tuple[int, ...]]) -> None:
        needed = sum(
            int(np.prod(size)) * np.dtype(self._caches[name].dtype).itemsize for name, size in sizes.items()
        )
        free = available_memory()
        if free is None or needed <= free:
            return
        size = next(iter(sizes.values()))
        prompts = f"{size[0]} prompts" if size[0] > 1 else "a prompt"
        raise BackendError(
            f"the caches of {prompts} of up to {size[2]} tokens need {bytes_text(needed)} of memory "
            f"and {bytes_text(free)} are free: ask for fewer `max_new_tokens`, set a smaller `max_context`, "
            "or run fewer prompts at once with `batch_size`"
        )
