"""Engines: what TensorRT and TensorRT for RTX make of a bundle's graphs, for one kind of GPU.

    from edgeprune.runtime.backends.tensorrt import build

    build("bundle", backend="tensorrt-rtx", targets=["sm89"])

Importing this package loads nothing else; every name below is imported when it is first used.
"""

from __future__ import annotations

from edgeprune.lazy import lazy_names

# Public name -> module that defines it.
_PUBLIC = {
    "build": "edgeprune.runtime.backends.tensorrt.building",
    "Sidecar": "edgeprune.runtime.backends.tensorrt.sidecar",
    "Limits": "edgeprune.runtime.backends.tensorrt.limits",
}

__all__ = ["Limits", "Sidecar", "build"]

__getattr__ = lazy_names("edgeprune.runtime.backends.tensorrt", _PUBLIC)
