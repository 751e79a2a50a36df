"""Which weights are stored how: from what was asked for to a form for every parameter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.exporter.graph import TORCH_DTYPES
from edgeprune.exporter.placing import Form
from edgeprune.exporter.precision.blocks import BlockForm, block_of
from edgeprune.exporter.precision.stored import LayerForm
from edgeprune.manifest import DType, Precision, WeightKind
from edgeprune.plans import PruningPlan

BLOCK = 128
"""Values of an output that share a scale: what TensorRT documents for 4 bits, and 3 % of a weight."""
_BLOCKS: dict[WeightKind, int] = {"nvfp4": 16}  # where it is a part of the type

_WIDTH: dict[WeightKind, int] = {"fp32": 32, "fp16": 16, "bf16": 16}
_COARSEST: tuple[WeightKind, ...] = ("int4", "fp8", "int8")
_DECODER = re.compile(r"(?:language_model|text_model)\.(?:model\.)?layers\.(\d+)\.")
# Layers in front of the first selection decide what is kept, and as long as they are few, 8 bits cost little.
_FEW, _SHARE = 2, 1 / 8


def precision_of(
    asked: WeightKind | None, compute: DType, stored: DType, plan: PruningPlan, layers: int
) -> Precision:
    """What an export's weights become.

    Args:
        asked: the type of the weights; None for the type that is computed in.
        compute: the type that is computed in.
        stored: the type of most of the checkpoint.
        plan: of the export.
        layers: of the decoder.

    Raises:
        InputError: weights wider than what computes with them.
    """
    if asked is None or asked == compute:
        return Precision.plain(compute)
    if asked == "fp32" or asked == "fp16" or asked == "bf16":
        if _WIDTH[asked] > _WIDTH[compute]:
            raise InputError(
                f"weights in {asked} and computation in {compute} were asked for: expected weights that are "
                f"no wider; leave out `weights`, or compute in {asked}"
            )
        return Precision.plain(compute).model_copy(
            update={"weights": asked, "scoring": asked, "head": asked, "other": asked}
        )
    first = min((stage.layer for stage in plan.stages), default=0)
    coarse = asked in ("int4", "nvfp4")
    finer = coarse and 0 < first <= max(_FEW, int(layers * _SHARE))
    narrow: DType = stored if _WIDTH[stored] == 16 else "fp16"
    return Precision(
        compute=compute,
        cache=compute,
        weights=asked,
        scoring="int8" if finer else asked,
        head="int8" if coarse else asked,
        other=compute if _WIDTH[compute] == 16 else narrow,
        block=_BLOCKS.get(asked, BLOCK),
        method="nearest",
    )


def precision_of_checkpoint(
    asked: WeightKind | None,
    compute: DType,
    stored: DType,
    plan: PruningPlan,
    layers: Mapping[str, LayerForm],
) -> Precision:
    """What the weights of a quantised checkpoint become: what they are.

    Args:
        asked, compute, plan: as for `precision_of`.
        stored: the type of most weights that are not quantised.
        layers: the quantised ones, by name.

    Raises:
        InputError: weights of another type than the checkpoint's.
        UnsupportedModelError: no layer of the decoder is quantised.
    """
    first = min((stage.layer for stage in plan.stages), default=0)
    decoder, early, head = [], [], []
    for name, layer in layers.items():
        if name.startswith("lm_head."):
            head.append(layer.form.kind)
        elif (number := _DECODER.search(name)) is not None:
            decoder.append(layer)
            if int(number[1]) < first:
                early.append(layer.form.kind)
    if not decoder:
        raise UnsupportedModelError(
            "the checkpoint is quantised, and no layer of its decoder is: export the original model, from "
            "before quantisation"
        )
    weights = min((layer.form.kind for layer in decoder), key=_COARSEST.index)
    if asked is not None and asked != weights:
        raise InputError(
            f"weights in {asked} were asked for, and the checkpoint stores {weights}, which stay as they "
            "are: leave out `weights`, or export the original model, from before quantisation"
        )
    other = stored if _WIDTH[stored] < _WIDTH[compute] else compute
    return Precision(
        compute=compute,
        cache=compute,
        weights=weights,
        scoring=min(early, key=_COARSEST.index, default=other if first else weights),
        head=head[0] if head else other,
        other=other,
        block=max(layer.form.block for layer in decoder),
        method="checkpoint",
    )


def untie(text_model: Any, lm_head: nn.Module, precision: Precision) -> None:
    """Makes a head that is tied to the embedding a parameter of its own, if the two are stored otherwise."""
    embedding = text_model.get_input_embeddings().weight
    for one in lm_head.modules():
        if isinstance(one, nn.Linear) and one.weight is embedding and precision.head != precision.other:
            one.weight = nn.Parameter(torch.empty_like(embedding), requires_grad=False)


def forms_of(
    model: nn.Module, text_model: Any, lm_head: nn.Module, plan: PruningPlan, precision: Precision
) -> dict[str, Form]:
    """The form of every parameter of `model`, by name.

    Args:
        model: all of it.
        text_model, lm_head: its decoder and what makes logits, see `untie`.
        plan: of the export.
        precision: what was decided.
    """
    first = min((stage.layer for stage in plan.stages), default=0)
    kinds: dict[int, WeightKind] = {}
    own = precision.method == "checkpoint"  # has its own layers, and leaves the others as they are
    for number, part in enumerate(() if own else [*text_model.layers, lm_head]):
        kind = precision.scoring if number < first else precision.weights
        if part is lm_head:
            kind = precision.head
        kinds |= {id(one.weight): kind for one in part.modules() if isinstance(one, nn.Linear)}
    return {
        name: _form(kinds.get(id(parameter), precision.other), parameter, precision)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


def _form(kind: WeightKind, parameter: torch.Tensor, precision: Precision) -> Form:
    if parameter.dim() < 2:
        return TORCH_DTYPES[precision.compute]
    if kind == "fp32" or kind == "fp16" or kind == "bf16":
        return TORCH_DTYPES[kind]
    assert precision.block is not None
    block = block_of(parameter.shape[1], precision.block)
    return TORCH_DTYPES[precision.other] if block is None else BlockForm(kind, block)
