"""Engines in the hands of the fakes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprune.runtime.backends.tensorrt import device, memory
from tests.runtime.backends.tensorrt import fakes

MODULE = """
from tests.runtime.backends.tensorrt.fakes import *
from tests.runtime.backends.tensorrt.fakes import __version__
"""
CUDA_MODULE = """
from tests.runtime.backends.tensorrt import fakes

def __getattr__(name):
    return getattr(fakes.CUDART, name)
"""


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch) -> Iterator[fakes.FakeCudart]:
    """One fake GPU, an RTX 40, in the place of cuda-bindings."""
    fake = fakes.FakeCudart()
    monkeypatch.setattr(fakes, "CUDART", fake)
    monkeypatch.setattr(device, "is_installed", lambda: True)
    monkeypatch.setattr(device, "runtime", lambda what, extra: fakes.CUDART)
    return fake


@pytest.fixture
def tensorrt(cudart: fakes.FakeCudart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """The fake as the package `tensorrt`, here and in child processes; those have a fake GPU too."""
    packages = tmp_path / "packages"
    bindings = packages / "cuda" / "bindings"
    bindings.mkdir(parents=True)
    for package in (bindings.parent, bindings):
        (package / "__init__.py").touch()
    (bindings / "runtime.py").write_text(CUDA_MODULE, encoding="utf-8")
    (packages / "tensorrt.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setattr(memory, "available_memory", lambda: 1 << 40)
    fakes._REGISTRY.__init__()  # type: ignore[misc]
    yield fakes
    sys.modules.pop("tensorrt", None)
