"""Back ends: what executes the graphs of a bundle. Each is one file beside this one, imported when used."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from edgeprune.errors import BackendError
from edgeprune.runtime.backends.base import Availability, Backend

# Name -> module, the best first. A module has availability(name) and open_backend(name, options); one whose
# graphs have to be built first also has is_ready(name, bundle).
_MODULES = {
    "tensorrt": "edgeprune.runtime.backends.tensorrt.backend",
    "tensorrt-rtx": "edgeprune.runtime.backends.tensorrt.backend",
    "onnxruntime-cuda": "edgeprune.runtime.backends.ort",
    "onnxruntime": "edgeprune.runtime.backends.ort",
}

NAMES = tuple(_MODULES)
"""Every back end by name, the best first."""

AUTO = "auto"

__all__ = ["AUTO", "NAMES", "Availability", "Backend", "available", "is_ready", "open_backend"]


def available() -> tuple[Availability, ...]:
    """Every back end, the best first, and whether it can run here. Loads their packages where installed."""
    return tuple(_availability(name) for name in NAMES)


def open_backend(name: str = AUTO, *, bundle: Path | None = None, **options: Any) -> Backend:
    """The back end called `name`; "auto" is the best one that is available here.

    Args:
        bundle: what it shall run, for "auto": back ends that need engines are passed over where the bundle
            has none for them, or is None.

    Raises:
        BackendError: there is no such back end, or it cannot run here.
        MissingDependencyError: its package is not installed.
        InputError: an option is unknown to it or has no sensible value.
    """
    if name == AUTO:
        found = available()
        usable = [entry.name for entry in found if entry.available and is_ready(entry.name, bundle)]
        if not usable:
            reasons = "; ".join(f"{entry.name}: {entry.reason}" for entry in found)
            raise BackendError(f"no back end can run here ({reasons})")
        name = usable[0]
    if name not in _MODULES:
        raise BackendError(f"there is no back end {name!r}: choose one of {AUTO}, {', '.join(NAMES)}")
    backend: Backend = import_module(_MODULES[name]).open_backend(name, options)
    return backend


def is_ready(name: str, bundle: Path | None) -> bool:
    """Whether a bundle has what the back end runs; engines have to be built first."""
    module = import_module(_MODULES[name])
    return not hasattr(module, "is_ready") or (bundle is not None and module.is_ready(name, bundle))


def _availability(name: str) -> Availability:
    found: Availability = import_module(_MODULES[name]).availability(name)
    return found
