"""Engines in the hands of the fakes, here too."""

from tests.runtime.backends.tensorrt.conftest import cudart, tensorrt

__all__ = ["cudart", "tensorrt"]
