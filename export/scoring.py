"""The scoring rows of a pruning stage: which queries' attention counts, and how much each.

Rows are gathered before the scores are computed, so a stage costs [B, H, rows, T] and never S x S: one row
for the last token; the S - V text rows for rows of text (those that do not count have weight 0, which
spares a length that depends on values); V rows for the image's own.
"""

from __future__ import annotations

import torch

from edgeprune.exporter.attention import ScoreTap
from edgeprune.exporter.indexing import last_visual, take, text_positions
from edgeprune.plans import ScoringRows


def score_tap(
    rows: ScoringRows, visual_index: torch.Tensor, positions: torch.Tensor, raters: torch.Tensor | None
) -> ScoreTap:
    """The tap for a stage.

    Args:
        rows: the scoring rows.
        visual_index: int64 [B, V] of the sequence that reaches the stage.
        positions: any int64 [B, S] of it.
        raters: float32 [B, S], the weight of each rater; only for `ScoringRows.RATERS`.
    """
    if rows is ScoringRows.LAST_TOKEN:
        return ScoreTap()
    if rows is ScoringRows.IMAGE:
        return ScoreTap(visual_index, torch.ones_like(visual_index, dtype=torch.float32))
    text = text_positions(visual_index, positions)
    if rows is ScoringRows.TEXT_AFTER_IMAGE:
        return ScoreTap(text, (text > last_visual(visual_index)).to(torch.float32))
    assert raters is not None
    return ScoreTap(text, take(raters, text))


def rater_weights(embeds: torch.Tensor, visual_index: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The text tokens that rate the visual ones, by the input embeddings (arXiv 2410.04417).

    With V the visual and T the text embeddings behind the last visual token, token t is a rater where
    mean over V of softmax over T of (V T^T) exceeds its mean over T. Where none does, all of them rate.

    Args:
        embeds: [B, S, D].
        visual_index: int64 [B, V].
        positions: any int64 [B, S].

    Returns:
        float32 [B, S], 1 / (number of raters) for each rater, 0 for other tokens.
    """
    text = text_positions(visual_index, positions)
    behind = text > last_visual(visual_index)
    visual = take(embeds, visual_index).to(torch.float32)
    likeness = torch.matmul(visual, take(embeds, text).to(torch.float32).transpose(1, 2))
    likeness = torch.where(behind.unsqueeze(1), likeness, torch.finfo(torch.float32).min)
    count = behind.sum(1, keepdim=True).clamp_min(1)
    # The sum over V instead of its mean is compared with its own mean all the same.
    received = torch.softmax(likeness, dim=2).sum(1) * behind
    rates = behind & (received > received.sum(1, keepdim=True) / count)
    weights = rates.to(torch.float32)
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, behind.to(torch.float32))
    weights = weights / weights.sum(1, keepdim=True).clamp_min(1)
    return torch.zeros_like(positions, dtype=torch.float32).scatter(1, text, weights)
