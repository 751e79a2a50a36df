"""Position rules: which position number each token of a prompt has, and at which one the reply goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgeprune.fields import Part


class SequentialPositions(Part):
    """Tokens count one by one, visual tokens like all others.

    Attributes:
        start: the first token's position.
    """

    kind: Literal["sequential"] = "sequential"
    start: Annotated[int, Field(strict=True, ge=0, le=1)] = 0


PositionRule: TypeAlias = SequentialPositions
"""A rule, told apart by its `kind`."""


@dataclass(frozen=True, eq=False)
class Positions:
    """The positions of one prompt.

    Attributes:
        ids: int64 [S].
        following: the position of the token behind the prompt.
    """

    ids: NDArray[np.int64]
    following: int


def prompt_positions(rule: PositionRule, length: int) -> Positions:
    """The positions of a prompt of `length` tokens, visual ones included."""
    following = rule.start + length
    return Positions(np.arange(rule.start, following, dtype=np.int64), following)
