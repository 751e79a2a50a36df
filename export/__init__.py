"""The exporter: from a Hugging Face vision-language model to a bundle. Needs `edgeprune[export]`.

The package can be called: `edgeprune.export(...)` is `edgeprune.export.pipeline.export(...)`, and is
documented there. Importing the package loads none of what the exporter needs.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeprune.errors import MissingDependencyError


def part(name: str) -> ModuleType:
    """The module `edgeprune.export.NAME`, loaded now.

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


class _CallablePackage(ModuleType):
    """A package whose name is also the function that it is there for.

    Importing a sub-package binds it in its parent, over whatever the parent had under that name. So a
    function `edgeprune.export` would be lost to the first `import edgeprune.export.anything`.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Path:
        written: Path = part("pipeline").export(*args, **kwargs)
        return written


sys.modules[__name__].__class__ = _CallablePackage
