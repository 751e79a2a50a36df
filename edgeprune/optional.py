"""Modules that need more than the base installation."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from edgeprune.errors import MissingDependencyError


def export_module(name: str) -> ModuleType:
    """The module `edgeprune.NAME`, which needs what `edgeprune[export]` installs, loaded now.

    Raises:
        MissingDependencyError: one of those packages is not installed.
    """
    try:
        return import_module(f"edgeprune.{name}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in ("", "edgeprune"):
            raise
        raise MissingDependencyError("exporting a model", missing, "export") from error
