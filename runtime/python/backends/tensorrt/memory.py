"""How much memory a build takes, told before it starts: running out of it stops small boards altogether."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from edgeprune.errors import InputError
from edgeprune.manifest import Manifest
from edgeprune.memory import available_memory
from edgeprune.runtime.backends.tensorrt.device import Gpu
from edgeprune.runtime.backends.tensorrt.flavours import Flavour
from edgeprune.units import bytes_text


class _Factors(NamedTuple):
    """What a build takes of the host: a fixed part, one for each decoder layer, and a multiple of the
    weights, for what is laid out anew and what is written.
    """

    fixed: int
    layer: int
    times_weights: float


_FACTORS = {
    # Measured: 15 MB a layer and 1.6 times the weights (docs/tensorrt.md); a quarter of this is room.
    "tensorrt-rtx": _Factors(200_000_000, 16_000_000, 2.0),
    # Not measured: users of comparable projects report 3 to 4 times the weights.
    "tensorrt": _Factors(400_000_000, 0, 4.0),
}
# On the GPU itself, where TensorRT times its kernels with the weights in place.
_TIMES_WEIGHTS_ON_GPU = 1.5

_WEIGHT_FILES = ".safetensors"


def weight_bytes(manifest: Manifest) -> int:
    """The bundle's weights in bytes. Both graphs share the files, and the language model is most of them."""
    return sum(entry.bytes for entry in manifest.files if entry.path.endswith(_WEIGHT_FILES))


def estimate(manifest: Manifest, flavour: Flavour) -> int:
    """The host memory that building takes at its peak, in bytes, rather too high. The weight files
    themselves are mapped, which the system can undo at any time, and do not count.
    """
    fixed, layer, times_weights = _FACTORS[flavour.name]
    return int(fixed + layer * manifest.model.layers + times_weights * weight_bytes(manifest))


def available_bytes(root: Path = Path("/")) -> int | None:
    """The memory that processes can still take, in bytes; a control group's limit counts. None: unknown."""
    found = [value for value in (available_memory(), _control_group(root)) if value is not None]
    return min(found, default=None)


def check(manifest: Manifest, flavour: Flavour, gpu: Gpu | None, gpu_free: int | None, force: bool) -> int:
    """Refuses a build for which there is not enough memory.

    Args:
        gpu: the one that TensorRT builds on; None where it needs none.
        gpu_free: its free bytes.
        force: whether to try all the same.

    Returns:
        The estimate for the host in bytes.

    Raises:
        InputError: there is too little memory.
    """
    needed, weights = estimate(manifest, flavour), weight_bytes(manifest)
    available = available_bytes()
    if force:
        return needed
    if available is not None and needed > available:
        raise InputError(
            f"building takes about {bytes_text(needed)} of memory for {bytes_text(weights)} of weights in "
            f"{manifest.model.layers} layers, and {bytes_text(available)} are available: end other "
            "programs, export with `dtype='fp16'`, build on a larger machine of the same kind, or add "
            "`force=True` to try it"
        )
    on_gpu = int(_TIMES_WEIGHTS_ON_GPU * weights)
    if gpu is not None and gpu_free is not None and not gpu.shares_host_memory and on_gpu > gpu_free:
        raise InputError(
            f"building takes about {bytes_text(on_gpu)} of the GPU's memory, and {bytes_text(gpu_free)} "
            "are free: end what else runs on it, export with `dtype='fp16'`, or add `force=True` to try it"
        )
    return needed


def _control_group(root: Path) -> int | None:
    """What the limit of the process's control group, version 2, leaves."""
    folder = root / "sys/fs/cgroup"
    limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
    if limit is None or used is None:
        return None
    # Cached files are given up when memory is needed.
    return max(0, limit - used + (_number(folder / "memory.stat", "file") or 0))


def _number(path: Path, field: str | None = None) -> int | None:
    """A file's only number, or the one in the line that begins with `field`; None where there is none
    ("max").
    """
    try:
        lines = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    except OSError:
        return None
    words = next((words[1:] if field else words for words in lines if not field or words[:1] == [field]), [])
    return int(words[0]) if words and words[0].isdigit() else None
