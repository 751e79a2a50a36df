"""The loop of generation: prefill, decode, caches. Knows arrays and a back end only.

Nothing here knows pictures as files, tokenizers or messages; all that stays outside, so that this module
can be replaced by the C++ core.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeprune.selection import select_visual


@dataclass(frozen=True, eq=False)
class StageResult:
    """What one pruning stage did to one prompt with V visual tokens before it.

    Attributes:
        layer: tokens were dropped before this decoder layer.
        keep: the stage's keep ratio in ten-thousandths.
        kept_visual: int64 [K], ascending, of the prompt's visual tokens 0..V-1.
        candidates: int64 [Vs], the visual tokens that reached the stage, likewise.
        score: float32 [Vs], the attention that the scoring rows pay each of them, before any debiasing.
        visual_valid: float32 [Vs], their padding mask.
    """

    layer: int
    keep: int
    kept_visual: NDArray[np.int64]
    candidates: NDArray[np.int64]
    score: NDArray[np.float32]
    visual_valid: NDArray[np.float32]

    @property
    def kept(self) -> int:
        """K, how many visual tokens stayed."""
        return len(self.kept_visual)

    @property
    def padded_kept(self) -> int:
        """How many of the kept ones are padding."""
        padding = self.candidates[self.visual_valid == 0]
        return int(np.isin(self.kept_visual, padding).sum())

    def without_debias(self) -> NDArray[np.int64]:
        """The visual tokens that the same scores select without bias curve and padding mask, int64 [K]."""
        ones = np.ones((1, len(self.score)), dtype=np.float32)
        return self.candidates[select_visual(self.score[None], ones, ones[0], self.keep)[0]]
