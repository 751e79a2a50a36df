"""The GPUs that engines are built for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeprune.errors import BackendError, InputError
from edgeprune.manifest import Precision, WeightKind
from edgeprune.runtime.backends.tensorrt import device
from edgeprune.runtime.backends.tensorrt.device import Gpu
from edgeprune.runtime.backends.tensorrt.flavours import Flavour

CURRENT = "current"
"""The GPU of this machine."""

KNOWN = {
    "sm80": "A100",
    "sm86": "GeForce RTX 30, A40",
    "sm87": "Jetson Orin",
    "sm89": "GeForce RTX 40, L4, L40",
    "sm90": "H100",
    "sm110": "Jetson Thor",
    "sm120": "GeForce RTX 50",
}
"""Architectures by name, with GPUs that have them; others are taken as they are."""

_LEAST: dict[WeightKind, tuple[int, str]] = {
    "int4": (80, "Ampere"),
    "fp8": (89, "Ada"),
    "nvfp4": (100, "Blackwell"),
}
"""From which architecture on TensorRT takes a kind of weights, and its name."""


@dataclass(frozen=True)
class Targets:
    """Architectures, and the GPU that TensorRT builds on with its free bytes, where it builds on one."""

    names: tuple[str, ...]
    gpu: Gpu | None = None
    gpu_free: int | None = None


def resolve_targets(flavour: Flavour, trt: Any, wanted: Sequence[str]) -> Targets:
    """What to build for.

    Args:
        trt: the flavour's module.
        wanted: architectures, or "current".

    Raises:
        InputError: a target is unknown, or the flavour cannot build for it.
        BackendError: there is no GPU here, and one is needed.
    """
    if not wanted:
        raise InputError(f"no `targets`: give {CURRENT}, or {', '.join(KNOWN)}")
    for name in wanted:
        if name != CURRENT and not re.fullmatch(r"sm\d{2,3}", name):
            known = ", ".join(f"{sm} ({gpus})" for sm, gpus in KNOWN.items())
            raise InputError(f"`targets` {name!r} is no GPU architecture: expected {CURRENT}, {known}")
    if flavour.builds_anywhere:
        return _anywhere(flavour, trt, wanted)
    return _here(flavour, wanted)


def check_weights(precision: Precision, targets: Sequence[str]) -> None:
    """Refuses weights that a target cannot read, before anything is built.

    Raises:
        InputError: names the first such target, and kinds of weights that all of them take.
    """
    numbers = {name: int(name[2:]) for name in targets}
    for kind in precision.kinds:
        least, title = _LEAST.get(kind, (0, ""))
        for name, number in numbers.items():
            if number < least:
                good = [other for other, (first, _) in _LEAST.items() if min(numbers.values()) >= first]
                raise InputError(
                    f"the bundle has {kind} weights, which TensorRT takes from {title} (sm{least}) on, and "
                    f"the target is {name}: export with weights in {' or '.join([*good, 'int8', 'fp16'])}"
                )


def _anywhere(flavour: Flavour, trt: Any, wanted: Sequence[str]) -> Targets:
    able = [name.lower() for name in trt.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name)]
    names = []
    for name in wanted:
        if name == CURRENT:
            gpu = device.read_gpu(device.runtime(f"`targets` {CURRENT}", flavour.extra))
            if gpu is None:
                raise BackendError(
                    f"{device.NO_GPU}; to build for another machine's GPU name it: "
                    f"`targets` {' or '.join(able)}"
                )
            name = gpu.target
        if name not in able:
            way = (
                ""
                if name not in ("sm87", "sm110")
                else "; for a Jetson, run `edgeprune build` with TensorRT on it"
            )
            raise InputError(f"{flavour.title} cannot build for {name}: it can for {', '.join(able)}{way}")
        names.append(name)
    # One engine for the same GPUs has one name, in whatever order they were given.
    return Targets(tuple(sorted(set(names), key=lambda name: int(name[2:]))))


def _here(flavour: Flavour, wanted: Sequence[str]) -> Targets:
    cudart = device.runtime(f"building with {flavour.title}", flavour.extra)
    gpu = device.read_gpu(cudart)
    if gpu is None:
        raise BackendError(
            f"{flavour.title} builds on the GPU that the engine is for, and {device.NO_GPU}; run this "
            "command on the target machine, or build for desktop GPUs with `backend='tensorrt-rtx'`"
        )
    for name in wanted:
        if name not in (CURRENT, gpu.target):
            raise InputError(
                f"{flavour.title} builds for the GPU it runs on, here {gpu.target} ({gpu.name}), not for "
                f"{name}: run this command on the target machine"
            )
    return Targets((gpu.target,), gpu, device.Device(cudart).free_bytes())
