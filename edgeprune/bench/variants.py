"""Variants of a bundle to compare it with, made from its own language graph: unpruned, and without debias.

Only graphs are written, next to nothing in bytes; the weights stay where they are, in the bundle. Needs the
package onnx.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import BundleError, MissingDependencyError
from edgeprune.interface import OP_DOMAIN, OP_NAME, language_interface, past_mask
from edgeprune.manifest import CacheGroup, GraphSpec, Manifest
from edgeprune.onnx_files import external_files
from edgeprune.plans import Merge, PruningPlan

PRUNED, NO_DEBIAS, UNPRUNED = "pruned", "pruned without debias", "unpruned"

_PRUNE_OP = (OP_DOMAIN, OP_NAME)
# Averaging into kept tokens happens in front of the node, and would stay without it.
_MERGED_BEFORE = (Merge.NEAREST, Merge.SURVIVOR)
# Inputs and outputs that are there because of pruning stages.
_ADDED = re.compile(r"(kept_index|score)\.|(past|present)_mask\.[1-9]")


def write_variant(name: str, bundle: Path, manifest: Manifest, target: Path) -> Manifest:
    """Writes the graphs of a variant into an empty folder.

    Args:
        name: one of the three above.
        bundle: the bundle that it is a variant of; only read.
        manifest: of the bundle.
        target: an existing folder; a `Session` on it finds the weights in `weights_folder`.

    Returns:
        The variant's manifest. Its padding mask and list of files are the bundle's.

    Raises:
        MissingDependencyError: the package onnx is not installed.
        BundleError: the language graph does not hold the stages that the plan names, or dropped tokens are
            merged into kept ones, in it or in the vision tower, which taking pruning nodes out leaves there.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError("comparing a bundle with its unpruned form", "onnx", "bench") from error
    merging = [f"layer {stage.layer}" for stage in manifest.plan.stages if stage.merge in _MERGED_BEFORE]
    if manifest.plan.tower:
        merging.insert(0, "the vision tower")
    if merging and name != PRUNED:
        raise BundleError(
            f"the graphs merge tokens before a pruning node, in {merging[0]} ({manifest.plan.describe()}), "
            f"and would not be {name} without the node: export the model with `method='none'`, or with "
            "`debias='none'`, and give those bundles as `baselines`"
        )
    vision, model = (_loaded(bundle, graph.file) for graph in (manifest.vision, manifest.language))
    nodes = [node for node in model.graph.node if (node.domain, node.op_type) == _PRUNE_OP]
    if len(nodes) != len(manifest.plan.stages):
        raise BundleError(
            f"{bundle / manifest.language.file} has {len(nodes)} pruning stages and the plan "
            f"{len(manifest.plan.stages)}: the files do not belong together; export the bundle again"
        )
    changes: dict[str, Any] = {}
    if name == NO_DEBIAS:
        _flatten_curves(model, nodes)
        changes["plan"], changes["curve"] = manifest.plan.debiased(()), None
    if name == UNPRUNED:
        _remove_stages(model, nodes)
        plan = PruningPlan(method="none")
        whole = language_interface(manifest.model, plan)
        changes["plan"], changes["curve"] = plan, None
        changes["cache_groups"] = (CacheGroup(first=0, last=manifest.model.layers - 1),)
        changes["language"] = GraphSpec(
            file=manifest.language.file, inputs=whole.inputs, outputs=whole.outputs
        )
    onnx.save(vision, target / manifest.vision.file)
    onnx.save(model, target / manifest.language.file)
    return manifest.model_copy(update=changes)


def weights_folder(bundle: Path, manifest: Manifest) -> Path:
    """The folder that the weights of a bundle really lie in, which is another one where the bundle has links.

    Raises:
        BundleError: there are several.
    """
    graphs = (bundle / manifest.vision.file, bundle / manifest.language.file)
    names = {name for graph in graphs for name in external_files(graph)}
    folders = {(bundle / name).resolve().parent for name in names} or {bundle}
    if len(folders) > 1:
        raise BundleError(f"the weights of {bundle} lie in several folders: copy the bundle into one")
    return folders.pop()


def _loaded(bundle: Path, name: str) -> Any:
    """A graph that names its weight files as they are called in `weights_folder`, as no runtime follows links
    from elsewhere."""
    import onnx

    try:
        model = onnx.load(bundle / name, load_external_data=False)
    except Exception as error:  # protobuf's own, of a module that onnx hides
        raise BundleError(
            f"{bundle / name} is no ONNX graph ({error}): copy the bundle again, or export it again"
        ) from error
    for initializer in model.graph.initializer:
        for entry in initializer.external_data:
            if entry.key == "location":
                entry.value = (bundle / entry.value).resolve().name
    return model


def _flatten_curves(model: Any, nodes: list[Any]) -> None:
    """Bias curves become ones."""
    curves = {node.input[4] for node in nodes}
    for initializer in model.graph.initializer:
        if initializer.name in curves:
            ones = np.ones(list(initializer.dims), dtype=np.float32)
            initializer.ClearField("float_data")
            initializer.raw_data = ones.tobytes()


def _remove_stages(model: Any, nodes: list[Any]) -> None:
    """Pruning nodes become identities, and whatever only served them disappears."""
    from onnx import helper

    graph = model.graph
    # All layers see the same tokens, so they share the first group's key mask.
    renamed = {value.name: past_mask(0) for value in graph.input if _ADDED.match(value.name)}
    kept = []
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        if node not in nodes:
            kept.append(node)
            continue
        states, index = node.output
        hidden = renamed[states] = node.input[0]
        # Positions 0..S-1 in every row. The names are new: they begin with the removed output's own.
        one, axis = f"{index}.one", f"{index}.axis"
        kept += [
            helper.make_node("Shape", [hidden], [f"{index}.shape"], end=2),
            helper.make_node(
                "ConstantOfShape",
                [f"{index}.shape"],
                [f"{index}.ones"],
                value=helper.make_tensor("value", 7, [1], [1]),
            ),
            helper.make_node("Constant", [], [one], value_ints=[1]),
            helper.make_node("Constant", [], [axis], value_int=1),
            helper.make_node("CumSum", [f"{index}.ones", axis], [f"{index}.counted"]),
            helper.make_node("Sub", [f"{index}.counted", one], [index]),
        ]
    inputs = [value for value in graph.input if not _ADDED.match(value.name)]
    outputs = [value for value in graph.output if not _ADDED.match(value.name)]
    needed = {value.name for value in outputs}
    alive = []
    for node in reversed(kept):
        if needed.intersection(node.output):
            alive.append(node)
            needed.update(node.input)
    initializers = [value for value in graph.initializer if value.name in needed]
    fields = {"input": inputs, "output": outputs, "node": alive[::-1], "initializer": initializers}
    for field, values in fields.items():
        graph.ClearField(field)
        getattr(graph, field).extend(values)
    # Shapes that were inferred with pruning no longer hold.
    graph.ClearField("value_info")
    model.ClearField("functions")
    domains = [entry for entry in model.opset_import if entry.domain != _PRUNE_OP[0]]
    model.ClearField("opset_import")
    model.opset_import.extend(domains)
