"""Attention by the curve's places, gathered over images in folds.

So a run of any length needs little memory, while fits can be judged on images that they have not seen, and
the trend's error follows from how the folds differ. Padded tokens are left out: a place counts only the
images that show something there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeprune.debias.curves import Coordinate
from edgeprune.errors import InputError

Floats = NDArray[np.float64]

FOLDS = 20


@dataclass(frozen=True, eq=False)
class Paid:
    """What one sample's scoring rows pay.

    Attributes:
        paid: float32 [stages, V], to each visual token. Where images differ in their number, it is given in
            times of an even share of 1 / V, as attention is spread over more tokens in a larger image.
        valid: float32 [V], their padding mask.
        places: for each coordinate the place of each, int64 [V], from 0.
    """

    paid: NDArray[np.float32]
    valid: NDArray[np.float32]
    places: Mapping[Coordinate, NDArray[np.int64]]


@dataclass
class Attention:
    """Sums of attention by place, over images in folds.

    Attributes:
        sums: float64 [FOLDS, places], attention paid to tokens that show the image.
        counts: float64 [FOLDS, places], how many tokens of samples show something there.
        squares: sum of the squares of what `sums` adds up.
        padding_paid, total_paid: attention paid to padded tokens, and to all visual tokens.
        padded, tokens: how many padded tokens, and visual tokens, there were.
        samples: how many rows were added; an image may be in several, with other questions.
        images: how many images.
    """

    sums: Floats
    counts: Floats
    squares: float = 0.0
    padding_paid: float = 0.0
    total_paid: float = 0.0
    padded: int = 0
    tokens: int = 0
    samples: int = 0
    images: int = 0

    @classmethod
    def empty(cls, places: int) -> Attention:
        shape = (FOLDS, places)
        return cls(np.zeros(shape), np.zeros(shape))

    def add(
        self,
        paid: NDArray[np.float32],
        valid: NDArray[np.float32],
        place: NDArray[np.int64],
        image: NDArray[np.int64],
    ) -> None:
        """Adds samples. Those of one image share a fold, since they are not independent of each other.

        Args:
            paid: float32 [N, V], attention that the scoring rows pay each visual token.
            valid: float32 [N, V], padding masks.
            place: int64 [N, V], the place of each, from 0.
            image: int64 [N], the images' numbers, counted in the order in which they first come.

        Raises:
            InputError: a value is negative or no number.
        """
        if not (np.isfinite(paid).all() and (paid >= 0).all()):
            raise InputError(
                "the attention has values that are negative or no numbers: expected attention; the model's "
                "weights may be damaged, or its dtype too small"
            )
        shown = valid != 0
        at = ((image % len(self.sums))[:, None], place)
        np.add.at(self.sums, at, np.where(shown, paid, 0))
        self.squares += float((paid[shown].astype(np.float64) ** 2).sum())
        np.add.at(self.counts, at, shown)
        self.samples += len(paid)
        self.images = max(self.images, 1 + int(image.max(initial=-1)))
        self.padding_paid += float(paid[~shown].sum(dtype=np.float64))
        self.total_paid += float(paid.sum(dtype=np.float64))
        self.padded += int((~shown).sum())
        self.tokens += shown.size

    @property
    def mean(self) -> Floats:
        """float64 [places], the mean over all samples that show something there; NaN where none does."""
        return mean_of(self.sums.sum(0), self.counts.sum(0))

    @property
    def variance(self) -> float:
        """Of the attention paid to single tokens that show something."""
        count = self.counts.sum()
        return float(self.squares / count - (self.sums.sum() / count) ** 2) if count else 0.0

    @property
    def padding_share_of_tokens(self) -> float:
        return self.padded / self.tokens if self.tokens else 0.0

    @property
    def padding_share_of_attention(self) -> float:
        return self.padding_paid / self.total_paid if self.total_paid else 0.0


def mean_of(sums: Floats, counts: Floats) -> Floats:
    """Sums over counts; NaN where nothing was counted."""
    return np.asarray(np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0))
