"""What pruning gains here: a bundle measured unpruned, pruned without debias, and pruned.

The three variants have the same weights, made from the bundle's own graph.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgeprune.progress import Progress
from edgeprune.runtime.images import Picture

DEFAULT_PROMPT = "What is in the picture?"


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of several measurements, in seconds."""

    median: float
    least: float
    greatest: float


@dataclass(frozen=True)
class VariantResult:
    """What was measured of one variant.

    Attributes:
        name: "unpruned", "pruned without debias" or "pruned".
        kept: visual tokens left after the last stage.
        padded_kept: how many of those are padding.
        time_to_first_token: preprocessing, vision and prefill together, and choosing the token.
        vision, prefill: their parts of it.
        time_per_output_token: of one decode step.
        cache_bytes: keys and values at the end.
        peak_memory_bytes: of a process of its own; see `BenchReport.peak_memory_metric`.
    """

    name: str
    kept: int
    padded_kept: int
    time_to_first_token: Spread
    vision: Spread
    prefill: Spread
    time_per_output_token: Spread
    cache_bytes: int
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class BenchReport:
    """What `edgeprune bench` prints.

    Attributes:
        backend: the back end that ran.
        threads: CPU threads, None where the back end chose.
        runs: measured runs of each variant, after `warmup` ones.
        prompt_tokens: S, of them `visual_tokens` are visual.
        new_tokens: tokens decoded in each run, end-of-sequence tokens ignored.
        interleaved: whether the variants took turns run by run, so that a drift of the machine hits all
            alike; not where they do not fit into memory together.
        peak_memory_metric: what the peak memory is, in words.
        variants: the measured variants, unpruned first.
        prefill_speed_up: median prefill time unpruned over pruned; None where the bundle does not prune.
        prefill_speed_up_bound: what the count of FLOPs allows (edgeprune.bound), likewise.
    """

    backend: str
    threads: int | None
    runs: int
    warmup: int
    prompt_tokens: int
    visual_tokens: int
    new_tokens: int
    interleaved: bool
    peak_memory_metric: str
    variants: tuple[VariantResult, ...]
    prefill_speed_up: float | None
    prefill_speed_up_bound: float | None

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name, ready for JSON."""
        return asdict(self)


def run(
    bundle: str | os.PathLike[str],
    *,
    prompt: str = DEFAULT_PROMPT,
    images: Sequence[Picture] | None = None,
    runs: int = 5,
    warmup: int = 1,
    max_new_tokens: int = 16,
    backend: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Measures a bundle.

    Args:
        bundle: the folder that `edgeprune export` wrote; it is only read.
        prompt: the question.
        images: its pictures; None draws one.
        runs: measured runs of each variant.
        warmup: runs before those, not counted.
        max_new_tokens: tokens to decode in each run, at least 2.
        backend: as for `load`; one that executes the bundle's ONNX files.
        threads: CPU threads, None for the back end's own choice.
        progress: told the steps.

    Raises:
        MissingDependencyError: onnx, which makes the variants, is not installed.
        InputError, BundleError, BackendError, PruningError: as `load` and `Model.generate`.
    """
    raise NotImplementedError
