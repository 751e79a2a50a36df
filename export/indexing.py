"""Which positions hold text, and which hold the visual tokens that are left: index tensors of dynamic length.

Their lengths follow from other tensors' shapes alone (S - V, S' - (S - V)), never from values, so that a
compiled engine knows them. In torch they are custom operators, whose results the tracer treats as tensors
of an unknown size; in the graph they become standard operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxscript
import torch

from edgeprune.plans import recycled_count


def new_length(like: torch.Tensor) -> torch.Tensor:
    """A fake int64 [B, a size of its own]: at least 2, because the tracer guards on sizes of 0 and 1."""
    length = torch.library.get_ctx().new_dynamic_size(min=2)
    return like.new_empty(like.shape[0], length, dtype=torch.int64)


@torch.library.custom_op("edgeprune::text_positions", mutates_args=())
def text_positions(visual_index: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Positions of all tokens that are not visual.

    Args:
        visual_index: int64 [B, V].
        positions: any int64 [B, S].

    Returns:
        int64 [B, S - V], ascending.
    """
    batch, sequence = positions.shape
    is_text = torch.ones(batch, sequence, dtype=torch.bool, device=positions.device)
    is_text.scatter_(1, visual_index, False)
    return is_text.nonzero()[:, 1].view(batch, sequence - visual_index.shape[1])


