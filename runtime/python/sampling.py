"""Choosing the next token from logits, by the rules and in the order of Hugging Face's `generate`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from edgeprune.checks import check_count
from edgeprune.errors import InputError
from edgeprune.log import note
from edgeprune.manifest import OF_DRAWING, Generation

Scores = NDArray[np.float32]


class SamplingOptions(TypedDict, total=False):
    """What a caller may say of choosing tokens, named as in transformers; None, or left out, is the bundle's.

    Attributes:
        do_sample: draw (True) or take the likeliest token (False). Without it, `temperature`, `top_k`,
            `top_p` or `min_p` turn drawing on, and a temperature of 0 turns it off.
        temperature: logits are divided by it before drawing.
        top_k: draw among so many likeliest tokens; 0 for all.
        top_p: draw among the likeliest tokens whose probabilities reach this sum, above 0 and at most 1.
        min_p: draw among tokens of at least this share of the likeliest one's probability, 0 to 1.
        repetition_penalty: above 1 makes tokens of prompt and reply less likely, drawn or not; 1 does not.
        no_repeat_ngram_size: no sequence of so many tokens comes twice, the prompt included; 0 for no limit.
    """

    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None


def chosen_by(defaults: Generation, given: SamplingOptions) -> Generation:
    """The bundle's way to choose tokens with what a caller says instead.

    Raises:
        InputError: an option is out of range; or unknown.
    """
    said: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for name, value in said.items():
        if name not in _EXPECTED:
            raise InputError(f"`{name}` is no option: expected one of {', '.join(_EXPECTED)}")
        holds, expected = _EXPECTED[name]
        if not holds(value):
            raise InputError(f"`{name}` is {value!r}: expected {expected}")
    if said.get("temperature") == 0:
        said |= {"temperature": 1.0, "do_sample": False}
    elif "do_sample" not in said and any(name in said for name in OF_DRAWING):
        said["do_sample"] = True
    elif said.get("do_sample") is False and any(name in said for name in OF_DRAWING):
        useless = ", ".join(f"`{name}`" for name in OF_DRAWING if name in said)
        note(f"{useless} changes nothing where the likeliest token is taken (`do_sample=False`)")
    return defaults.model_copy(update=said)


class Sampler:
    """Chooses the tokens of one prompt, one by one.

    Every prompt has a sampler of its own, with its own source of randomness from which one number is drawn
    per token. So what is drawn depends on the seed and on the prompt, never on the batch.

    Args:
        generation: how.
        prompt: the prompt's token ids; repetitions of them count.
        seed: None draws anew each time.

    Raises:
        InputError: the seed is not a whole number of at least 0.
    """

    def __init__(
        self, generation: Generation, prompt: Sequence[int] | NDArray[np.int64] = (), seed: int | None = None
    ) -> None:
        if seed is not None:
            check_count("seed", seed, least=0)
        self.generation = generation
        self._rng = np.random.default_rng(seed)
        self._seen: set[int] = set()
        self._latest: list[int] = []
        # What has followed each run of `no_repeat_ngram_size - 1` tokens.
        self._followers: dict[tuple[int, ...], set[int]] = {}
        for token in prompt:
            self._read(int(token))

    def pick(self, logits: Scores) -> int:
        """The next token's id, from float32 [vocab]. Of equal ones the lowest."""
        scores = self._without_repeats(self._penalised(np.asarray(logits, dtype=np.float32)))
        token = self._drawn(scores) if self.generation.do_sample else int(np.argmax(scores))
        self._read(token)
        return token

    def _read(self, token: int) -> None:
        self._seen.add(token)
        if size := self.generation.no_repeat_ngram_size:
            if len(self._latest) == size - 1:
                self._followers.setdefault(tuple(self._latest), set()).add(token)
            self._latest = [*self._latest, token][-(size - 1) :] if size > 1 else []

    def _penalised(self, scores: Scores) -> Scores:
        penalty = np.float32(self.generation.repetition_penalty)
        if penalty == 1 or not self._seen:
            return scores
        seen = np.fromiter(self._seen, dtype=np.int64)
        scores = scores.copy()
        scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
        return scores

    def _without_repeats(self, scores: Scores) -> Scores:
        banned = self._followers.get(tuple(self._latest)) if self._followers else None
        # Where every token is ruled out, repeating one is all that is left.
        if not banned or len(banned) == len(scores):
            return scores
        scores = scores.copy()
        scores[list(banned)] = -np.inf
        return scores

    def _drawn(self, scores: Scores) -> int:
        how = self.generation
        # Float64 and the largest taken off: a tiny temperature must not overflow.
        scaled = (scores.astype(np.float64) - np.max(scores)) / how.temperature
        if 0 < how.top_k < len(scaled):
            tokens = np.flatnonzero(scaled >= np.partition(scaled, -how.top_k)[-how.top_k])
        else:
            tokens = np.arange(len(scaled))
        order = tokens[np.argsort(-scaled[tokens], kind="stable")]
        weights = np.exp(scaled[order])
        reached = np.cumsum(weights / weights.sum())
        # The fewest tokens that reach top_p; the sum of all may fall short of 1 by rounding.
        count = min(int(np.searchsorted(reached, how.top_p)) + 1, len(reached))
        count = min(count, max(1, int((weights >= how.min_p * weights[0]).sum())))
        drawn = self._rng.random() * reached[count - 1]
        return int(order[min(int(np.searchsorted(reached[:count], drawn, side="right")), count - 1)])


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


# For each option whether a value is one, and what is expected. Numbers have the bounds of
# `edgeprune.manifest.Generation`, beyond which float32 overflows.
_EXPECTED: dict[str, tuple[Any, str]] = {
    "do_sample": (lambda v: isinstance(v, bool), "True or False"),
    "temperature": (
        lambda v: _is_number(v) and (v == 0 or 1e-30 <= v <= 1e6),
        "a number of at least 0 (1e-30 to 1e6 where it is more); 0 takes the likeliest token each time",
    ),
    "top_k": (lambda v: _is_whole(v) and v >= 0, "a whole number of at least 0; 0 draws among all tokens"),
    "top_p": (
        lambda v: _is_number(v) and 0 < v <= 1,
        "a number above 0 and at most 1; 1 draws among all tokens",
    ),
    "min_p": (lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1; 0 draws among all tokens"),
    "repetition_penalty": (
        lambda v: _is_number(v) and 1e-6 <= v <= 1e6,
        "a number above 0, from 1e-6 to 1e6; 1 penalises nothing",
    ),
    "no_repeat_ngram_size": (
        lambda v: _is_whole(v) and v >= 0,
        "a whole number of at least 0; 0 lets everything repeat",
    ),
}
