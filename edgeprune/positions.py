"""Position rules: which position number each token of a prompt has, and at which one the reply goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgeprune.fields import Part
from edgeprune.layout import PromptLayout


class SequentialPositions(Part):
    """Tokens count one by one, visual tokens like all others.

    Attributes:
        start: the first token's position.
    """

    axes: ClassVar[int] = 1

    kind: Literal["sequential"] = "sequential"
    start: Annotated[int, Field(strict=True, ge=0, le=1)] = 0


class GridPositions(Part):
    """A position is three numbers, (time, row, column), alike for text.

    An image's tokens begin where the text in front of them ends, and count rows and columns from there; text
    goes on behind the largest row or column. Blocks of a video without text between them begin at one place,
    and their time goes on.

    Attributes:
        per_second: how far time goes on in a second of video; null for 1 from block to block.
    """

    axes: ClassVar[int] = 3

    kind: Literal["grid"] = "grid"
    per_second: Annotated[float, Field(strict=True, ge=0, le=1e6)] | None = None


PositionRule: TypeAlias = Annotated[SequentialPositions | GridPositions, Field(discriminator="kind")]
"""A rule, told apart by its `kind`. Its `axes` says how many numbers a position has."""


@dataclass(frozen=True, eq=False)
class Positions:
    """The positions of one prompt.

    Attributes:
        ids: int64 [S], or [axes, S] where a position has several numbers.
        following: the position of the token behind the prompt, on every axis.
    """

    ids: NDArray[np.int64]
    following: int


def prompt_positions(rule: PositionRule, is_visual: NDArray[np.bool_], layout: PromptLayout) -> Positions:
    """The positions of a prompt's tokens.

    Args:
        rule: of the model.
        is_visual: bool [S], which tokens are visual ones.
        layout: of the visual tokens.
    """
    if isinstance(rule, GridPositions):
        return _grid_positions(rule, is_visual, layout)
    following = rule.start + len(is_visual)
    return Positions(np.arange(rule.start, following, dtype=np.int64), following)


def _grid_positions(rule: GridPositions, is_visual: NDArray[np.bool_], layout: PromptLayout) -> Positions:
    ids = np.empty((3, len(is_visual)), dtype=np.int64)
    runs = iter([(run, image.interval) for image in layout.images for run in image.runs])
    place, position = 0, 0
    while place < len(is_visual):
        if not is_visual[place]:
            ids[:, place] = position
            place, position = place + 1, position + 1
            continue
        blocks, interval = next(runs)
        # In float32, as the published code has it.
        scale = (
            np.float32(1) if rule.per_second is None else np.float32(interval) * np.float32(rule.per_second)
        )
        for number, block in enumerate(blocks):
            time = int(np.float32(number) * scale)
            rows, columns = np.divmod(np.arange(block.tokens), block.grid[1])
            own = np.stack([np.full_like(rows, time), rows, columns])
            ids[:, place : place + block.tokens] = position + own
            place += block.tokens
        position += max(blocks[0].grid)
    # A video's time may reach beyond its rows, columns and the text behind it.
    return Positions(ids, max(position, int(ids.max(initial=-1)) + 1))
