"""What a back end offers: graphs that run on named tensors which stay on its device.

The session works through these three protocols alone. They fit a runtime that allocates outputs anew in
every run as well as one with fixed buffers: outputs may be overwritten two runs later, and a cache handed
back as the next run's input may lie in the memory that the new tokens are written to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeprune.interface import TensorSpec
from edgeprune.manifest import GraphSpec, Manifest
from edgeprune.memory import PeakMemory

Array: TypeAlias = "NDArray[Any]"

ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8}
"""By the dtypes of `TensorSpec`."""


@dataclass(frozen=True)
class Availability:
    """Whether a back end can run on this machine.

    Attributes:
        name: as `load` takes it.
        title: what it is, for a table.
        available: whether it can run here.
        reason: one sentence that says why not and what to do; None where it is available.
        extra: the extra of edgeprune that brings its packages.
        version: of its package, None where it is not installed.
    """

    name: str
    title: str
    available: bool
    reason: str | None
    extra: str
    version: str | None


class Tensor(Protocol):
    """A tensor on the device of its back end.

    One that a graph gave out is valid until the second following run of that graph; what it held before is
    then lost, unless it was fetched.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str:
        """As in `TensorSpec`: "float32", "float16", "bfloat16" or "int64"."""
        ...

    @property
    def nbytes(self) -> int: ...

    def reshape(self, *shape: int) -> Tensor:
        """The same memory under another shape of the same size."""
        ...

    def numpy(self) -> Array:
        """The values, fetched to the host once they are computed.

        Raises:
            BackendError: the dtype is bfloat16, which numpy lacks; no result that is fetched has it.
        """
        ...


class Graph(Protocol):
    """One graph, ready to run."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_length: int | None
    """The most tokens of prompt and reply that it reads, None where nothing but the model limits it."""

    most_behind_past: int | None
    """The most tokens in a row that a language graph reads behind a past, None for any number; where it is
    limited, what a run gives out is also overwritten by later runs.
    """

    def expect(self, capacities: Sequence[int]) -> None:
        """Says how many tokens the caches of each group are to hold in the runs that follow, of a language
        graph; one that keeps them in place makes room for as many.
        """
        ...

    def run(self, feeds: Mapping[str, Tensor | Array], outputs: Sequence[str]) -> dict[str, Tensor]:
        """Computes outputs from inputs.

        Args:
            feeds: every input by name: a tensor of this back end, or a host array, which is brought to the
                device and, if it is of another float type, to the input's dtype. Any axis that the graph
                leaves open may be 0 long.
            outputs: the names of those wanted; the others are not handed out.

        Returns:
            The wanted outputs by name, on the device; perhaps still being computed.

        Raises:
            BackendError: the feeds do not fit the graph, or the runtime failed.
        """
        ...


class Backend(Protocol):
    """A runtime on one device."""

    name: str
    engines: str | None
    """The folder that it loaded engines from, by its name; None where it runs a bundle's own graphs."""

    def language_form(self, manifest: Manifest) -> GraphSpec:
        """The form of a bundle's language graph that it runs.

        Raises:
            BackendError: one was asked for that the bundle does not have.
        """
        ...

    def load(self, folder: Path, spec: GraphSpec) -> Graph:
        """Makes a graph of a bundle ready to run.

        Args:
            folder: the bundle.
            spec: the graph; the back end takes its ONNX file or the engine that was built from that.

        Raises:
            BackendError: the graph cannot run here; the message says why.
        """
        ...

    def synchronize(self) -> None:
        """Waits until everything that was started is computed, so that times can be told apart."""
        ...

    def peak_memory(self) -> PeakMemory:
        """The most memory used so far, and in what sense."""
        ...

    def free_bytes(self) -> int | None:
        """Memory for graphs that nothing has taken yet; None where it cannot be told."""
        ...


def to_bfloat16_bits(array: NDArray[np.floating[Any]]) -> NDArray[np.uint16]:
    """bfloat16 as its bits, rounded to nearest even, for runtimes that are fed from numpy. NaN stays NaN."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)
