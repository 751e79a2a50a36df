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
    goes on behind the largest number.
    """

    axes: ClassVar[int] = 3

    kind: Literal["grid"] = "grid"


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
        return _grid_positions(is_visual, layout)
    following = rule.start + len(is_visual)
    return Positions(np.arange(rule.start, following, dtype=np.int64), following)


def _grid_positions(is_visual: NDArray[np.bool_], layout: PromptLayout) -> Positions:
    ids = np.empty((3, len(is_visual)), dtype=np.int64)
    blocks = iter([block for image in layout.images for block in image.blocks])
    place, position = 0, 0
    while place < len(is_visual):
        if not is_visual[place]:
            ids[:, place] = position
            place, position = place + 1, position + 1
            continue
        block = next(blocks)
        rows, columns = np.divmod(np.arange(block.tokens), block.grid[1])
        ids[:, place : place + block.tokens] = position + np.stack([np.zeros_like(rows), rows, columns])
        place, position = place + block.tokens, position + max(block.grid)
    return Positions(ids, position)
