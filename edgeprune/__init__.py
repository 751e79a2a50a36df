"""edgeprune: vision-language models with debiased visual-token pruning inside the graph.

    import edgeprune

    edgeprune.export("llava-hf/llava-1.5-7b-hf", keep=0.3, output="bundle")
    model = edgeprune.load("bundle")
    print(model.generate("What is in the image?", images=["street.jpg"]).text)

Importing this package loads the standard library alone; every name below is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeprune.lazy import lazy_names

if TYPE_CHECKING:
    from edgeprune.api import export
    from edgeprune.debias.curves import BiasCurve
    from edgeprune.errors import EdgepruneError
    from edgeprune.manifest import Manifest
    from edgeprune.plans import PruningPlan
    from edgeprune.runtime import load

__version__ = "0.1.0"

# Public name -> module that defines it. Heavy packages stay unloaded until a name is used.
_PUBLIC = {
    "export": "edgeprune.api",
    "load": "edgeprune.runtime",
    "EdgepruneError": "edgeprune.errors",
    "BiasCurve": "edgeprune.debias.curves",
    "PruningPlan": "edgeprune.plans",
    "Manifest": "edgeprune.manifest",
}

__all__ = ["BiasCurve", "EdgepruneError", "Manifest", "PruningPlan", "__version__", "export", "load"]

__getattr__ = lazy_names("edgeprune", _PUBLIC)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
