"""Progress of long steps: the command line draws bars, a library call stays silent."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Listens to a sequence of named steps."""

    def step(self, name: str, total: int | None = None) -> None:
        """A new step begins; `total` is its size in the units of `advance`, or None where it is unknown."""

    def advance(self, amount: int) -> None:
        """A part of the current step is done."""


class Silent:
    """Ignores everything."""

    def step(self, name: str, total: int | None = None) -> None:
        pass

    def advance(self, amount: int) -> None:
        pass
