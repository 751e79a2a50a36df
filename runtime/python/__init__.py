"""The runtime: what a device runs. Needs neither torch nor transformers.

    from edgeprune.runtime import load

    model = load("bundle")
    print(model.generate("What is in the image?", images=["street.jpg"]).text)

Importing this package loads nothing else; every name below is imported when it is first used.
"""

from __future__ import annotations

from edgeprune.lazy import lazy_names

# Public name -> module that defines it.
_PUBLIC = {
    "load": "edgeprune.runtime.model",
    "Model": "edgeprune.runtime.model",
    "Reply": "edgeprune.runtime.model",
    "Conversation": "edgeprune.runtime.conversation",
    "Statistics": "edgeprune.runtime.statistics",
    "StageResult": "edgeprune.runtime.stages",
}

__all__ = ["Conversation", "Model", "Reply", "StageResult", "Statistics", "load"]

__getattr__ = lazy_names("edgeprune.runtime", _PUBLIC)
