"""The scores of random pruning, the baseline that every method has to beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def random_scores(seed: int, visual_tokens: int) -> NDArray[np.float32]:
    """Different numbers above 0 and at most 1 in a random order, float32 [visual_tokens].

    The n-th visual token of every prompt has the n-th score, so one seed keeps the same places of every
    picture. Average over seeds where a single draw could be lucky.

    Args:
        seed: the same seed gives the same scores on every machine.
        visual_tokens: at most 2**24, where float32 still tells the numbers apart.
    """
    order = np.random.default_rng(seed).permutation(visual_tokens)
    return ((order + 1) / max(1, visual_tokens)).astype(np.float32)
