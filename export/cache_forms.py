"""The forms of the language graph: what its layers do with their caches, by who runs it.

A traced graph has one `com.edgeprune::CachedAttention` node a layer; see `attention.cached_attention`. The
form that every runtime takes has standard operators in its place, which copy the past beside what is new in
every run. In the form "in-place" ONNX Runtime's CPU kernels do it: past and present are one buffer of more
room than is filled, and only the new keys and values are written.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxscript
import torch
from onnx import defs, helper, numpy_helper

from edgeprune.errors import VerificationError
from edgeprune.exporter import attention  # noqa: F401  # makes the torch operator known
from edgeprune.interface import (
    CACHE_KINDS,
    IN_PLACE,
    INPUT_IDS,
    OP_DOMAIN,
    OP_NAME,
    OP_VERSION,
    VISUAL_INDEX,
    CacheForm,
    capacity_axis,
    group_of_axis,
    is_cache,
    is_present,
    layer_of,
    past_mask,
    present,
)
from edgeprune.manifest import Manifest

NAME = "CachedAttention"
# What GroupQueryAttention's kernels ask of a head's width.
_WIDTHS = 8
# A score added to it stays finite in float16, and its exponential is 0 beside that of any real score.
_LOWEST_HALF = -3e4


def register_schema() -> None:
    """Makes the operator's ONNX schema known to onnx, once per process."""
    if defs.has(NAME, domain=OP_DOMAIN):
        return
    floats = [f"tensor({t})" for t in ("float16", "bfloat16", "float")]
    parameter = defs.OpSchema.FormalParameter
    inputs = ("query", "key", "value", "past_key", "past_value")
    defs.register_schema(
        defs.OpSchema(
            NAME,
            OP_DOMAIN,
            OP_VERSION,
            doc="Attention to cached and new tokens; no file has it.",
            type_constraints=[("T", floats, "queries, keys and values")],
            inputs=[*(parameter(name, "T") for name in inputs), parameter("mask", "tensor(float)")],
            outputs=[parameter(name, "T") for name in ("mixed", "present_key", "present_value")],
            attributes=[defs.OpSchema.Attribute("scale", defs.OpSchema.AttrType.FLOAT, required=True)],
        )
    )


