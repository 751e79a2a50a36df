"""Back ends: what executes the graphs of a bundle. Each is one file beside this one, imported when used."""

from __future__ import annotations

from dataclasses import dataclass

NAMES = ("onnxruntime-cuda", "onnxruntime")
"""Every back end by name, the best first."""


@dataclass(frozen=True)
class Availability:
    """Whether a back end can run on this machine.

    Attributes:
        name: as `load` takes it.
        title: what it is, for a table.
        available: whether it can run here.
        reason: one sentence that says why not and what to do; None where it is available.
        extra: the extra of edgeprune that brings its packages.
        version: of its package, None where it is not installed.
    """

    name: str
    title: str
    available: bool
    reason: str | None
    extra: str
    version: str | None


def available() -> tuple[Availability, ...]:
    """Every back end, the best first, and whether it can run here. Loads their packages where installed."""
    raise NotImplementedError
