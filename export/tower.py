"""A vision tower that merges visual tokens between its layers (arXiv 2412.06263)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgeprune.exporter.attention import TOWER_NAME
from edgeprune.exporter.indexing import ranks, take
from edgeprune.exporter.merging import with_survivor
from edgeprune.plans import TowerStage


class MergingTower(nn.Module):
    """The layers of a CLIP or SigLIP tower, called one by one, with merging stages inside some of them.

    Such a layer's attention runs, then its tokens are merged, then its MLP. A token keeps the place in the
    image that it came from; the mean of the merged ones stands at the place of its survivor. Positions are
    added in front of the first layer, so that what is left needs none.

    Args:
        tower: Hugging Face's vision model.
        stages: the merging stages.
        layers: how many of the tower's layers run.
        skipped: tokens in front of the image's, which are never merged (a class token).
    """

    tower: Any  # a part of a model that Hugging Face's classes have no types for

    def __init__(self, tower: nn.Module, stages: Sequence[TowerStage], layers: int, skipped: int) -> None:
        super().__init__()
        self.tower = tower
        self.kept = {stage.layer: stage.kept for stage in stages}
        self.layers = layers
        self.skipped = skipped
        for layer in self.kept:
            merging = self.tower.encoder.layers[layer].self_attn
            # A config of its own: the other layers, and others who hold the model, keep their attention.
            merging.config = copy.copy(merging.config)
            merging.config._attn_implementation = TOWER_NAME

    def forward(
        self, pixel_values: torch.Tensor, scores: Sequence[torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Runs the tower.

        Args:
            pixel_values: [N, 3, H, W].
            scores: per stage, float32 [N, tokens that reach it], to merge by instead of the tower's own:
                those of another runtime, say, where equal ones up to rounding may be in another order.

        Returns:
            Hidden states [N, K, D] of the image's remaining tokens; their places in its grid, int64 [N, K],
            ascending; and per stage the attention that each of its tokens receives, float32.
        """
        own: list[torch.Tensor] = []
        hidden = self.tower.embeddings(pixel_values)
        if hasattr(self.tower, "pre_layrnorm"):
            hidden = self.tower.pre_layrnorm(hidden)
        count = hidden.shape[1] - self.skipped
        place = torch.arange(count, device=hidden.device).expand(hidden.shape[0], -1)
        for number, layer in enumerate(self.tower.encoder.layers[: self.layers]):
            if number not in self.kept:
                hidden = layer(hidden, attention_mask=None)
                continue
            mixed, received = layer.self_attn(layer.layer_norm1(hidden))
            score = received[:, self.skipped :]
            own.append(score)
            score = score if scores is None else scores[len(own) - 1]
            hidden, place = self._merge(hidden + mixed, score, place, self.kept[number])
            hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
        return hidden[:, self.skipped :], place, own

    def _merge(
        self, hidden: torch.Tensor, score: torch.Tensor, place: torch.Tensor, kept: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Shortens the image's tokens to `kept`: hidden [N, skipped + V, D], score and place [N, V]."""
        front, tokens = hidden[:, : self.skipped], hidden[:, self.skipped :]
        order = ranks(score)
        stays = (order < kept).to(torch.int64)
        numbers = torch.arange(order.shape[1], device=order.device).expand_as(order)
        # Those that stay first, each part in its order: a permutation, so no index is ever out of range.
        target = torch.where(stays != 0, stays.cumsum(1) - 1, kept - 1 + (1 - stays).cumsum(1))
        chosen = torch.zeros_like(numbers).scatter(1, target, numbers)[:, :kept]
        tokens = take(with_survivor(tokens, order, kept), chosen)
        return torch.cat([front, tokens], dim=1), take(place, chosen)
