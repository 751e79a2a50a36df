"""Engines in the hands of the fakes, and a real export, here too."""

from tests.export.conftest import pruned
from tests.runtime.backends.tensorrt.conftest import cudart, tensorrt

__all__ = ["cudart", "pruned", "tensorrt"]
