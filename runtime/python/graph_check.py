"""Whether a loaded graph has the inputs and outputs that the manifest says."""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune.errors import BundleError, PruningError
from edgeprune.interface import TensorSpec, kept_index
from edgeprune.manifest import Manifest
from edgeprune.runtime.backends.base import Graph


def _fits(found: Sequence[int | str], wanted: Sequence[int | str]) -> bool:
    """Whether shapes are as long, and equal where both are fixed."""
    if len(found) != len(wanted):
        return False
    pairs = zip(found, wanted, strict=True)
    return all(have == want for have, want in pairs if isinstance(have, int) and isinstance(want, int))


def check_interface(
    graph: Graph, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], manifest: Manifest
) -> None:
    """Compares a graph with what the manifest says.

    Raises:
        BundleError: an input or output is missing, or of another type or shape.
        PruningError: the plan prunes and the graph has no such stage.
    """
    for kind, wanted, found in (("input", inputs, graph.inputs), ("output", outputs, graph.outputs)):
        have = {(spec.name, spec.dtype): spec.shape for spec in found}
        for spec in wanted:
            shape = have.get((spec.name, spec.dtype))
            if shape is not None and _fits(shape, spec.shape):
                continue
            source = manifest.model.source
            if shape is not None:
                raise BundleError(
                    f"the graph's {kind} {spec.name} has the shape {list(shape)}, and {source}'s manifest "
                    f"says {list(spec.shape)}: the files do not belong together; export the bundle again"
                )
            if spec.name in map(kept_index, range(len(manifest.plan.stages))):
                raise PruningError(
                    f"the plan prunes ({manifest.plan.describe()}), but the language graph has no "
                    f"{spec.name}: it would run unpruned; export the bundle again"
                )
            raise BundleError(
                f"the graph has no {kind} {spec.name} of type {spec.dtype}, which {source}'s manifest "
                "names: the files do not belong together; export the bundle again"
            )
