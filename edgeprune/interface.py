"""What crosses between a bundle's graphs and whoever runs them: names, dtypes, shapes, and what is fed.

The exporter makes graphs of exactly this interface, a manifest that names another one is refused, and the
runtime, the comparisons and the engines take every name from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgeprune.fields import Line, Part

if TYPE_CHECKING:
    from edgeprune.image_program import ImageProgram
    from edgeprune.manifest import DType, ModelInfo, Precision
    from edgeprune.plans import PruningPlan
    from edgeprune.positions import PositionRule
    from edgeprune.video_program import VideoProgram

# The operator of a pruning stage, one node each.
OP_DOMAIN, OP_NAME, OP_VERSION = "com.edgeprune", "DebiasedTokenPrune", 2

# The name of the language graph's metadata that holds its plan, as JSON.
PLAN_METADATA = "edgeprune.plan"

# The vision graph.
PIXEL_VALUES, VISUAL_EMBEDS, VISUAL_PLACE = "pixel_values", "visual_embeds", "visual_place"
# Beside PIXEL_VALUES, where the frames of videos have a tower of their own.
FRAME_VALUES = "frame_values"
# Of these two, the values are of the model's dtype.
VALUES = (PIXEL_VALUES, FRAME_VALUES)
# Beside PIXEL_VALUES, where it reads patches; see `edgeprune.vision_inputs`.
PATCH_POSITION, BLOCK_SLOTS, BLOCK_PLACE = "patch_position", "block_slots", "block_place"
WINDOW_SLOTS, WINDOW_PLACE, TOKEN_ROW = "window_slots", "window_place", "token_row"
TABLE_INDEX, TABLE_WEIGHT = "table_index", "table_weight"
PACK_INDEX, PACK_WEIGHT = "pack_index", "pack_weight"
# The language graph, with VISUAL_EMBEDS.
INPUT_IDS, VISUAL_INDEX = "input_ids", "visual_index"
VISUAL_VALID, CURVE_PLACE = "visual_valid", "curve_place"
POSITION_IDS, ATTENTION_MASK, LOGITS = "position_ids", "attention_mask", "logits"
CACHE_KINDS = ("key", "value")
_PAST, _PRESENT, _KEPT_SLOTS, _DEEPSTACK = "past_", "present_", "kept_slots.", "deepstack."
_CAPACITY = "capacity_"
_TOWER_SCORE = "tower_score."

CacheForm = Literal["in-place"]
"""What a language graph does with its caches, where it is not copying them in every run: "in-place" writes
what is new into buffers that have room for it.
"""
IN_PLACE: CacheForm = "in-place"


def tower_score(stage: int) -> str:
    """Output of the vision graph: what a tower's stage merges by, float32 [tiles, tokens before it]."""
    return f"{_TOWER_SCORE}{stage}"


def is_tower_score(name: str) -> bool:
    """Whether an output is one of `tower_score`."""
    return name.startswith(_TOWER_SCORE)


def kept_index(stage: int) -> str:
    """Output: the positions that a stage kept, int64 [B, S']."""
    return f"kept_index.{stage}"


def score(stage: int) -> str:
    """Output: the attention that a stage's scoring rows pay each position, float32 [B, S]."""
    return f"score.{stage}"


def deepstack(layer: int) -> str:
    """What is added to the visual tokens behind a language layer: output of the vision graph [V, D], input of
    the language graph [B, V, D].
    """
    return f"{_DEEPSTACK}{layer}"


def is_deepstack(name: str) -> bool:
    """Whether an input or output is one of `deepstack`."""
    return name.startswith(_DEEPSTACK)


def kept_slots(stage: int) -> str:
    """Input: its length K is how many visual tokens a stage keeps, int64 [1, K]; its values do not matter."""
    return f"{_KEPT_SLOTS}{stage}"


def is_kept_slots(name: str) -> bool:
    """Whether an input is a stage's `kept_slots`."""
    return name.startswith(_KEPT_SLOTS)


def kept_axis(stage: int) -> str:
    """The name of the axis K of a stage's `kept_slots`."""
    return f"kept_slots_{stage}"


