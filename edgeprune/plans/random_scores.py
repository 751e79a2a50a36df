"""The scores of random pruning, the baseline that every method has to beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def random_scores(seed: int, visual_tokens: int) -> NDArray[np.float32]:
    """Uniform pseudo-random numbers from 0 to 1, float32 [visual_tokens].

    The n-th visual token of every prompt has the n-th score, however many there are, so one seed keeps the
    same places of every image. Average over seeds where a single draw could be lucky.

    Args:
        seed: the same seed gives the same scores on every machine.
        visual_tokens: how many.
    """
    return np.random.default_rng(seed).random(visual_tokens).astype(np.float32)
