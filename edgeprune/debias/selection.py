"""Which visual tokens are kept: the reference that every back end is compared with.

A token's score is multiplied by its weight, which is its bias curve's value times its padding mask, the best
K tokens of each prompt are kept, and they stay in their original order beside all text tokens
(arXiv 2508.17807).

Every back end follows the same total order, so that the same tokens are kept everywhere:

1. a token at the last position of the sequence, because the next token comes from there;
2. a token with a number, the larger product first, +inf as the largest finite float32;
3. a token whose product is NaN or -inf, as if it were the lowest finite float32;
4. a token of weight 0, which is padding, whatever its score.

Within each of these, equal products go to the lower index. A token whose attention underflowed to 0 therefore
still beats every one of weight 0, which a plain product would leave to chance. K is given, and never depends
on values, as a compiled engine needs it; where fewer than K tokens have a weight, those without fill the
remaining places, lowest index first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgeprune.errors import InputError

Share: TypeAlias = "float | str | Fraction"

_LOWEST, _LARGEST = np.finfo(np.float32).min, np.finfo(np.float32).max
WHOLE = 10_000
"""All, in ten-thousandths."""
_LEAST = Decimal("1e-6")


def read_share(keep: Share) -> Fraction:
    """The keep ratio exactly as it was written: 3/10 for 0.3 and for "0.3", 1/3 for "192/576".

    Args:
        keep: the share kept, 0 < keep <= 1, as a number, or as text: a number or a fraction of two whole
            ones. Below a millionth it counts as a millionth.

    Raises:
        InputError: not a number, NaN, or outside the range.
    """
    share: Decimal | Fraction
    try:
        if isinstance(keep, Fraction):
            share = keep
        elif isinstance(keep, str) and "/" in keep:
            top, bottom = map(int, keep.split("/"))
            share = Fraction(top, bottom)
        else:
            # Decimal reads 0.00015 as it was written; the binary float lies a little beside the half.
            share = Decimal(keep.strip() if isinstance(keep, str) else repr(float(keep)))
    except (ArithmeticError, TypeError, ValueError):
        share = Decimal("NaN")
    if isinstance(keep, bool) or (isinstance(share, Decimal) and share.is_nan()):
        raise InputError(
            f"the keep ratio is {keep!r}: expected a number above 0 and at most 1; give the share of visual "
            "tokens to keep, for example 0.3 or 192/576"
        )
    if not 0 < share <= 1:
        percent = isinstance(share, Decimal) and 1 < share <= 100
        hint = f"{share / 100} keeps {share} %" if percent else "give a share, for example 0.3"
        raise InputError(f"the keep ratio is {keep}: expected a number above 0 and at most 1; {hint}")
    # A decimal may have an exponent of a billion, whose fraction no memory would hold.
    return Fraction(max(share, _LEAST)) if isinstance(share, Decimal) else share


def keep_per_10000(keep: Share) -> int:
    """The keep ratio as the exact integer that the graph carries, so that every back end rounds alike.

    Args:
        keep: as for `read_share`.

    Returns:
        The nearest number of ten-thousandths, halves rounded up, at least 1: 3000 for 0.3.

    Raises:
        InputError: as `read_share`.
    """
    return nearest_count(WHOLE, read_share(keep))


def nearest_count(visual_tokens: int, share: Fraction) -> int:
    """A share of so many tokens, rounded half up, at least 1."""
    return max(1, math.floor(visual_tokens * share + Fraction(1, 2)))


def kept_count(visual_tokens: int, keep: int) -> int:
    """K, the number of visual tokens kept of V.

    K = (2 * V * keep + 10000) // 20000, which is keep * V rounded half up in integers, and at least 1
    where V > 0. Never more than V. 0 for V = 0.

    Args:
        visual_tokens: V >= 0.
        keep: the keep ratio in ten-thousandths, from `keep_per_10000`.

    Raises:
        InputError: V is negative, or keep is not an integer from 1 to 10000.
    """
    if isinstance(keep, bool) or not isinstance(keep, (int, np.integer)) or not 1 <= keep <= WHOLE:
        raise InputError(
            f"keep is {keep!r}: expected an integer from 1 to {WHOLE}, in ten-thousandths; "
            "keep_per_10000() makes one of a share"
        )
    if visual_tokens < 0:
        raise InputError(
            f"the number of visual tokens is {visual_tokens}: expected 0 or more; check the grid"
        )
    if visual_tokens == 0:
        return 0
    # Python integers: a NumPy one could be too narrow for the product.
    return max(1, (2 * int(visual_tokens) * int(keep) + WHOLE) // (2 * WHOLE))


def effective_score(
    score_v: NDArray[np.float32], weight: NDArray[np.float32], stays: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """The debiased score, in float32: score * weight.

    NaN becomes the lowest finite float32, infinities the nearest finite one; then tokens of weight 0 become
    -inf, and those that stay in any case +inf. The order of the result is that of the module's description.
    Formula: arXiv 2508.17807.

    Args:
        score_v: float32 [B, V], attention paid to each visual token.
        weight: float32 [B, V], what each score is multiplied by; 0 stands behind all others.
        stays: bool [B, V], the tokens that stay in any case; None for none.

    Returns:
        float32 [B, V], free of NaN.

    Raises:
        InputError: a dtype or a shape is another.
    """
    _check("score_v", score_v, np.float32, (None, None))
    _check("weight", weight, np.float32, score_v.shape)
    with np.errstate(all="ignore"):  # what overflow and inf * 0 give is defined below
        product = score_v * weight
    product = np.clip(np.where(np.isnan(product), _LOWEST, product), _LOWEST, _LARGEST)
    effective = np.where(weight == 0, np.float32(-np.inf), product)
    if stays is not None:
        _check("stays", stays, np.bool_, score_v.shape)
        effective = np.where(stays, np.float32(np.inf), effective)
    return effective.astype(np.float32)


def select_by_image(
    effective: NDArray[np.float32], image: NDArray[np.int64], kept: int
) -> NDArray[np.int64] | None:
    """The kept visual tokens of one prompt if every image keeps at least its part of them.

    An image's part is K times its share of the tokens, rounded down, of those whose effective score is above
    -inf; its best tokens fill it, and the best of all others what is left of K.

    Args:
        effective: float32 [V], of `effective_score`.
        image: int64 [V], the number of the image that each belongs to.
        kept: K, from 0 to V.

    Returns:
        int64 [K], ascending; None where the best K give every image its part already.
    """
    order = np.argsort(-effective, kind="stable")
    counts = np.bincount(image)
    part = np.minimum(
        counts * kept // max(len(image), 1), np.bincount(image[effective > -np.inf], minlength=len(counts))
    )
    best = order[:kept]
    if (np.bincount(image[best], minlength=len(counts)) >= part).all():
        return None
    ordered = image[order]
    # How many of its image's tokens are better than each.
    ahead = np.empty_like(ordered)
    for number in range(len(counts)):
        ahead[ordered == number] = np.arange(counts[number])
    first = ahead < part[ordered]
    rest = order[~first][: kept - int(first.sum())]
    return np.sort(np.concatenate([order[first], rest])).astype(np.int64)


def select_visual(
    score_v: NDArray[np.float32],
    weight: NDArray[np.float32],
    kept: int,
    stays: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """The kept visual tokens: the top K of the effective score, equal ones to the lower index.

    Args:
        score_v, weight, stays: as for `effective_score`.
        kept: K, from 0 to V; `kept_count` makes one of a keep ratio.

    Returns:
        int64 [B, K], for each prompt ascending indices into its visual tokens (0..V-1).

    Raises:
        InputError: as `effective_score`; or K is out of range.
    """
    effective = effective_score(score_v, weight, stays)
    visual = effective.shape[1]
    _check_kept(kept, visual)
    # Negated, because only an ascending sort is stable towards the lower index.
    best = np.argsort(-effective, axis=1, kind="stable")[:, :kept]
    return np.sort(best, axis=1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Selection:
    """What one pruning stage keeps, of S positions with V visual tokens among them; S' = S - V + K.

    Attributes:
        kept_index: int64 [B, S'], ascending positions kept: all text tokens and K visual ones.
        kept_visual: int64 [B, K], the kept ones of the visual tokens, ascending in 0..V-1.
    """

    kept_index: NDArray[np.int64]
    kept_visual: NDArray[np.int64]


def select(
    score: NDArray[np.float32],
    visual_index: NDArray[np.int64],
    weight: NDArray[np.float32],
    kept: int,
) -> Selection:
    """One pruning stage. V = 0, as in every decode step, keeps everything.

    A visual token at the last position stays whatever its weight, because the next token comes from there.

    Args:
        score: float32 [B, S], attention the scoring rows pay each position.
        visual_index: int64 [B, V], positions of the visual tokens, ascending and unique in each row.
        weight: float32 [B, V], what each visual token's score is multiplied by; 0 stands behind all others.
        kept: K, from 0 to V.

    Raises:
        InputError: a dtype or a shape is another, a position is outside 0..S-1, positions do not ascend, or K
            is out of range.
    """
    _check("score", score, np.float32, (None, None))
    batch, sequence = score.shape
    _check("visual_index", visual_index, np.int64, (batch, None))
    outside = visual_index[(visual_index < 0) | (visual_index >= sequence)]
    if outside.size:
        raise InputError(
            f"visual_index holds {outside[0]} for a sequence of {sequence}: expected positions from 0 to "
            f"{sequence - 1}; count them within the sequence that is scored"
        )
    if (np.diff(visual_index, axis=1) <= 0).any():
        raise InputError(
            "visual_index does not ascend: expected each prompt's positions in order and without repeats; "
            "sort them and remove repeats"
        )
    visual = visual_index.shape[1]
    kept_visual = select_visual(
        np.take_along_axis(score, visual_index, axis=1), weight, kept, visual_index == sequence - 1
    )
    stays = np.ones((batch, sequence), dtype=bool)
    np.put_along_axis(stays, visual_index, False, axis=1)
    np.put_along_axis(stays, np.take_along_axis(visual_index, kept_visual, axis=1), True, axis=1)
    kept_index = np.nonzero(stays)[1].reshape(batch, sequence - visual + kept_visual.shape[1])
    return Selection(kept_index.astype(np.int64), kept_visual)


def random_visual(
    rng: np.random.Generator, visual_valid: NDArray[np.float32], kept: int, among_content: bool
) -> NDArray[np.int64]:
    """K random visual tokens, the baseline that a method has to beat.

    Args:
        rng: the source of randomness; the same state gives the same selection.
        visual_valid: float32 [B, V], the padding mask.
        kept: K, from 0 to V.
        among_content: draw from the valid tokens, so that the comparison with a padding mask is fair; where
            they are fewer than K all are kept, and padded ones fill up, lowest index first. Otherwise draw
            from all tokens, padding included.

    Returns:
        int64 [B, K], ascending, drawn uniformly without replacement.

    Raises:
        InputError: a dtype or a shape is another, or K is out of range.
    """
    _check("visual_valid", visual_valid, np.float32, (None, None))
    batch, visual = visual_valid.shape
    _check_kept(kept, visual)
    chosen = np.empty((batch, kept), dtype=np.int64)
    for row, valid in enumerate(visual_valid):
        pool = np.flatnonzero(valid != 0) if among_content else np.arange(visual)
        drawn = rng.choice(pool, size=min(kept, len(pool)), replace=False)
        filling = np.flatnonzero(valid == 0)[: kept - len(drawn)]
        chosen[row] = np.sort(np.concatenate([drawn, filling]))
    return chosen


def _check_kept(kept: int, visual: int) -> None:
    if isinstance(kept, bool) or not isinstance(kept, (int, np.integer)) or not 0 <= kept <= visual:
        raise InputError(
            f"{kept!r} visual tokens are to be kept of {visual}: expected a whole number from 0 to {visual}; "
            "kept_count() makes one of a keep ratio"
        )


def _check(name: str, array: NDArray[np.generic], dtype: DTypeLike, shape: tuple[int | None, ...]) -> None:
    """Refuses an array of another dtype or shape; None in `shape` stands for any size."""
    fits = array.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if array.dtype == dtype and fits:
        return
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    raise InputError(
        f"{name} is {array.dtype} {list(array.shape)}: expected {np.dtype(dtype)} [{sizes}]; "
        "convert it, or pass it with its axes in this order"
    )