def past(kind: str, layer: int) -> str:
    """Input: a layer's cache, `kind` being one of `CACHE_KINDS`, [B, kv heads, P of its group, head dim]."""
    return f"{_PAST}{kind}.{layer}"


def past_mask(group: int) -> str:
    """Input: which tokens of a cache group are real, int64 [B, P]."""
    return f"{_PAST}mask.{group}"


def past_axis(group: int) -> str:
    """The name of the axis P of a cache group."""
    return f"{_PAST}{group}"


def capacity_axis(group: int) -> str:
    """The name of the axis of a cache group that lies in buffers: for how many tokens these have room."""
    return f"{_CAPACITY}{group}"


def group_of_axis(axis: str) -> int:
    """The cache group that an axis of a cache belongs to."""
    return int(axis.rpartition("_")[2])


def present_of(name: str) -> str:
    """The output that carries on what an input carries in; see `is_past`."""
    return _PRESENT + name.removeprefix(_PAST)


def layer_of(name: str) -> int:
    """The layer that an input or output with keys or values belongs to."""
    return int(name.rpartition(".")[2])


def present(kind: str, layer: int) -> str:
    """Output: the cache with the new tokens, [B, kv heads, P + S', head dim]."""
    return f"{_PRESENT}{kind}.{layer}"


def present_mask(group: int) -> str:
    """Output: the mask with the new tokens, int64 [B, P + S']."""
    return f"{_PRESENT}mask.{group}"


def is_past(name: str) -> bool:
    """Whether an input carries what an earlier run gave out."""
    return name.startswith(_PAST)


def is_present(name: str) -> bool:
    """Whether an output is carried on to the next run."""
    return name.startswith(_PRESENT)


def is_cache(name: str) -> bool:
    """Whether an input or output holds keys or values."""
    return name.startswith(tuple(f"{time}{kind}." for time in (_PAST, _PRESENT) for kind in CACHE_KINDS))


ElementType = Literal["float32", "float16", "bfloat16", "int64"]

_ELEMENTS: dict[DType, ElementType] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

Axis = Annotated[int, Field(strict=True, ge=0, le=1 << 24)] | Annotated[str, Field(max_length=100)]


class TensorSpec(Part):
    """One input or output of a graph. A string in `shape` names a dynamic axis; "" is one without a name."""

    name: Line
    dtype: ElementType
    shape: Annotated[tuple[Axis, ...], Field(max_length=16)]


class Described(Protocol):
    """What has the inputs and outputs of a graph, in order."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs of a graph, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def _spec(name: str, dtype: ElementType, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def language_interface(
    info: ModelInfo, precision: Precision, plan: PruningPlan, positions: PositionRule
) -> Interface:
    """Names, dtypes and shapes of the language graph. Group g's past length is the axis `past_g`."""
    dtype, cache = _ELEMENTS[precision.compute], _ELEMENTS[precision.cache]
    groups = len(plan.stages) + 1
    heads = (info.kv_heads, info.head_dim)
    axes = (positions.axes,) if positions.axes > 1 else ()
    inputs = [
        _spec(INPUT_IDS, "int64", "batch", "sequence"),
        _spec(VISUAL_EMBEDS, dtype, "batch", "visual", info.hidden_size),
        _spec(VISUAL_INDEX, "int64", "batch", "visual"),
        _spec(VISUAL_VALID, "float32", "batch", "visual"),
        _spec(CURVE_PLACE, "int64", "batch", "visual"),
        _spec(POSITION_IDS, "int64", *axes, "batch", "sequence"),
        _spec(ATTENTION_MASK, "int64", "batch", "sequence"),
        *(_spec(deepstack(n), dtype, "batch", "visual", info.hidden_size) for n in range(info.deepstack)),
        *(_spec(kept_slots(s), "int64", 1, kept_axis(s)) for s in range(len(plan.stages))),
        *(_spec(past_mask(g), "int64", "batch", past_axis(g)) for g in range(groups)),
    ]
    stages = range(len(plan.stages))
    outputs = [_spec(LOGITS, "float32", "batch", info.vocab_size)]
    outputs += [_spec(kept_index(s), "int64", "batch", f"kept_{s + 1}") for s in stages]
    outputs += [_spec(score(s), "float32", "batch", f"kept_{s}" if s else "sequence") for s in stages]
    outputs += [_spec(present_mask(g), "int64", "batch", f"present_{g}") for g in range(groups)]
    for kind in CACHE_KINDS:
        for layer in range(info.layers):
            g = plan.group_of_layer(layer)
            inputs.append(_spec(past(kind, layer), cache, "batch", heads[0], past_axis(g), heads[1]))
            outputs.append(_spec(present(kind, layer), cache, "batch", heads[0], f"present_{g}", heads[1]))
    return Interface(tuple(inputs), tuple(outputs))


