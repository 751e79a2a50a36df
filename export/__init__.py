"""The exporter: from a Hugging Face vision-language model to a bundle. Needs `edgeprune[export]`.

Importing the package loads none of what the exporter needs.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from edgeprune.errors import MissingDependencyError


def part(name: str) -> ModuleType:
    """The module `edgeprune.exporter.NAME`, loaded now.

    Raises:
        MissingDependencyError: a package that the exporter needs is not installed.
    """
    try:
        return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in ("", "edgeprune"):
            raise
        raise MissingDependencyError("exporting a model", missing, "export") from error
