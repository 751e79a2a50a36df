"""Engines: what TensorRT and TensorRT for RTX make of a bundle's graphs, for one kind of GPU.

    from edgeprune.runtime.backends.tensorrt import build

    build("bundle", flavour="tensorrt-rtx", targets=["sm89"])

Importing this package loads nothing else; every name below is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Public name -> module that defines it.
_PUBLIC = {
    "build": "edgeprune.runtime.backends.tensorrt.building",
    "Sidecar": "edgeprune.runtime.backends.tensorrt.sidecar",
    "Limits": "edgeprune.runtime.backends.tensorrt.limits",
}

__all__ = ["Limits", "Sidecar", "build"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'edgeprune.runtime.backends.tensorrt' has no attribute {name!r}")
