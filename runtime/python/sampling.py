"""Choosing the next token from logits."""

from __future__ import annotations

import math
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import InputError


class Sampler:
    """Chooses the tokens of one prompt, one by one.

    Every prompt has a sampler of its own, with its own source of randomness from which one number is drawn
    per token. So what is drawn depends on the seed and on the prompt's logits, never on the batch.

    Args:
        temperature: 0 takes the likeliest token, of equal ones the lowest id. Above 0 logits are divided by
            it, and a token is drawn.
        top_p: draw only among the likeliest tokens that together reach this probability.
        seed: None draws anew each time.

    Raises:
        InputError: temperature is negative or not finite; top_p is not above 0 and at most 1; the seed is
            not a whole number of at least 0.
    """

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None) -> None:
        if not _is_number(temperature) or not math.isfinite(temperature) or temperature < 0:
            raise InputError(
                f"the temperature is {temperature!r}: expected a number of at least 0; 0 takes the likeliest "
                "token each time"
            )
        if not _is_number(top_p) or not 0 < top_p <= 1:
            raise InputError(
                f"top_p is {top_p!r}: expected a number above 0 and at most 1; 1 draws among all tokens"
            )
        whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
        if seed is not None and not (whole and seed >= 0):
            raise InputError(f"the seed is {seed!r}: expected a whole number of at least 0")
        self.temperature = temperature
        self.top_p = top_p
        self._rng = np.random.default_rng(seed)

    def pick(self, logits: NDArray[np.float32]) -> int:
        """The next token's id, from float32 [vocab]."""
        if self.temperature == 0:
            return int(np.argmax(logits))
        # Float64 and the largest logit taken off: a tiny temperature must not overflow.
        scaled = (logits.astype(np.float64) - np.max(logits)) / self.temperature
        order = np.argsort(-scaled, kind="stable")
        weights = np.exp(scaled[order])
        reached = np.cumsum(weights / weights.sum())
        # The fewest tokens that reach top_p; the sum of all may fall short of 1 by rounding.
        count = min(int(np.searchsorted(reached, self.top_p)) + 1, len(reached))
        drawn = self._rng.random() * reached[count - 1]
        return int(order[min(int(np.searchsorted(reached[:count], drawn, side="right")), count - 1)])


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
