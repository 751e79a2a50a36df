"""What an export is debiased by: as asked, or by what is known of the model."""

from __future__ import annotations

import os
from dataclasses import dataclass

from edgeprune.debias.curves import BiasCurve, load_preset, resolve_curve
from edgeprune.errors import InputError
from edgeprune.image_program import ImageProgram
from edgeprune.log import note
from edgeprune.manifest import ModelInfo
from edgeprune.plans import Debias, Ranking, method_by_name

# The sizes of the models that the published curves belong to, LLaVA-1.5-7B and -13B: of hidden states and
# MLP, layers, heads, heads of keys. A LLaVA on Llama-3-8B has the first one's width, depth and grid.
_PUBLISHED_FOR = {(4096, 11008, 32, 32, 32), (5120, 13824, 40, 40, 40)}
_PUBLISHED_IMAGE = (336, 336)
_PUBLISHED_GRID = (24, 24)


@dataclass(frozen=True)
class Debiasing:
    """What acts on the scores, and by which curve."""

    debias: tuple[Debias, ...]
    curve: BiasCurve | None


def check_wish(method: str, wanted: tuple[Debias, ...] | None, curve: str | os.PathLike[str] | None) -> None:
    """Refuses what contradicts itself, whatever the model; reads the curve.

    Raises:
        InputError: a curve that nothing would go by, or one that cannot be read.
    """
    if curve is not None:
        resolve_curve(curve)
    by_position = curve is not None or (wanted is not None and Debias.POSITION in wanted)
    if curve is not None and wanted is not None and Debias.POSITION not in wanted:
        raise InputError(
            f"the bias curve {os.fspath(curve)} was given, and `debias` leaves positions as they are: add "
            "position to it, or leave `curve` out"
        )
    if by_position and method_by_name(method).ranking is Ranking.RANDOM:
        raise InputError(
            f"the method {method} has no attention, and no bias by position: leave `curve` out, and position "
            "out of `debias`"
        )


def debiasing(
    method: str,
    wanted: tuple[Debias, ...] | None,
    curve: str | os.PathLike[str] | None,
    info: ModelInfo,
    program: ImageProgram,
) -> Debiasing:
    """What a method that prunes is debiased by in a model.

    The published curves are fitted to LLaVA-1.5 with 576 visual tokens an image (arXiv 2508.17807). In
    another model they can do harm, so there padding alone is debiased until a curve is measured.

    Args:
        method: its name.
        wanted: what was asked for; None for what suits the model.
        curve: a curve's file or preset; None for the published one.
        info, program: of the model.

    Raises:
        InputError: position was asked for, and no curve belongs to the model.
    """
    own = None if curve is None else resolve_curve(curve)
    published = method_by_name(method).preset
    if own is None and published is not None and _is_published_for(info, program):
        own = load_preset(published)
    if wanted is None:
        if own is None and method_by_name(method).ranking is not Ranking.RANDOM:
            note(
                "positions are not debiased, because no bias curve is fitted to this model: measure one with "
                "`edgeprune calibrate`, and export with it as `curve`"
            )
        wanted = tuple(Debias)
    elif Debias.POSITION in wanted and own is None:
        raise InputError(
            f"`debias` asks for position, and no bias curve of {method} is fitted to this model: measure one "
            "with `edgeprune calibrate` and give it as `curve`, name a preset there, or take "
            "`debias='padding'`"
        )
    elif Debias.PADDING in wanted and not program.pads:
        note("padding is not debiased, because this model's images are never padded")
    acts = {Debias.POSITION: own is not None, Debias.PADDING: program.pads}
    debias = tuple(one for one in wanted if acts[one])
    return Debiasing(debias, own if Debias.POSITION in debias else None)


def _is_published_for(info: ModelInfo, program: ImageProgram) -> bool:
    size = (info.hidden_size, info.intermediate_size, info.layers, info.heads, info.kv_heads)
    seen = (program.unit, program.grid)
    return (
        (info.family, info.text_model) == ("llava", "llama")
        and size in _PUBLISHED_FOR
        and seen == (_PUBLISHED_IMAGE, _PUBLISHED_GRID)
        and program.cut is None
    )
