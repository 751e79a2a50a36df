"""The interface of a bundle's graphs: inputs and outputs by name, dtype and shape, as model and plan demand.

The exporter makes graphs of exactly this interface, and a manifest that names another one is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from edgeprune.fields import Line, Part

if TYPE_CHECKING:
    from edgeprune.manifest import DType, ModelInfo
    from edgeprune.plans import PruningPlan

ElementType = Literal["float32", "float16", "bfloat16", "int64"]

_ELEMENTS: dict[DType, ElementType] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

Axis = Annotated[int, Field(strict=True, ge=0, le=1 << 24)] | Annotated[str, Field(max_length=100)]


class TensorSpec(Part):
    """One input or output of a graph. A string in `shape` names a dynamic axis; "" is one without a name."""

    name: Line
    dtype: ElementType
    shape: Annotated[tuple[Axis, ...], Field(max_length=16)]


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs of a graph, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def _spec(name: str, dtype: ElementType, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def language_interface(info: ModelInfo, plan: PruningPlan) -> Interface:
    """Names, dtypes and shapes of the language graph. Group g's past length is the axis `past_g`."""
    dtype = _ELEMENTS[info.dtype]
    groups = len(plan.stages) + 1
    heads = (info.kv_heads, info.head_dim)
    inputs = [
        _spec("input_ids", "int64", "batch", "sequence"),
        _spec("visual_embeds", dtype, "batch", "visual", info.hidden_size),
        _spec("visual_index", "int64", "batch", "visual"),
        _spec("visual_valid", "float32", "batch", "visual"),
        _spec("position_ids", "int64", "batch", "sequence"),
        _spec("attention_mask", "int64", "batch", "sequence"),
        *(_spec(f"past_mask.{g}", "int64", "batch", f"past_{g}") for g in range(groups)),
    ]
    outputs = [_spec("logits", "float32", "batch", info.vocab_size)]
    outputs += [_spec(f"kept_index.{s}", "int64", "batch", f"kept_{s + 1}") for s in range(len(plan.stages))]
    outputs += [
        _spec(f"score.{s}", "float32", "batch", f"kept_{s}" if s else "sequence")
        for s in range(len(plan.stages))
    ]
    outputs += [_spec(f"present_mask.{g}", "int64", "batch", f"present_{g}") for g in range(groups)]
    for kind in ("key", "value"):
        for layer in range(info.layers):
            g = plan.group_of_layer(layer)
            inputs.append(_spec(f"past_{kind}.{layer}", dtype, "batch", heads[0], f"past_{g}", heads[1]))
            outputs.append(
                _spec(f"present_{kind}.{layer}", dtype, "batch", heads[0], f"present_{g}", heads[1])
            )
    return Interface(tuple(inputs), tuple(outputs))


def vision_interface(
    info: ModelInfo, plan: PruningPlan, image_size: tuple[int, int], places: int
) -> Interface:
    """Names, dtypes and shapes of the vision graph; where the tower merges, also places and scores."""
    dtype, tokens = _ELEMENTS[info.dtype], plan.tokens_per_image(places)
    outputs = [_spec("visual_embeds", dtype, "images", tokens, info.hidden_size)]
    if plan.tower:
        outputs.append(_spec("visual_place", "int64", "images", tokens))
    for number, stage in enumerate(plan.tower):
        outputs.append(_spec(f"tower_score.{number}", "float32", "images", places))
        places = stage.kept
    return Interface((_spec("pixel_values", dtype, "images", 3, *image_size),), tuple(outputs))
