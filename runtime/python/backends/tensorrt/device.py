"""The NVIDIA GPU: memory, streams and facts. This module alone imports cuda-bindings.

Works in the device's primary context, which TensorRT uses too. Everything is queued on one stream of its own.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from numpy.typing import NDArray

from edgeprune.errors import BackendError, MissingDependencyError

_PACKAGE = "cuda-bindings"
NO_GPU = "no NVIDIA GPU answers here: check the driver with nvidia-smi"


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, its architecture as a target ("sm89"), its memory in bytes, and whether that is the
    host's too, as on Jetson.
    """

    name: str
    target: str
    memory_bytes: int
    shares_host_memory: bool


def is_installed() -> bool:
    try:
        return find_spec("cuda.bindings.runtime") is not None
    except ModuleNotFoundError:  # nothing called cuda at all
        return False


def runtime(what: str, extra: str) -> Any:
    """cuda-bindings' module of the CUDA runtime.

    Raises:
        MissingDependencyError: it is not installed.
    """
    if not is_installed():
        raise MissingDependencyError(what, _PACKAGE, extra)
    return import_module("cuda.bindings.runtime")


def read_gpu(cudart: Any, number: int = 0) -> Gpu | None:
    """GPU `number`; None where there is none, or its driver does not answer.

    Args:
        cudart: what `runtime` gives.
    """
    error, count = cudart.cudaGetDeviceCount()
    if int(error) != 0 or number >= count:
        return None
    error, found = cudart.cudaGetDeviceProperties(number)
    if int(error) != 0:
        return None
    name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
    return Gpu(
        name.rstrip("\0"), f"sm{found.major}{found.minor}", int(found.totalGlobalMem), bool(found.integrated)
    )


class Device:
    """One GPU with a stream. Every method that copies or runs only queues; `synchronize` waits.

    Args:
        cudart: what `runtime` gives.
        number: the GPU's.

    Raises:
        BackendError: there is no such GPU, or CUDA failed.
    """

    def __init__(self, cudart: Any, number: int = 0) -> None:
        self._cudart = cudart
        gpu = read_gpu(cudart, number)
        if gpu is None:
            raise BackendError(NO_GPU if number == 0 else f"there is no GPU {number} here: see nvidia-smi")
        self.gpu = gpu
        self._call(cudart.cudaSetDevice(number), "choosing the GPU")
        # Not the default stream, and one that does not wait for it.
        self.stream = int(
            self._call(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking), "creating a stream")
        )
        self._free_at_start = self.free_bytes()
        self._least_free = self._free_at_start

    def allocate(self, size: int) -> Memory:
        """At least one byte of device memory: TensorRT wants an address even for a tensor without elements.

        Raises:
            BackendError: the GPU has not so much left.
        """
        size = max(1, size)
        error, address = self._cudart.cudaMalloc(size)
        if int(error) != 0:
            raise BackendError(
                f"the GPU has no {size / 1e6:.1f} MB left ({self.free_bytes() / 1e6:.1f} MB are free): end "
                "what else runs on it, or build with a smaller `max_prompt`, `max_new_tokens` or `max_batch`"
            )
        self._least_free = min(self._least_free, self.free_bytes())
        return Memory(self._cudart, int(address), size)

    def allocate_staging(self, size: int) -> Staging:
        """Host memory that copies to the device without waiting."""
        address = self._call(self._cudart.cudaMallocHost(max(1, size)), "allocating pinned memory")
        event = self._call(
            self._cudart.cudaEventCreateWithFlags(self._cudart.cudaEventDisableTiming), "an event"
        )
        return Staging(self._cudart, int(address), max(1, size), event)

    def upload(self, target: int, array: NDArray[Any], staging: Staging) -> None:
        """Copies a contiguous array to the address `target`, through `staging`."""
        if not array.nbytes:
            return
        # Its former contents may still be on their way.
        self._call(self._cudart.cudaEventSynchronize(staging.event), "waiting for a copy")
        ctypes.memmove(staging.address, array.ctypes.data, array.nbytes)
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(
            self._cudart.cudaMemcpyAsync(target, staging.address, array.nbytes, kind, self.stream),
            "copying to the GPU",
        )
        self._call(self._cudart.cudaEventRecord(staging.event, self.stream), "recording an event")

    def download(self, source: int, array: NDArray[Any]) -> None:
        """Fills a contiguous array from the address `source`; waits until the values are there."""
        if array.nbytes:
            kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
            self._call(
                self._cudart.cudaMemcpyAsync(array.ctypes.data, source, array.nbytes, kind, self.stream),
                "copying from the GPU",
            )
        self.synchronize()

    def copy(self, target: int, source: int, size: int) -> None:
        """Copies bytes on the GPU, from one address to another."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call(
            self._cudart.cudaMemcpyAsync(target, source, size, kind, self.stream), "copying on the GPU"
        )

    def synchronize(self) -> None:
        """Waits for everything queued on this stream, and for nothing else on the GPU."""
        self._call(self._cudart.cudaStreamSynchronize(self.stream), "running on the GPU")

    def free_bytes(self) -> int:
        error, free, _total = self._cudart.cudaMemGetInfo()
        return int(free) if int(error) == 0 else 0

    def used_bytes(self) -> int:
        """The most by which the GPU's free memory has shrunk since this object was made, whoever took it."""
        self._least_free = min(self._least_free, self.free_bytes())
        return self._free_at_start - self._least_free

    def _call(self, result: tuple[Any, ...], what: str) -> Any:
        error, *values = result
        if int(error) != 0:
            text = self._cudart.cudaGetErrorString(error)[1]
            reason = text.decode() if isinstance(text, bytes) else text
            raise BackendError(f"{what} failed: CUDA says {reason!r}; see `edgeprune doctor`")
        return values[0] if values else None


class Memory:
    """Device memory, freed with this object."""

    def __init__(self, cudart: Any, address: int, size: int) -> None:
        self._cudart = cudart
        self.address = address
        self.size = size

    def __del__(self) -> None:
        self._cudart.cudaFree(self.address)


class Staging:
    """Pinned host memory and the event that tells when its contents have arrived; freed with this object."""

    def __init__(self, cudart: Any, address: int, size: int, event: Any) -> None:
        self._cudart = cudart
        self.address = address
        self.size = size
        self.event = event

    def __del__(self) -> None:
        self._cudart.cudaFreeHost(self.address)
        self._cudart.cudaEventDestroy(self.event)
