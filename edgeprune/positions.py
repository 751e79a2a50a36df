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


PositionRule: TypeAlias = SequentialPositions
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
    following = rule.start + len(is_visual)
    return Positions(np.arange(rule.start, following, dtype=np.int64), following)
