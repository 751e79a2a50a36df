"""A reply while it is generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

FinishReason = Literal["stop", "length", "stop_string"]

Picker: TypeAlias = "Callable[[NDArray[np.float32]], int]"
"""Chooses the next token of one prompt from its logits, float32 [vocab]; see `sampling.Sampler.pick`."""

Listener: TypeAlias = "Callable[[int, int], bool]"
"""Is told (number of the prompt, token id) as tokens come; True ends the prompt's reply."""


@dataclass(eq=False)
class Growing:
    """The tokens of a reply so far, and when they came.

    Attributes:
        number: of the prompt.
        picker: chooses its tokens.
        limit: the most tokens it may have.
        first, last: when its first and its latest token were chosen, by `perf_counter`.
        cache_bytes: keys and values of the prompt at its latest token.
    """

    number: int
    picker: Picker
    limit: int
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    first: float = 0.0
    last: float = 0.0
    cache_bytes: int = 0

    @property
    def reason(self) -> FinishReason:
        if self.finish_reason is None:
            raise AssertionError("the reply has not ended")
        return self.finish_reason

    def take(
        self,
        logits: NDArray[np.float32],
        ends: Sequence[int],
        listener: Listener | None,
        cache_bytes: int,
    ) -> None:
        token = self.picker(logits)
        self.last = perf_counter()
        if not self.token_ids:
            self.first = self.last
        self.token_ids.append(token)
        self.cache_bytes = cache_bytes
        heard_enough = listener is not None and listener(self.number, token)
        if token in ends:
            self.finish_reason = "stop"
        elif heard_enough:
            self.finish_reason = "stop_string"
        elif len(self.token_ids) >= self.limit:
            self.finish_reason = "length"