def in_buffers(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Inputs or outputs of a language graph, as those of a form whose caches lie in buffers: the axis of a
    group's tokens is its buffers' capacity.
    """
    return tuple(
        _spec(spec.name, spec.dtype, *spec.shape[:2], capacity_axis(group_of_axis(str(axis))), spec.shape[3])
        if is_cache(spec.name) and (axis := spec.shape[2])
        else spec
        for spec in specs
    )


def has_buffers(inputs: Iterable[TensorSpec]) -> bool:
    """Whether the caches among a language graph's inputs lie in buffers; see `in_buffers`."""
    return any(str(axis).startswith(_CAPACITY) for spec in inputs for axis in spec.shape)


def vision_interface(
    info: ModelInfo,
    precision: Precision,
    plan: PruningPlan,
    program: ImageProgram,
    video: VideoProgram | None = None,
) -> Interface:
    """Names, dtypes and shapes of the vision graph; see `edgeprune.vision_inputs` for what it reads beside
    `pixel_values`. Where the tower merges, it also gives places and scores.
    """
    dtype, places = _ELEMENTS[precision.compute], program.tokens_per_tile
    feed = program.feed
    if feed.kind == "tiles":
        inputs = [_spec(PIXEL_VALUES, dtype, "tiles", *program.row_shape)]
        if program.tokens.kind == "packed":
            resamples = program.tokens.most is not None
            inputs.append(_spec(PACK_INDEX, "int64", "visual", 4 if resamples else 1))
            if resamples:
                inputs.append(_spec(PACK_WEIGHT, "float32", "visual", 4))
        if video is not None and video.own_tower:
            inputs.append(_spec(FRAME_VALUES, dtype, "frames", *program.row_shape))
            inputs.append(_spec(TOKEN_ROW, "int64", "visual"))
    else:
        patches = program.row_shape[0]
        inputs = [
            _spec(PIXEL_VALUES, dtype, "visual", *program.row_shape),
            _spec(PATCH_POSITION, "int64", "visual", patches, 2),
            _spec(BLOCK_SLOTS, "int64", "blocks", "slots"),
            _spec(BLOCK_PLACE, "int64", "visual"),
        ]
        if feed.window is not None:
            inputs += [
                _spec(WINDOW_SLOTS, "int64", "windows", feed.window**2),
                _spec(WINDOW_PLACE, "int64", "visual"),
                _spec(TOKEN_ROW, "int64", "visual"),
            ]
        if feed.table is not None:
            inputs += [
                _spec(TABLE_INDEX, "int64", "visual", patches, 4),
                _spec(TABLE_WEIGHT, "float32", "visual", patches, 4),
            ]
    outputs = [_spec(VISUAL_EMBEDS, dtype, "visual", info.hidden_size)]
    outputs += [_spec(deepstack(n), dtype, "visual", info.hidden_size) for n in range(info.deepstack)]
    if plan.tower:
        outputs.append(_spec(VISUAL_PLACE, "int64", "tiles", plan.tokens_per_tile(places)))
    for number, stage in enumerate(plan.tower):
        outputs.append(_spec(tower_score(number), "float32", "tiles", places))
        places = stage.kept
    return Interface(tuple(inputs), tuple(outputs))


Cache = TypeVar("Cache")
_NUMPY: dict[ElementType, type[np.generic]] = {
    "int64": np.int64,
    "float16": np.float16,
    "float32": np.float32,
    # NumPy has none; back ends bring float32 to it.
    "bfloat16": np.float32,
}


def first_feeds(
    inputs: Iterable[TensorSpec],
    input_ids: NDArray[np.int64],
    attention_mask: NDArray[np.int64],
    position_ids: NDArray[np.int64],
    visual_index: NDArray[np.int64],
    visual_valid: NDArray[np.float32],
    curve_place: NDArray[np.int64],
    kept: Sequence[int],
    visual_embeds: Any,
    levels: Sequence[Any] = (),
) -> dict[str, Any]:
    """What the language graph is fed first: prompts, padded on the left to one length, and empty caches.

    Args:
        inputs: of the language graph.
        input_ids, attention_mask: int64 [B, S].
        position_ids: int64 [B, S], or [axes, B, S].
        visual_index: int64 [B, V].
        visual_valid: float32 [B, V], 0 where a token stands behind all others.
        curve_place: int64 [B, V], which entry of the bias curve each visual token reads; 0 is always 1.
        kept: K of every stage.
        visual_embeds: [B, V, D], an array or a back end's tensor.
        levels: of `deepstack`, the same.
    """
    return {
        INPUT_IDS: input_ids,
        VISUAL_EMBEDS: visual_embeds,
        VISUAL_INDEX: visual_index,
        VISUAL_VALID: visual_valid,
        CURVE_PLACE: curve_place,
        POSITION_IDS: position_ids,
        ATTENTION_MASK: attention_mask,
        **{deepstack(layer): level for layer, level in enumerate(levels)},
        **{kept_slots(stage): np.zeros((1, count), dtype=np.int64) for stage, count in enumerate(kept)},
        **{spec.name: _empty(spec, len(input_ids)) for spec in inputs if is_past(spec.name)},
    }


def next_feeds(
    inputs: Sequence[TensorSpec],
    tokens: NDArray[np.int64],
    positions: NDArray[np.int64],
    outputs: Mapping[str, Cache],
) -> dict[str, Any]:
    """What the language graph is fed next: one token a prompt, nothing visual, and the caches carried on.

    Args:
        inputs: of the language graph.
        tokens: int64 [B].
        positions: int64 [B], in the unpruned sequence, on every axis.
        outputs: of the run before; what is no cache is passed over.
    """
    axes = [
        axis for spec in inputs if spec.name == POSITION_IDS for axis in spec.shape if isinstance(axis, int)
    ]
    position_ids = np.tile(positions[:, None], (*axes, 1, 1))
    return text_feeds(inputs, tokens[:, None], position_ids, outputs)


def text_feeds(
    inputs: Sequence[TensorSpec],
    input_ids: NDArray[np.int64],
    position_ids: NDArray[np.int64],
    outputs: Mapping[str, Cache],
) -> dict[str, Any]:
    """As `next_feeds`, of several tokens in a row.

    Args:
        inputs: of the language graph.
        input_ids: int64 [B, S].
        position_ids: int64 [B, S], or [axes, B, S].
        outputs: of the run before.
    """
    names = (VISUAL_EMBEDS, VISUAL_INDEX, VISUAL_VALID, CURVE_PLACE)
    visual = [spec for spec in inputs if spec.name in names or is_deepstack(spec.name)]
    return {
        INPUT_IDS: input_ids,
        **{spec.name: _empty(spec, len(input_ids)) for spec in visual},
        POSITION_IDS: position_ids,
        ATTENTION_MASK: np.ones_like(input_ids),
        **{spec.name: _empty(spec, 1) for spec in inputs if is_kept_slots(spec.name)},
        **{_PAST + name.removeprefix(_PRESENT): value for name, value in outputs.items() if is_present(name)},
    }


def _empty(spec: TensorSpec, batch: int) -> NDArray[Any]:
    """A tensor whose open axes, other than the batch, are 0 long."""
    sizes = [axis if isinstance(axis, int) else batch if axis == "batch" else 0 for axis in spec.shape]
    return np.zeros(sizes, dtype=_NUMPY[spec.dtype])
