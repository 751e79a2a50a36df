"""What becomes of the tokens that a stage drops: recycled in clusters, or averaged into kept ones.

All of it is standard operators on tensors whose lengths follow from shapes; orders are made by counting
who is better, with equal ones by index, so that every runtime sorts alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgeprune.exporter.indexing import (
    cluster_centres,
    last_visual,
    length,
    ranks,
    recycled_tokens,
    remaining_visual,
    spread,
    take,
)
from edgeprune.exporter.information import SWEEPS, principal_magnitude


@dataclass(frozen=True)
class Means:
    """Means of dropped tokens.

    Attributes:
        hidden: [B, c, D].
        centres: int64 [B, c], the position of each cluster's centre in the sequence that reached the stage.
    """

    hidden: torch.Tensor
    centres: torch.Tensor


def recycle(
    hidden: torch.Tensor,
    score: torch.Tensor,
    visual_index: torch.Tensor,
    kept_index: torch.Tensor,
    positions: torch.Tensor,
) -> Means:
    """Clusters the best dropped visual tokens (arXiv 2410.04417), the best being those of most raw score.

    Density peaks: with d the Euclidean distance over sqrt(D), a token's density is exp(-mean of its c
    smallest d^2), itself included; its isolation is the smallest d to a denser token, the largest d of all
    for the densest; the c tokens of largest density times isolation are centres, in that order. Every other
    token joins its nearest centre. Of equal densities the better token's counts as the larger one, where the
    published code adds random noise.

    Args:
        hidden: [B, S, D].
        score: float32 [B, S], not debiased.
        visual_index: int64 [B, V].
        kept_index: int64 [B, S'].
        positions: any int64 [B, S].
    """
    kept = torch.zeros_like(positions).scatter(1, kept_index, torch.ones_like(kept_index))
    dropped = take(kept, visual_index) == 0
    order = ranks(torch.where(dropped, take(score, visual_index), -torch.inf))
    chosen = take(visual_index, recycled_tokens(order, kept_index, positions))
    tokens = take(hidden, chosen).to(torch.float32)
    distance = _distances(tokens)
    count = length(chosen)
    clusters = torch.minimum(count, torch.div(count, 10, rounding_mode="floor") + 1)
    numbers = torch.arange(distance.shape[-1], device=distance.device)
    nearest = distance.sort(dim=-1).values
    nearest = torch.where(numbers < clusters, nearest * nearest, 0.0)
    density = torch.exp(-nearest.sum(-1) / clusters.clamp_min(1))
    place = ranks(density)
    denser = place.unsqueeze(1) < place.unsqueeze(2)
    # Columns of neutral values keep reductions defined where there is nothing to merge.
    nothing = torch.zeros_like(density)
    largest = torch.cat([distance, nothing.unsqueeze(-1)], dim=-1).amax(-1)
    largest = torch.cat([largest, torch.zeros_like(hidden[:, :1, 0], dtype=torch.float32)], dim=1).amax(
        1, keepdim=True
    )
    farthest = (largest + nothing).unsqueeze(-1)
    isolation = torch.cat([torch.where(denser, distance, farthest), farthest], dim=-1).amin(-1)
    centres = cluster_centres(ranks(isolation * density))
    member = _members(take(distance, centres).transpose(1, 2), centres, numbers)
    sums = torch.matmul(member.transpose(1, 2), tokens)
    means = sums / member.sum(1).clamp_min(1).unsqueeze(-1)
    return Means(means.to(hidden.dtype), take(chosen, centres))


def _distances(tokens: torch.Tensor) -> torch.Tensor:
    """Euclidean distance over sqrt(D), float32 [B, m, m]."""
    # Centred first: the differences are the same, and the squares subtracted below are smaller.
    middle = tokens.sum(1, keepdim=True) / torch.ones_like(tokens[:1, :, :1]).sum().clamp_min(1)
    tokens = tokens - middle
    squares = (tokens * tokens).sum(-1)
    product = torch.matmul(tokens, tokens.transpose(1, 2))
    found = (squares.unsqueeze(2) + squares.unsqueeze(1) - 2 * product).clamp_min(0)
    numbers = torch.arange(found.shape[-1], device=found.device)
    found = torch.where(numbers.unsqueeze(0) == numbers.unsqueeze(1), 0.0, found)
    return torch.sqrt(found / tokens.shape[-1])


def _members(distance: torch.Tensor, centres: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Who belongs to which cluster, float32 [B, m, c]: the nearest centre's, a centre always to its own.

    Args:
        distance: float32 [B, m, c].
        centres: int64 [B, c], numbers of tokens.
        numbers: int64 [m], 0..m-1.
    """
    itself = (centres.unsqueeze(1) == numbers.unsqueeze(1)).to(torch.float32)
    is_centre = itself.sum(2, keepdim=True) > 0
    # A finite neutral column, as above.
    edge = torch.full_like(distance.sum(2, keepdim=True), torch.finfo(torch.float32).max)
    closest = distance == torch.cat([distance, edge], dim=2).amin(2, keepdim=True)
    first = closest & (closest.to(torch.int64).cumsum(2) == 1)
    return torch.where(is_centre, itself, first.to(torch.float32))


@dataclass(frozen=True)
class Appended:
    """A shortened sequence with means behind its last kept visual token.

    Attributes:
        order: int64 [B, S' + c], places in the kept tokens followed by the means.
        visual_index: int64 [B, K + c], where the visual tokens stand now.
    """

    order: torch.Tensor
    visual_index: torch.Tensor

    def join(self, kept: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
        """Kept [B, S', ...] and means [B, c, ...], in their new order."""
        return take(torch.cat([kept, means], dim=1), self.order)


def append(
    centres: torch.Tensor, visual_index: torch.Tensor, kept_index: torch.Tensor, positions: torch.Tensor
) -> Appended:
    """Where means go; the arguments are those of `recycle` and its centres."""
    remaining = remaining_visual(kept_index, visual_index, positions)
    start = last_visual(remaining) + 1
    kept, means = length(kept_index), length(centres)
    number = torch.ones_like(torch.cat([kept_index, centres], dim=1)).cumsum(1) - 1
    behind = torch.where(number < start + means, number - start + kept, number - means)
    order = torch.where(number < start, number, behind)
    added = start + torch.ones_like(centres).cumsum(1) - 1
    return Appended(order, torch.cat([remaining, added], dim=1))


def absorb(
    hidden: torch.Tensor,
    effective: torch.Tensor,
    visual_index: torch.Tensor,
    positions: torch.Tensor,
    kept: torch.Tensor,
) -> torch.Tensor:
    """Averages all dropped visual tokens into the last kept one (arXiv 2412.06263), hidden [B, S, D].

    Kept are the K best. As in the published code, the least attended weighs most; see `with_survivor`.

    Args:
        hidden: [B, S, D].
        effective: float32 [B, V], the debiased scores that the selection goes by.
        visual_index: int64 [B, V].
        positions: any int64 [B, S].
        kept: K, int64 scalar.
    """
    merged = with_survivor(take(hidden, visual_index), ranks(effective), kept)
    return replace_visual(hidden, merged, visual_index, positions)


def with_survivor(tokens: torch.Tensor, order: torch.Tensor, kept: torch.Tensor | int) -> torch.Tensor:
    """Puts the weighted mean of the tokens that are not kept into the last kept one, [B, V, D].

    Args:
        tokens: [B, V, D].
        order: int64 [B, V], the place of each, 0 the best.
        kept: K. The K-th best and those behind it have weights 1, 2, 3, ...
    """
    weights = (order - kept + 2).clamp_min(0).to(torch.float32)
    mean = torch.matmul(weights.unsqueeze(1), tokens.to(torch.float32))
    mean = (mean / weights.sum(1).clamp_min(1).reshape(-1, 1, 1)).to(tokens.dtype)
    return torch.where((order == kept - 1).unsqueeze(-1), mean, tokens)


@dataclass(frozen=True)
class Carved:
    """What TokenCarve does before the pruning node.

    Attributes:
        score: float32 [B, S]: of a visual token that stays its fused rank, 0 for all others.
        hidden: [B, S, D], with dropped tokens averaged into those that stay.
    """

    score: torch.Tensor
    hidden: torch.Tensor


def carve(
    hidden: torch.Tensor,
    attention: torch.Tensor,
    visual_index: torch.Tensor,
    positions: torch.Tensor,
    kept: torch.Tensor,
) -> Carved:
    """Ranks by attention and information, and merges the best dropped tokens (arXiv 2503.10501).

    With K to be kept: a token's fused rank is the mean of its places (V for the best, 1 for the last) by
    attention and by information. Of the best int(1.5 K), the first half are targets; of the other half the
    int(0.5 K) with the largest cosine similarity to a target are averaged into their most similar one, and
    the rest stays. Where int(1.5 K) exceeds V, it is V, and as many are merged as K asks for.

    Args:
        hidden: [B, S, D].
        attention: float32 [B, V], debiased where the stage is.
        visual_index: int64 [B, V].
        positions: any int64 [B, S].
        kept: K, int64 scalar.
    """
    tokens = take(hidden, visual_index).to(torch.float32)
    visual = length(visual_index)
    by_information = ranks(principal_magnitude(tokens, SWEEPS))
    fused = visual - (ranks(attention) + by_information).to(torch.float32) / 2
    place = ranks(fused)
    best = torch.minimum(visual, kept + torch.div(kept, 2, rounding_mode="floor"))
    target = place < torch.div(best, 2, rounding_mode="floor")
    candidate = (place < best) & ~target
    direction = tokens / (tokens * tokens).sum(-1, keepdim=True).sqrt().clamp_min(
        torch.finfo(torch.float32).tiny
    )
    likeness = torch.matmul(direction, direction.transpose(1, 2))
    # Below every cosine, and a column of it for where there is no token.
    none = torch.full_like(fused, -2.0).unsqueeze(-1)
    likeness = torch.where(target.unsqueeze(1), likeness, none)
    closest = torch.cat([likeness, none], dim=2).amax(2)
    merged = candidate & (ranks(torch.where(candidate, closest, -torch.inf)) < best - kept)
    nearest = likeness == closest.unsqueeze(2)
    nearest = nearest & (nearest.to(torch.int64).cumsum(2) == 1) & merged.unsqueeze(2)
    share = nearest.to(torch.float32).transpose(1, 2)
    mean = (tokens + torch.matmul(share, tokens)) / (share.sum(2, keepdim=True) + 1)
    stays = (place < best) & ~merged
    return Carved(
        spread(torch.where(stays, fused, 0.0), visual_index, positions),
        replace_visual(hidden, mean.to(hidden.dtype), visual_index, positions),
    )


def replace_visual(
    hidden: torch.Tensor, tokens: torch.Tensor, visual_index: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Hidden [B, S, D] with other visual tokens, [B, V, D]."""
    marks = spread(torch.ones_like(visual_index), visual_index, positions)
    return torch.where(marks.unsqueeze(-1) != 0, spread(tokens, visual_index, positions), hidden)
