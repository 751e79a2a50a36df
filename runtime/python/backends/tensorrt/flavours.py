"""The two flavours of TensorRT. This module alone chooses and imports one; both have the same Python API.

`tensorrt` is TensorRT proper: Jetson, desktop, data centre; it has plugins and builds for the GPU it runs on.
`tensorrt-rtx` is TensorRT for RTX: desktop GPUs; it builds without a GPU, for any of them, and has no
plugins.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

from edgeprune.errors import BackendError, InputError, MissingDependencyError


@dataclass(frozen=True)
class Flavour:
    """One flavour.

    Attributes:
        name: as the command line and the sidecar have it; also the name of its back end.
        title: what it is, for messages.
        module: the Python module.
        package: the distribution that brings it.
        extra: the extra of edgeprune that brings that.
        has_plugins: whether plugin libraries may be loaded into it. Into TensorRT for RTX never: it cannot
            run them, and its ONNX parser aborts the process at a node that a registered plugin claims.
        builds_anywhere: whether it builds without a GPU, for the targets it is told.
    """

    name: str
    title: str
    module: str
    package: str
    extra: str
    has_plugins: bool
    builds_anywhere: bool


TENSORRT = Flavour("tensorrt", "TensorRT", "tensorrt", "tensorrt", "trt", True, False)
TENSORRT_RTX = Flavour(
    "tensorrt-rtx", "TensorRT for RTX", "tensorrt_rtx", "tensorrt-rtx-cu13", "rtx", False, True
)
FLAVOURS = {flavour.name: flavour for flavour in (TENSORRT, TENSORRT_RTX)}


def flavour_by_name(name: str) -> Flavour:
    """The flavour called `name`.

    Raises:
        InputError: there is no such flavour.
    """
    if name not in FLAVOURS:
        raise InputError(f"no engines are built for a back end {name!r}: choose one of {', '.join(FLAVOURS)}")
    return FLAVOURS[name]


def is_installed(flavour: Flavour) -> bool:
    return find_spec(flavour.module) is not None


def load(flavour: Flavour, what: str) -> Any:
    """The flavour's module.

    Args:
        what: the step that needs it, for the message.

    Raises:
        MissingDependencyError: it is not installed.
        BackendError: it is installed but cannot be loaded.
    """
    if not is_installed(flavour):
        raise MissingDependencyError(what, flavour.package, flavour.extra)
    try:
        return import_module(flavour.module)
    except Exception as error:  # a broken installation: missing libraries, or of another Python
        reason = " ".join(str(error).split())
        raise BackendError(
            f"{flavour.module} is installed but cannot be loaded ({reason}): install it again"
        ) from error


def installed_version(flavour: Flavour) -> str | None:
    """The version of the distribution, without loading it; None where it is not installed."""
    try:
        return metadata.version(flavour.package)
    except metadata.PackageNotFoundError:
        return None


def numbers(version: str) -> tuple[int, ...]:
    """(10, 3, 0) of "10.3.0": the leading numbers of a version, to compare."""
    found: list[int] = []
    for part in version.split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)
