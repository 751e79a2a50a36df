"""The form of the language graph that engines are built from: it leaves its caches where they are.

The bundle's graph reads keys and values as [B, kv heads, P, head dim] and gives out all of them anew, so old
and new ones would be there at once. Here they are token-major, [P, B, kv heads, head dim]: the first tokens
of a buffer are one piece of memory, and what stands behind them is another. The graph reads the former and
gives out what is new alone, [S', B, kv heads, head dim], which is written to the latter. Within a layer both
are still joined, in memory that the next layer uses again.

It is made of the bundle's graph when an engine is built; no file has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from edgeprune.errors import BackendError
from edgeprune.interface import TensorSpec, group_of_axis, is_cache, is_past, present_of
from edgeprune.manifest import GraphSpec

if TYPE_CHECKING:
    import onnx

# From [P, B, kv heads, head dim] to [B, kv heads, P, head dim], and back.
_BY_HEAD, _BY_TOKEN = (1, 2, 0, 3), (2, 0, 1, 3)


def token_major(language: GraphSpec) -> GraphSpec:
    """Inputs and outputs of that form; those that are no caches stay. The axis of a group's new tokens is
    `new_g`.
    """
    return language.model_copy(
        update={"inputs": _turned(language.inputs), "outputs": _turned(language.outputs)}
    )


def _new_axis(present: str) -> str:
    return f"new_{group_of_axis(present)}"


def _turned(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    found = []
    for spec in specs:
        if is_cache(spec.name):
            batch, heads, tokens, width = spec.shape
            if not is_past(spec.name):
                tokens = _new_axis(str(tokens))
            spec = spec.model_copy(update={"shape": (tokens, batch, heads, width)})
        found.append(spec)
    return tuple(found)


def make_token_major(model: onnx.ModelProto) -> None:
    """Gives a bundle's language graph that form.

    Raises:
        BackendError: it does not join a cache with what is new, as every exported graph does.
    """
    from onnx import helper

    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    outputs = {value.name: value for value in graph.output}
    by_head: dict[str, str] = {}
    before, behind = [], []
    for value in graph.input:
        if not is_cache(value.name):
            continue
        past, present = value.name, present_of(value.name)
        joined = makers.get(present)
        if joined is None or joined.op_type != "Concat" or list(joined.input)[:-1] != [past]:
            raise BackendError(
                f"the language graph does not make {present} of {past} and what is new alone, so no engine "
                "can be built that leaves its caches where they are: export the bundle again"
            )
        by_head |= {name: f"{name}.by_head" for name in (past, present)}
        before.append(
            helper.make_node("Transpose", [past], [by_head[past]], name=by_head[past], perm=_BY_HEAD)
        )
        new = joined.input[1]
        behind.append(
            helper.make_node("Transpose", [new], [present], name=f"{present}.by_token", perm=_BY_TOKEN)
        )
        for turned in (value, outputs[present]):
            batch, heads, tokens, width = turned.type.tensor_type.shape.dim
            if turned is not value:
                tokens.dim_param = _new_axis(tokens.dim_param)
            dims = [type(axis).FromString(axis.SerializeToString()) for axis in (tokens, batch, heads, width)]
            del turned.type.tensor_type.shape.dim[:]
            turned.type.tensor_type.shape.dim.extend(dims)
    for node in graph.node:
        node.input[:] = [by_head.get(name, name) for name in node.input]
        node.output[:] = [by_head.get(name, name) for name in node.output]
    nodes = [*before, *graph.node, *behind]
    del graph.node[:]
    graph.node.extend(nodes)