@text_positions.register_fake
def _(visual_index: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return new_length(visual_index)


@torch.library.custom_op("edgeprune::remaining_visual", mutates_args=())
def remaining_visual(
    kept_index: torch.Tensor, visual_index: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Where the kept visual tokens stand in the shortened sequence.

    Args:
        kept_index: int64 [B, S'], positions that were kept, ascending.
        visual_index: int64 [B, V], positions of the visual tokens before.
        positions: any int64 [B, S].

    Returns:
        int64 [B, S' - (S - V)], ascending places in `kept_index`.
    """
    batch, sequence = positions.shape
    kept = kept_index.shape[1] - (sequence - visual_index.shape[1])
    is_visual = torch.zeros(batch, sequence, dtype=torch.bool, device=positions.device)
    is_visual.scatter_(1, visual_index, True)
    return is_visual.gather(1, kept_index).nonzero()[:, 1].view(batch, kept)


@remaining_visual.register_fake
def _(kept_index: torch.Tensor, visual_index: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return new_length(visual_index)


@torch.library.custom_op("edgeprune::recycled_tokens", mutates_args=())
def recycled_tokens(rank: torch.Tensor, kept_index: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The dropped tokens that are recycled; see `edgeprune.plans.recycled_count`.

    Args:
        rank: int64 [B, V], a permutation of 0..V-1: the place of each visual token among those dropped.
        kept_index: int64 [B, S'].
        positions: any int64 [B, S].

    Returns:
        int64 [B, m], numbers of visual tokens by rank.
    """
    tokens, _ = recycled_count(positions.shape[1] - kept_index.shape[1])
    return rank.argsort(dim=1)[:, :tokens].contiguous()


@recycled_tokens.register_fake
def _(rank: torch.Tensor, kept_index: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return new_length(rank)


@torch.library.custom_op("edgeprune::cluster_centres", mutates_args=())
def cluster_centres(rank: torch.Tensor) -> torch.Tensor:
    """The first of m tokens that become centres.

    Args:
        rank: int64 [B, m], a permutation of 0..m-1.

    Returns:
        int64 [B, c], numbers of tokens by rank; c = int(m / 10) + 1, 0 without tokens.
    """
    tokens = rank.shape[1]
    return rank.argsort(dim=1)[:, : min(tokens, tokens // 10 + 1)].contiguous()


@cluster_centres.register_fake
def _(rank: torch.Tensor) -> torch.Tensor:
    return new_length(rank)


def ranks(score: torch.Tensor) -> torch.Tensor:
    """The place of each by score, int64 [B, V], 0 the largest; equal ones by index.

    By counting who is better, V x V comparisons: no runtime's way of sorting equal values matters.
    """
    number = torch.arange(score.shape[1], device=score.device)
    earlier = number.unsqueeze(0) < number.unsqueeze(1)
    own, other = score.unsqueeze(2), score.unsqueeze(1)
    return ((other > own) | ((other == own) & earlier)).to(torch.int64).sum(2)


def length(tensor: torch.Tensor) -> torch.Tensor:
    """N of [B, N] as an int64 scalar: a tensor, so that the tracer takes it for no constant."""
    return torch.ones_like(tensor[:1], dtype=torch.int64).sum()


def is_visual(visual_index: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """int64 [B, S], 1 where a visual token stands."""
    return torch.zeros_like(positions).scatter(1, visual_index, torch.ones_like(visual_index))


def spread(values: torch.Tensor, visual_index: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Values of the visual tokens, [B, V, ...], at their positions: [B, S, ...], zeros elsewhere."""
    marks = is_visual(visual_index, positions)
    # A gather with a spare row for everything else; a scatter would need indices as wide as the values.
    # Not new_zeros: before opset 20, ONNX makes no bfloat16 zeros of a dynamic shape, but expands one.
    spare = torch.full((values.shape[0], 1, *values.shape[2:]), 0, dtype=values.dtype, device=values.device)
    padded = torch.cat([spare, values], dim=1)
    return take(padded, marks.cumsum(1) * marks)


def take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Row-wise: values [B, N, ...], index int64 [B, M] -> [B, M, ...]."""
    rows = torch.arange(values.shape[0], device=values.device).unsqueeze(1)
    return values[rows, index]


def last_visual(visual_index: torch.Tensor) -> torch.Tensor:
    """The position of the last visual token, int64 [B, 1]; -1 without any."""
    nothing = torch.full_like(visual_index.sum(1, keepdim=True), -1)
    return torch.cat([nothing, visual_index], dim=1).amax(1, keepdim=True)


def translation() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The operators above as standard ONNX operators."""
    op: Any = onnxscript.values.Opset("", 18)

    def size(value: Any) -> Any:
        return op.Shape(value, start=1, end=2)

    def ints(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    def mark(index: Any, positions: Any) -> Any:
        """1 at the indices, 0 elsewhere, int64 [B, S]."""
        ones = op.Expand(ints(1), op.Shape(index))
        return op.ScatterElements(op.Sub(positions, positions), index, ones, axis=1)

    def places(marks: Any, count: Any) -> Any:
        """The positions of the marks, of which every row has `count`.

        A permutation that has them first is scattered and cut: every index stays inside its tensor.
        """
        others = op.Sub(ints(1), marks)
        axis = op.Constant(value_int=1)
        first = op.Sub(op.CumSum(marks, axis), ints(1))
        behind = op.Sub(op.Add(op.CumSum(others, axis), count), ints(1))
        place = op.Where(op.Cast(marks, to=9), first, behind)
        counting = op.Sub(op.CumSum(op.Add(marks, others), axis), ints(1))
        return op.Slice(op.ScatterElements(counting, place, counting, axis=1), ints(0), count, ints(1))

    def text(visual_index, positions):  # type: ignore[no-untyped-def]
        count = op.Sub(size(positions), size(visual_index))
        return places(op.Sub(ints(1), mark(visual_index, positions)), count)

    def remaining(kept_index, visual_index, positions):  # type: ignore[no-untyped-def]
        texts = op.Sub(size(positions), size(visual_index))
        kept = op.Sub(size(kept_index), texts)
        return places(op.GatherElements(mark(visual_index, positions), kept_index, axis=1), kept)

    def leading(rank: Any, count: Any) -> Any:
        """Numbers of the first `count` by rank."""
        ones = op.Expand(ints(1), op.Shape(rank))
        counting = op.Sub(op.CumSum(ones, op.Constant(value_int=1)), ints(1))
        return op.Slice(op.ScatterElements(counting, rank, counting, axis=1), ints(0), count, ints(1))

    def recycled(rank, kept_index, positions):  # type: ignore[no-untyped-def]
        dropped = op.Sub(size(positions), size(kept_index))
        share = op.Add(op.Div(op.Mul(dropped, ints(3)), ints(10)), ints(1))
        return leading(rank, op.Min(dropped, share))

    def centres(rank):  # type: ignore[no-untyped-def]
        tokens = size(rank)
        return leading(rank, op.Min(tokens, op.Add(op.Div(tokens, ints(10)), ints(1))))

    return {
        torch.ops.edgeprune.recycled_tokens.default: recycled,
        torch.ops.edgeprune.cluster_centres.default: centres,
        torch.ops.edgeprune.text_positions.default: text,
        torch.ops.edgeprune.remaining_visual.default: remaining,
    }