def translation() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export`: one node a layer."""
    register_schema()
    domain = onnxscript.values.Opset(OP_DOMAIN, OP_VERSION)

    def to_onnx(query, key, value, past_key, past_value, mask, scale: float):  # type: ignore[no-untyped-def]
        return getattr(domain, NAME)(query, key, value, past_key, past_value, mask, scale=scale)

    return {torch.ops.edgeprune.cached_attention.default: to_onnx}


def forms_of(manifest: Manifest) -> tuple[CacheForm, ...]:
    """The forms that a bundle gets beside the portable one.

    None of what ONNX Runtime's CPU kernels do not run, none for heads of a width they lack, and none where
    caches are of another type than what is computed.
    """
    precision = manifest.precision
    runs = precision.beyond_onnxruntime is None and precision.cache == precision.compute
    return (IN_PLACE,) if runs and manifest.model.head_dim % _WIDTHS == 0 else ()


def write(path: Path, manifest: Manifest, two_way: bool) -> dict[CacheForm, str]:
    """Makes the traced language graph at `path` the portable one, and writes its other forms beside it.

    Args:
        path: the graph, as `assemble.save` writes it.
        manifest: of the bundle.
        two_way: whether tokens see later ones, too.

    Returns:
        The names of the other files, by form.
    """
    traced = onnx.load(path, load_external_data=False)
    onnx.save(_lowered(traced, _Portable(manifest)), path)
    values = _Traced(traced.graph)
    files: dict[CacheForm, str] = {}
    for form in forms_of(manifest):
        files[form] = f"{path.stem}.{form}{path.suffix}"
        onnx.save(_lowered(traced, _InPlace(manifest, values, two_way)), path.with_name(files[form]))
    return files


class _OtherError(Exception):
    """A value is computed in another way than the one asked for."""


class _Traced:
    """What a traced graph says of its values."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._makers = {name: node for node in graph.node for name in node.output}
        self._constants = {value.name: value for value in graph.initializer}
        self._shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}

    def inputs(self, value: str, kind: str, **attributes: Any) -> Sequence[str]:
        """What the operator of that kind reads that makes a value; `_OtherError` where it is another one."""
        node = self._makers.get(value)
        if node is None or (node.domain, node.op_type) != ("", kind):
            raise _OtherError
        found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if any(found.get(name) != wanted for name, wanted in attributes.items()):
            raise _OtherError
        return node.input

    def constant(self, value: str) -> list[int]:
        """Whole numbers of one axis; `_OtherError` where they are not constant."""
        if value not in self._constants:
            raise _OtherError
        return [int(number) for number in numpy_helper.to_array(self._constants[value])]

    def is_flat(self, value: str, width: int) -> bool:
        """Whether a value is of shape [B, S, width]."""
        shape = self._shapes.get(value, ())
        return len(shape) == 3 and shape[2].dim_value == width


class _Lowering:
    """What becomes of each layer's attention. Shared values are computed where the first node needs them.

    Attributes:
        graph: what is made.
        renamed: what later nodes read instead of a traced node's outputs.
    """

    def __init__(self, manifest: Manifest) -> None:
        info = manifest.model
        self.heads, self.kv_heads, self.width = info.heads, info.kv_heads, info.head_dim
        self.half = manifest.precision.compute != "fp32"
        self.graph = onnx.GraphProto()
        self.renamed: dict[str, str] = {}
        self._made: set[str] = set()

    def attention(self, node: onnx.NodeProto, scale: float) -> None:
        """Adds what stands in the place of a node."""
        raise NotImplementedError

    def other(self, node: onnx.NodeProto) -> None:
        """Adds a node that is no attention, in its own place."""
        kept = self.graph.node.add()
        kept.CopyFrom(node)
        kept.input[:] = [self.renamed.get(name, name) for name in node.input]

    def finish(self, model: onnx.ModelProto) -> None:
        """Changes what is not in nodes."""

    def constant(self, name: str, value: Any, dtype: Any = np.int64) -> str:
        name = f"caches.{name}"
        if name not in self._made:
            self._made.add(name)
            self.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=dtype), name))
        return name

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """A node with one output, unless that is there already."""
        if output not in self._made:
            self._made.add(output)
            self.graph.node.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def size(self, value: str, axis: int) -> str:
        """int64 [1], the length of an axis."""
        return self.add("Shape", [value], f"{value}.size.{axis}", start=axis, end=axis + 1)


class _Portable(_Lowering):
    """Standard operators: present is past and new, side by side."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self._scalar = {"fp32": np.float32, "fp16": np.float16}.get(manifest.precision.compute)
        self._element = {"fp32": 1, "fp16": 10, "bf16": 16}[manifest.precision.compute]

    def attention(self, node: onnx.NodeProto, scale: float) -> None:
        query, key, value, past_key, past_value, mask = node.input
        mixed, keys, values = node.output
        grouped = self.heads != self.kv_heads
        self.add("Concat", [past_key, key], keys, axis=2)
        self.add("Concat", [past_value, value], values, axis=2)
        paid = self.add("Mul", [query, self._scale(scale)], f"{mixed}.scaled")
        # Heads that share a key head are folded into its rows, so that keys are never repeated.
        fold = self.constant("fold", [0, self.kv_heads, -1, self.width])
        if grouped:
            paid = self.add("Reshape", [paid, fold], f"{mixed}.folded")
        turned = self.add("Transpose", [keys], f"{mixed}.keys", perm=[0, 1, 3, 2])
        paid = self.add("MatMul", [paid, turned], f"{mixed}.scores")
        if grouped:
            parts = [self.constant("heads", [0, self.heads]), self.size(mask, 2), self.constant("rest", [-1])]
            shape = self.add("Concat", parts, f"{mask}.by_head", axis=0)
            paid = self.add("Reshape", [paid, shape], f"{mixed}.by_head")
        if self.half:
            paid = self.add("Cast", [paid], f"{mixed}.wide", to=onnx.TensorProto.FLOAT)
        paid = self.add("Add", [paid, mask], f"{mixed}.masked")
        paid = self.add("Softmax", [paid], f"{mixed}.paid", axis=-1)
        if self.half:
            paid = self.add("Cast", [paid], f"{mixed}.narrow", to=self._element)
        if grouped:
            parts = [self.constant("kv_heads", [0, self.kv_heads, -1]), self.size(mask, 3)]
            shape = self.add("Concat", parts, f"{mask}.by_key_head", axis=0)
            paid = self.add("Reshape", [paid, shape], f"{mixed}.by_key_head")
        found = self.add("MatMul", [paid, values], f"{mixed}.mixed")
        if grouped:
            unfold = self.constant("unfold", [0, self.heads, -1, self.width])
            found = self.add("Reshape", [found, unfold], f"{mixed}.unfolded")
        self.add("Transpose", [found], mixed, perm=[0, 2, 1, 3])

    def _scale(self, scale: float) -> str:
        if self._scalar is not None:
            return self.constant(f"scale.{scale:.9g}", scale, self._scalar)
        name = self.constant(f"scale.{scale:.9g}.wide", scale, np.float32)
        return self.add("Cast", [name], f"caches.scale.{scale:.9g}", to=self._element)


class _InPlace(_Lowering):
    """com.microsoft's GroupQueryAttention, whose present is past's own memory.

    All rows of a batch count as equally long, left padding included; what a row sees is said by the mask
    alone.
    """

    def __init__(self, manifest: Manifest, traced: _Traced, two_way: bool) -> None:
        super().__init__(manifest)
        self._traced = traced
        self._two_way = two_way
        self._groups = manifest.cache_groups
        self._flat_forms: dict[str, str] = {}

    def attention(self, node: onnx.NodeProto, scale: float) -> None:
        query, key, value, past_key, past_value, mask = node.input
        mixed = node.output[0]
        flat = [
            self._rotated(query, self.heads),
            self._rotated(key, self.kv_heads),
            self._flat(value, self.kv_heads),
        ]
        keys, values = (present(kind, layer_of(past_key)) for kind in CACHE_KINDS)
        # The kernels of older releases know no `causal`: where the mask asks for no more, it is left out.
        both_ways: dict[str, Any] = {"causal": 0} if self._two_way else {}
        self.graph.node.append(
            helper.make_node(
                "GroupQueryAttention",
                [*flat, past_key, past_value, *self._lengths(mask), "", "", "", self._bias(mask)],
                [f"{mixed}.flat", keys, values],
                name=f"{mixed}.attention",
                domain="com.microsoft",
                num_heads=self.heads,
                kv_num_heads=self.kv_heads,
                scale=scale,
                **both_ways,
            )
        )
        self._flat_forms[mixed] = f"{mixed}.flat"
        by_head = self.constant("unflat", [0, 0, self.heads, self.width])
        self.add("Reshape", [f"{mixed}.flat", by_head], mixed)
        # What a score is computed of: the keys alone, without the room behind them.
        self.renamed[node.output[1]] = f"{mixed}.keys"
        ends = [self.constant("zero", [0]), self.size(mask, 3), self.constant("two", [2])]
        self.add("Slice", [keys, *ends], f"{mixed}.keys")

    def _rotated(self, value: str, heads: int) -> str:
        """Queries or keys, [B, S, heads * width], rotated to their positions by one node."""
        try:
            source, cosine, sine = self._rotation(value)
        except _OtherError:
            return self._flat(value, heads)
        inputs = [self._flat(source, heads), self._rows(cosine), self._half(cosine), self._half(sine)]
        return self.add("RotaryEmbedding", inputs, f"{value}.flat", domain="com.microsoft")

    def _rotation(self, value: str) -> tuple[str, str, str]:
        """What `value` is a rotation of, and its cosines and sines [B, S, width].

        As transformers does it: x * cos + concat(-x[second half], x[first half]) * sin. For that to be a
        rotation, cosines and sines are the same in both halves.
        """
        inputs = self._traced.inputs
        plain, turned = inputs(value, "Add")
        source, cosine = inputs(plain, "Mul")
        halves, sine = inputs(turned, "Mul")
        negative, first = inputs(halves, "Concat")
        (second,) = inputs(negative, "Neg")
        half = self.width // 2
        for part, start, end in ((first, 0, half), (second, half, self.width)):
            whole, starts, ends, axes, *_ = inputs(part, "Slice")
            (found,), (until,), (axis,) = map(self._traced.constant, (starts, ends, axes))
            if whole != source or axis not in (3, -1) or (found, min(until, self.width)) != (start, end):
                raise _OtherError
        by_head = [inputs(angle, "Unsqueeze") for angle in (cosine, sine)]
        if any(self._traced.constant(axes) != [1] for _, axes in by_head):
            raise _OtherError
        return source, by_head[0][0], by_head[1][0]

    def _half(self, angles: str) -> str:
        """[B, S, width] as [B * S, width / 2]."""
        half = self.width // 2
        ends = [self.constant("zero", [0]), self.constant("half", [half]), self.constant("two", [2])]
        first = self.add("Slice", [angles, *ends], f"{angles}.half")
        return self.add("Reshape", [first, self.constant("rows", [-1, half])], f"{angles}.rows")

    def _rows(self, angles: str) -> str:
        """Which row of `_half` belongs to each token, int64 [B, S]."""
        shape = self.add("Shape", [angles], f"{angles}.tokens", start=0, end=2)
        count = self.add("ReduceProd", [shape], f"{angles}.count", keepdims=0)
        ends = [self.constant("first", 0), count, self.constant("step", 1)]
        return self.add("Reshape", [self.add("Range", ends, f"{angles}.range"), shape], f"{angles}.row")

    def _flat(self, value: str, heads: int) -> str:
        """[B, heads, S, width] as [B, S, heads * width], which most often is what it was made of."""
        by_token = [0, 2, 1, 3]
        try:
            (turned,) = self._traced.inputs(value, "Transpose", perm=by_token)
        except _OtherError:
            turned = self.add("Transpose", [value], f"{value}.turned", perm=by_token)
        with suppress(_OtherError):
            whole, _ = self._traced.inputs(turned, "Reshape")
            if self._traced.is_flat(whole, heads * self.width):
                return whole
        shape = self.constant(f"flat.{heads}", [0, 0, heads * self.width])
        return self.add("Reshape", [turned, shape], f"{turned}.flat")

    def _lengths(self, mask: str) -> tuple[str, str]:
        """All tokens but the last of every row, int32 [B], and all tokens, int32 []."""
        total = self.add("Cast", [self.size(mask, 3)], f"{mask}.total", to=onnx.TensorProto.INT32)
        last = self.add("Sub", [total, self.constant("one", [1], np.int32)], f"{mask}.last")
        rows = self.add("Expand", [last, self.size(mask, 0)], f"{mask}.last_of_rows")
        return rows, self.add("Squeeze", [total], f"{mask}.total_scalar")

    def _bias(self, mask: str) -> str:
        if not self.half:
            return mask
        clipped = self.add(
            "Max", [mask, self.constant("lowest", _LOWEST_HALF, np.float32)], f"{mask}.clipped"
        )
        return self.add("Cast", [clipped], f"{mask}.bias", to=onnx.TensorProto.FLOAT16)

    def other(self, node: onnx.NodeProto) -> None:
        if all(is_cache(name) and is_present(name) for name in node.output):
            # What a stage leaves of earlier layers' caches: whoever runs the graph cuts its buffers to that.
            return
        reshaped = self._flat_forms.get(node.input[0]) if node.op_type == "Reshape" else None
        if reshaped and self._traced.is_flat(node.output[0], self.heads * self.width):
            self.renamed[node.output[0]] = reshaped
            return
        super().other(node)
        kept = self.graph.node[-1]
        if kept.op_type == "Shape" and is_cache(kept.input[0]):
            # How much a buffer holds is not how much is filled: the mask says that.
            name, axes = kept.input[0], {part.name: part.i for part in kept.attribute}
            if (axes.get("start"), axes.get("end")) == (2, 3):
                kept.CopyFrom(helper.make_node("Shape", [self._past_mask(name)], kept.output, start=1, end=2))

    def _check_reader(self, node: onnx.NodeProto) -> None:
        """Nothing but its length is cut off a buffer before it is read."""
        if node.op_type == "Shape" or node.output[0] in self.renamed.values():
            return
        raise VerificationError(f"{node.name} reads a cache's whole buffer: this is a bug of the exporter")

    def _past_mask(self, cache: str) -> str:
        layer = layer_of(cache)
        groups = self._groups
        return past_mask(next(n for n, group in enumerate(groups) if group.first <= layer <= group.last))

    def finish(self, model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type != "GroupQueryAttention" and any(map(is_cache, node.input)):
                self._check_reader(node)
        _score_where_visual(model.graph)
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        for value in (*model.graph.input, *model.graph.output):
            if is_cache(value.name):
                axis = value.type.tensor_type.shape.dim[2]
                axis.dim_param = capacity_axis(group_of_axis(axis.dim_param))


def _score_where_visual(graph: onnx.GraphProto) -> None:
    """Scores are computed in runs that bring visual tokens: a decode step has nothing to select.

    What nothing but a stage's scores need, which reads all cached keys of its layer, becomes a branch.
    """
    stages = [node for node in graph.node if (node.domain, node.op_type) == (OP_DOMAIN, OP_NAME)]
    if not stages:
        return
    asked = [
        helper.make_node("Shape", [VISUAL_INDEX], ["scores.visual"], start=1, end=2),
        helper.make_node("Squeeze", ["scores.visual"], ["scores.count"]),
        helper.make_node("Cast", ["scores.count"], ["scores.wanted"], to=onnx.TensorProto.BOOL),
        helper.make_node("Shape", [INPUT_IDS], ["scores.shape"]),
    ]
    nodes, outputs = list(graph.node), {value.name for value in graph.output}
    for scores in (stage.input[1] for stage in stages):
        branch = _needed_by(nodes, scores, outputs)
        made = branch[-1]
        made.output[0] = f"{scores}.paid"
        none = helper.make_node("ConstantOfShape", ["scores.shape"], [f"{scores}.none"])
        then, otherwise = (
            helper.make_graph(part, name, [], [_scores_of_branch(part[-1].output[0])])
            for part, name in ((branch, "visual"), ([none], "text"))
        )
        choice = helper.make_node(
            "If", ["scores.wanted"], [scores], name=scores, then_branch=then, else_branch=otherwise
        )
        moved = {id(node) for node in branch[:-1]}
        nodes = [choice if node is made else node for node in nodes if id(node) not in moved]
    del graph.node[:]
    graph.node.extend([*asked, *nodes])


def _scores_of_branch(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["", ""])


def _needed_by(nodes: Sequence[onnx.NodeProto], value: str, outputs: Container[str]) -> list[onnx.NodeProto]:
    """The nodes that nothing but `value` needs, in their order; what makes it is the last one."""
    readers: dict[str, list[int]] = {}
    for node in nodes:
        for name in _read(node):
            readers.setdefault(name, []).append(id(node))
    found: dict[int, onnx.NodeProto] = {}
    for node in reversed(nodes):
        if value in node.output or (
            found
            and all(
                name not in outputs and all(one in found for one in readers.get(name, ()))
                for name in node.output
            )
        ):
            found[id(node)] = node
    return list(found.values())[::-1]


def _lowered(traced: onnx.ModelProto, lowering: _Lowering) -> onnx.ModelProto:
    """A copy of a traced graph with other nodes in the places of its attention."""
    for node in traced.graph.node:
        if (node.domain, node.op_type) == (OP_DOMAIN, NAME):
            lowering.attention(node, node.attribute[0].f)
        else:
            lowering.other(node)
    model = onnx.ModelProto()
    model.CopyFrom(traced)
    graph = model.graph
    del graph.node[:]
    graph.node.extend(_alive(lowering.graph.node, [value.name for value in graph.output]))
    graph.initializer.extend(lowering.graph.initializer)
    lowering.finish(model)
    made = {name for node in graph.node for name in node.output}
    read = {name for node in graph.node for name in _read(node)} | {value.name for value in graph.output}
    _keep(graph.value_info, lambda value: value.name in made)
    _keep(graph.initializer, lambda value: value.name in read)
    domains = {node.domain for nodes in (graph.node, *(f.node for f in model.functions)) for node in nodes}
    _keep(model.opset_import, lambda entry: entry.domain in domains | {""})
    return model


def _alive(nodes: Iterable[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that something reads, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(list(nodes)):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(_read(node))
    return kept[::-1]


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """What a node and the graphs within it read."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from _read(inner)


def _keep(entries: Any, wanted: Callable[[Any], bool]) -> None:
    """Removes all other entries of a repeated field."""
    kept = [entry for entry in entries if wanted(entry)]
    del entries[:]
    entries.extend(kept)
