"""What is asked of everything that is measured beside a bundle, and what it took."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeprune.fields import Part
from edgeprune.plans import PruningPlan

Weights = Literal["fp32", "int4"]
"""The kinds of weights that peers are measured with."""


class Job(Part):
    """What a worker measures.

    Attributes:
        peer: "edgeprune", or one of `edgeprune.bench.peers.run.PEERS`.
        source: the folder or file that it loads.
        bundle: the folder whose prompt is measured.
        plan: of the bundle, for edgeprune alone.
        threads: CPU threads.
        prompt, images: of the bundle; images are files of numpy arrays, uint8 [H, W, 3].
        tokens: of the prompt, visual ones included.
        contexts: lengths of caches at which decode steps are measured.
        steps: how many at each.
    """

    peer: str
    source: Path
    bundle: Path
    plan: PruningPlan
    threads: int
    prompt: str
    images: tuple[Path, ...]
    tokens: int
    contexts: tuple[int, ...]
    steps: int


class Cost(Part):
    """Seconds of the wall clock, and of all the process's threads."""

    wall: float
    cpu: float

    def over(self, steps: int) -> Cost:
        """Of one of so many steps."""
        return Cost(wall=self.wall / steps, cpu=self.cpu / steps)


@dataclass
class Clock:
    """What a block took, once it has ended."""

    cost: Cost | None = None

    @property
    def found(self) -> Cost:
        if self.cost is None:
            raise AssertionError("the block has not ended")
        return self.cost


@contextmanager
def timed() -> Iterator[Clock]:
    """Measures a block."""
    clock, wall, cpu = Clock(), perf_counter(), process_time()
    yield clock
    clock.cost = Cost(wall=perf_counter() - wall, cpu=process_time() - cpu)


class Run(Part):
    """One run of a peer.

    Attributes:
        first_token: of the prompt with its images, vision included; None where the peer reads text alone.
        prefill: of the language part on as many tokens.
        decode: of one step, by context.
        load: of loading; the same in all runs.
        peak_memory_bytes, peak_memory_metric: of the process, until its first prompt was read.
    """

    first_token: Cost | None
    prefill: Cost
    decode: dict[int, Cost]
    load: Cost
    peak_memory_bytes: int | None
    peak_memory_metric: str


class Peer(Protocol):
    """A program with the model loaded."""

    def first_token(self) -> Cost | None:
        """See `Run.first_token`."""
        ...

    def prefill(self) -> Cost:
        """See `Run.prefill`. Nothing of an earlier prompt is used."""
        ...

    def decode(self, context: int) -> Cost:
        """One step, on the average of as many as the job says, behind `context` tokens."""
        ...


def text_tokens(count: int, vocabulary: int, avoided: int) -> NDArray[np.int64]:
    """Token ids of a text, int64 [count]: the vocabulary in turn, but for the first ones, which are special
    by custom, and one.

    Args:
        count: how many.
        vocabulary: its size.
        avoided: the id of the image token.
    """
    special = min(10, vocabulary // 2)
    usable = np.setdiff1d(np.arange(special, vocabulary), [avoided])
    found: NDArray[np.int64] = usable[np.arange(count) * 7919 % len(usable)]
    return found


def in_words(value: Any) -> str:
    """A value of a config for a message."""
    return "nothing" if value is None else repr(value)
