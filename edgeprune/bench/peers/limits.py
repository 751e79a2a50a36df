"""What this machine allows: how fast it multiplies matrices and reads memory, and what follows for a model.

A prefill computes, a decode step reads: neither can be faster than its products at the rate of a large matrix
product, nor than reading every weight and every cache once. Both rates are measured by numpy, in float32; a
kernel may be a little faster than numpy's, and one that multiplies integers much.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from time import perf_counter

import numpy as np

from edgeprune.fields import Part
from edgeprune.manifest import ModelInfo
from edgeprune.plans import PruningPlan
from edgeprune.runtime.child import take_stdout

_TRIES = 5
_SIZE = 2048  # of the matrices of the product
_ROWS, _COLUMNS = 1 << 15, 1 << 12  # of the matrix that is read, 512 MiB: more than caches hold


class Rates(Part):
    """FLOP in a second, a multiply-add counting as two, and bytes read in a second."""

    flops: float
    bytes: float


def measure() -> Rates:
    """Of as many threads as numpy has: the fastest of several tries."""
    square = np.ones((_SIZE, _SIZE), dtype=np.float32)
    matrix = np.ones((_ROWS, _COLUMNS), dtype=np.float32)
    row, flat = np.ones(_COLUMNS, dtype=np.float32), matrix.ravel()
    product = _least(lambda: square @ square)
    # The sum of squares reads once what it multiplies; whichever is faster here.
    reading = min(_least(lambda: matrix @ row), _least(lambda: flat @ flat))
    return Rates(flops=2 * _SIZE**3 / product, bytes=matrix.nbytes / reading)


def _least(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_TRIES):
        started = perf_counter()
        work()
        times.append(perf_counter() - started)
    return min(times)


def read_weights(info: ModelInfo) -> int:
    """How many weights a decode step reads: the matrices of all layers, and the one that makes logits."""
    query, key = info.heads * info.head_dim, info.kv_heads * info.head_dim
    layer = 2 * info.hidden_size * (query + key) + 3 * info.hidden_size * info.intermediate_size
    return info.layers * layer + info.hidden_size * info.vocab_size


def cache_values(info: ModelInfo, plan: PruningPlan, tokens: int, visual: int) -> int:
    """How many keys and values a decode step reads behind a prompt of so many tokens.

    Args:
        info: of the model.
        plan: what is pruned.
        tokens: of the prompt, of them
        visual: visual ones.
    """
    lengths = plan.cache_lengths(tokens, visual)
    layers = [last - first + 1 for first, last in plan.layers_of_groups(info.layers)]
    of_token = 2 * info.kv_heads * info.head_dim
    return of_token * sum(count * length for count, length in zip(layers, lengths, strict=True))


def step_seconds(rates: Rates, weights: int, bits: float, cached: int) -> float:
    """The least time of a decode step.

    Args:
        rates: of the machine.
        weights: that it reads, in
        bits: each.
        cached: keys and values, in float32.
    """
    return (weights * bits / 8 + 4 * cached) / rates.bytes


if __name__ == "__main__":
    answers = take_stdout()
    json.dump(measure().model_dump(), answers)
    answers.close()
    sys.exit(0)
