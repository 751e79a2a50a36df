"""A decoder that drops nothing and hands out what each pruning stage would score by."""

from __future__ import annotations

import torch

from edgeprune.exporter.attention import PassingCache
from edgeprune.exporter.decoder import PrunedDecoder
from edgeprune.exporter.indexing import take
from edgeprune.plans import PruningPlan


class MeasuringDecoder(PrunedDecoder):
    """The layers of a language model up to the last one that scores, each watched where a stage scores by it.

    Every stage sees the whole prompt. So one forward pass measures all of them, every index has a value, and
    what an earlier stage happened to keep does not mix with where it stood.

    Args:
        text_model: as for `PrunedDecoder`; its later layers are let go.
        plan: at least one stage, each with a score layer of its own.
        image_token_id: as for `PrunedDecoder`.
        visual_tokens: of a picture.
    """

    def __init__(
        self, text_model: torch.nn.Module, plan: PruningPlan, image_token_id: int, visual_tokens: int
    ) -> None:
        last = max(stage.score_layer for stage in plan.stages if stage.score_layer is not None)
        text_model.layers = torch.nn.ModuleList(list(text_model.layers)[: last + 1])
        super().__init__(text_model, torch.nn.Identity(), plan, image_token_id, torch.ones(1), visual_tokens)
        self.scored = {stage.score_layer: number for number, stage in enumerate(plan.stages)}

    def measure(
        self,
        input_ids: torch.Tensor,
        visual_embeds: torch.Tensor,
        visual_index: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """The attention that each stage's scoring rows pay the visual tokens.

        Args:
            input_ids, attention_mask: int64 [B, S], padding on the left.
            visual_embeds: [B, V, D] in the model's dtype.
            visual_index: int64 [B, V].

        Returns:
            float32 [stages, B, V].
        """
        positions = (attention_mask.cumsum(1) - 1).clamp_min(0)
        nothing_past = attention_mask[:, :0]
        tokens, _ = self._begin(
            input_ids, visual_embeds, visual_index, positions, attention_mask, nothing_past
        )
        paid: list[torch.Tensor] = []
        for number, layer in enumerate(self.text_model.layers):
            # Nothing is dropped in front of a layer, so that one which scores by its own projections of what
            # reaches it sees the same as one whose attention is looked at.
            tap = self._tap(self.scored[number], tokens) if number in self.scored else None
            tokens.hidden = self._run(layer, tokens, tokens.mask, PassingCache(), tap)
            if tap is not None:
                assert tap.score is not None
                paid.append(take(tap.score, visual_index))
        return torch.stack(paid)
