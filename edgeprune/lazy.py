"""Public names of a package, imported when they are first used: importing the package loads nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, public: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package.

    Args:
        package: its name, as messages give it.
        public: each public name, and the module that defines it.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807  # what it is for
        if name not in public:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        # Looked up anew each time: what a test puts in the module is found here too.
        return getattr(import_module(public[name]), name)

    return __getattr__
