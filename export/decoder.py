"""The pruned decoder: a Hugging Face language model's layers with pruning stages between them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from edgeprune.exporter.attention import LayerCaches, PassingCache, ScoreTap, use_edgeprune_attention
from edgeprune.exporter.indexing import is_visual, length, remaining_visual, spread, take
from edgeprune.exporter.merging import Means, absorb, append, carve, recycle
from edgeprune.exporter.op import debiased_token_prune, effective_score
from edgeprune.exporter.scoring import rater_weights, score_tap
from edgeprune.plans import Merge, Positions, PruningPlan, Ranking, ScoringRows, random_scores


@dataclass
class _Sequence:
    """The tokens between two layers: what a stage shortens.

    Attributes:
        hidden: [B, S, D].
        position_ids: int64 [B, S], or [axes, B, S].
        attention_mask: int64 [B, S].
        visual_index: int64 [B, V], where the visual tokens stand.
        deepstack: [B, V, D] for each of the first layers, what is added behind it to the visual tokens.
        raters: float32 [B, S], weights of the rating text tokens, where a stage asks for them.
        image: int64 [B, S], the image a token belongs to, from 1 on, or 0; where these attend both ways.
        views: what the layers of each kind see of them.
    """

    hidden: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor
    visual_index: torch.Tensor
    deepstack: list[torch.Tensor]
    raters: torch.Tensor | None
    image: torch.Tensor | None
    views: dict[str, _View] = field(default_factory=dict)


@dataclass(frozen=True)
class _View:
    """What the layers of one kind see: cosine and sine of the positions, and an additive mask, float32
    [B, 1, S, P + S].
    """

    rotary: tuple[torch.Tensor, torch.Tensor]
    mask: torch.Tensor


class PrunedDecoder(nn.Module):
    """One graph for prefill and decode.

    Layers fall into groups by the number of pruning stages before them; every group has its own past
    length and its own key mask. A decode step is the same graph with one token and no visual tokens,
    where every stage is the identity.

    Args:
        text_model: the language model without head (`embed_tokens`, `layers`, `norm`, `rotary_emb`).
        lm_head: maps hidden states to logits.
        plan: the pruning stages.
        image_token_id: the token whose embeddings are replaced by visual embeddings.
        bias_curve: float32 [1 + N], the graph's constant: 1, then the curve's weights.
        most_visual: the largest number of visual tokens in a prompt.
        two_way: whether the visual tokens of an image see each other whatever their order.
    """

    # Parts of models that Hugging Face's classes have no types for.
    text_model: Any
    lm_head: Any

    def __init__(
        self,
        text_model: nn.Module,
        lm_head: nn.Module,
        plan: PruningPlan,
        image_token_id: int,
        bias_curve: torch.Tensor,
        most_visual: int,
        two_way: bool = False,
    ) -> None:
        super().__init__()
        self.two_way = two_way
        config: Any = text_model.config
        self.windows = layer_windows(config)
        self.windowed = any(window is not None for window in self.windows)
        # Layers of a kind share window and, in some models, the base of their rotary embedding.
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(self.windows)
        self.kinds = [f"{kind} {window}" for kind, window in zip(kinds, self.windows, strict=True)]
        rotary: Any = text_model.rotary_emb
        self.rotary_by_kind = "layer_type" in inspect.signature(rotary.forward).parameters
        self.text_model = text_model
        self.lm_head = lm_head
        self.plan = plan
        self.image_token_id = image_token_id
        self.stages = {stage.layer: number for number, stage in enumerate(plan.stages)}
        # A layer that scores the stage right before it is looked at there, with its projections alone.
        self.score_layers = {
            stage.score_layer: number
            for number, stage in enumerate(plan.stages)
            if stage.score_layer is not None and stage.score_layer < stage.layer
        }
        self.rated = any(stage.rows is ScoringRows.RATERS for stage in plan.stages)
        for name, value in self.constants(plan, bias_curve, most_visual).items():
            self.register_buffer(name, value, persistent=False)
        # transformers renamed the keyword on its way from 5.0 to 5.40.
        known = inspect.signature(type(self.text_model.layers[0]).forward).parameters
        self.cache_keyword = "cache" if "cache" in known else "past_key_values"
        use_edgeprune_attention(self.text_model.layers, self.text_model.config)

    @staticmethod
    def constants(plan: PruningPlan, bias_curve: torch.Tensor, most_visual: int) -> dict[str, torch.Tensor]:
        """The buffers that belong to the plan and not to the model, by name; see the class."""
        found = {"bias_curve": bias_curve} if plan.prunes else {}
        for number, stage in enumerate(plan.stages):
            if stage.ranking is Ranking.RANDOM:
                scores = torch.from_numpy(random_scores(stage.seed, most_visual))
                found[f"random_scores_{number}"] = scores.to(bias_curve.device)
        return found

    @property
    def groups(self) -> int:
        return len(self.plan.stages) + 1

    def forward(
        self,
        input_ids: torch.Tensor,
        visual_embeds: torch.Tensor,
        visual_index: torch.Tensor,
        visual_valid: torch.Tensor,
        curve_place: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        deepstack: Sequence[torch.Tensor],
        kept_slots: Sequence[torch.Tensor],
        past_masks: Sequence[torch.Tensor],
        past_keys: Sequence[torch.Tensor],
        past_values: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Runs the decoder on S new tokens.

        Args:
            input_ids: int64 [B, S].
            visual_embeds: [B, V, D] in the model's dtype; V counts a row's image tokens.
            visual_index: int64 [B, V].
            visual_valid: float32 [B, V], 0 where a visual token stands behind all others.
            curve_place: int64 [B, V], the entry of the bias curve that each of them reads; entry 0 is 1.
            position_ids: int64 [B, S], or [axes, B, S], positions in the unpruned sequence.
            attention_mask: int64 [B, S], 0 where a token is left padding.
            deepstack: for each of the first layers, [B, V, D], what is added behind it to the visual tokens.
            kept_slots: per stage, int64 [1, K], whose length is how many visual tokens it keeps.
            past_masks: per group, int64 [B, P of the group], 0 for padding, else 1; where layers have windows
                1 + the token's position.
            past_keys, past_values: per layer, [B, kv heads, P of its group, head dim].

        Returns:
            logits float32 [B, vocab] of the last position; per stage kept_index int64 [B, S'] and score
            float32 [B, S]; per group the mask int64 [B, P + S']; per layer keys, then values.
        """
        caches = LayerCaches(list(past_keys), list(past_values))
        tokens, present = self._begin(
            input_ids, visual_embeds, visual_index, position_ids, attention_mask, deepstack, past_masks[0]
        )
        present_masks = [present]
        scores: list[torch.Tensor] = []
        kept: list[torch.Tensor] = []
        taps: dict[int, ScoreTap] = {}
        weights = self.get_buffer("bias_curve")[curve_place] * visual_valid if self.stages else visual_valid
        for number in range(len(self.text_model.layers)):
            if number in self.stages:
                stage = self.stages[number]
                slots, weight = kept_slots[stage], _weight(stage, weights, tokens.visual_index)
                score = self._score(stage, tokens, taps.get(stage))
                if self.plan.stages[stage].ranking is Ranking.RANK_FUSION:
                    score = self._carve(tokens, score, weight, length(slots))
                    weight = torch.ones_like(weight)
                index, present = self._prune(stage, tokens, score, weight, slots, past_masks[stage + 1])
                scores.append(score)
                kept.append(index)
                present_masks.append(present)
                if self.plan.trims_earlier_caches:
                    caches.trim(index)
                    now = self._marks(tokens)
                    earlier = past_masks[: stage + 1]
                    present_masks[:-1] = [torch.cat([past, now], dim=1) for past in earlier]
            tap = None
            if number in self.score_layers:
                tap = taps[self.score_layers[number]] = self._tap(self.score_layers[number], tokens)
            tokens.hidden = self._run(number, tokens, caches, tap)
            self._deepen(tokens, number)
        # Not [:, -1]: TensorRT for RTX 1.7 fails to compile Gemma 3's layers behind a stage with it.
        last = tokens.hidden.select(1, tokens.hidden.shape[1] - 1)
        logits = self.lm_head(self.text_model.norm(last)).to(torch.float32)
        return (logits, *kept, *scores, *present_masks, *caches.present_keys, *caches.present_values)

    def _begin(
        self,
        input_ids: torch.Tensor,
        visual_embeds: torch.Tensor,
        visual_index: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        deepstack: Sequence[torch.Tensor],
        past_mask: torch.Tensor,
    ) -> tuple[_Sequence, torch.Tensor]:
        """The tokens as the first layer gets them, and the first group's key mask."""
        hidden = self._embed(input_ids, visual_embeds)
        raters = rater_weights(hidden, visual_index, attention_mask) if self.rated else None
        image = _image_numbers(visual_index, attention_mask) if self.two_way else None
        tokens = _Sequence(hidden, position_ids, attention_mask, visual_index, list(deepstack), raters, image)
        return tokens, self._enter_group(tokens, past_mask)

    def _run(
        self,
        number: int,
        tokens: _Sequence,
        caches: LayerCaches | PassingCache,
        tap: ScoreTap | None,
        *,
        alone: bool = False,
    ) -> torch.Tensor:
        """Runs a layer; `alone` on the new tokens, without those in its cache."""
        view = tokens.views[self.kinds[number]]
        mask = view.mask[..., view.mask.shape[-1] - tokens.hidden.shape[1] :] if alone else view.mask
        found: torch.Tensor = self.text_model.layers[number](
            tokens.hidden,
            attention_mask=mask,
            # Layers read one number per token, and only where positions are counted anew for each sequence.
            position_ids=tokens.position_ids if tokens.position_ids.dim() == 2 else None,
            use_cache=True,
            position_embeddings=view.rotary,
            score_tap=tap,
            layer_caches=caches,
            **{self.cache_keyword: caches},
        )
        return found

    def _deepen(self, tokens: _Sequence, layer: int) -> None:
        """Adds a level of deepstack behind a layer that has one."""
        if layer < len(tokens.deepstack):
            visual = tokens.deepstack[layer].to(tokens.hidden.dtype)
            tokens.hidden = tokens.hidden + spread(visual, tokens.visual_index, tokens.attention_mask)

    def _tap(self, stage: int, tokens: _Sequence) -> ScoreTap:
        return score_tap(
            self.plan.stages[stage].rows, tokens.visual_index, tokens.attention_mask, tokens.raters
        )

    def _score(self, stage: int, tokens: _Sequence, tap: ScoreTap | None) -> torch.Tensor:
        """What a stage's visual tokens are ranked by, float32 [B, S]."""
        planned = self.plan.stages[stage]
        if planned.ranking is Ranking.RANDOM:
            table = self.get_buffer(f"random_scores_{stage}")
            visual = tokens.visual_index
            return spread(table[: visual.shape[1]].expand(visual.shape[0], -1), visual, tokens.attention_mask)
        if tap is None:
            tap = self._tap(stage, tokens)
            # Of the layer, only what the scores need stays in the graph. Its cache is pruned already, so it
            # sees the new tokens alone: all of them in a prefill, and a decode step selects nothing.
            self._run(planned.layer, tokens, PassingCache(), tap, alone=True)
        assert tap.score is not None
        return tap.score

    def _carve(
        self, tokens: _Sequence, attention: torch.Tensor, weight: torch.Tensor, kept: torch.Tensor
    ) -> torch.Tensor:
        """Makes attention a fused rank, float32 [B, S], and merges dropped tokens before the selection."""
        visual = tokens.visual_index
        paid = effective_score(take(attention, visual), weight)
        carved = carve(tokens.hidden, paid, visual, tokens.attention_mask, kept)
        tokens.hidden = carved.hidden
        return carved.score

    def _prune(
        self,
        stage: int,
        tokens: _Sequence,
        score: torch.Tensor,
        weight: torch.Tensor,
        slots: torch.Tensor,
        past_mask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Shortens the tokens; returns the kept positions int64 [B, S'] and the group's key mask."""
        planned = self.plan.stages[stage]
        before, visual, hidden = tokens.attention_mask, tokens.visual_index, tokens.hidden
        if planned.merge is Merge.SURVIVOR:
            effective = effective_score(take(score, visual), weight)
            hidden = absorb(hidden, effective, visual, before, length(slots))
        pruned, index = debiased_token_prune(hidden, score, visual, weight, slots)
        if planned.merge is Merge.RECYCLE:
            index = self._append(tokens, recycle(hidden, score, visual, index, before), pruned, index)
        else:
            tokens.hidden = pruned
            tokens.attention_mask = before.gather(1, index)
            if tokens.image is not None:
                tokens.image = tokens.image.gather(1, index)
            if tokens.raters is not None:
                tokens.raters = tokens.raters.gather(1, index)
            ahead = len(tokens.deepstack) > planned.layer
            if ahead or stage + 1 < len(self.plan.stages):
                tokens.visual_index = remaining_visual(index, visual, before)
            if ahead:
                number = is_visual(visual, before).cumsum(1) - 1
                stays = take(number, take(index, tokens.visual_index))
                tokens.deepstack = [take(level, stays) for level in tokens.deepstack]
        tokens.position_ids = _gathered(tokens.position_ids, index)
        if self.plan.positions is Positions.RENUMBERED:
            earlier = past_mask.sum(1, keepdim=True)
            tokens.position_ids = (earlier + tokens.attention_mask.cumsum(1) - 1).clamp_min(0)
        return index, self._enter_group(tokens, past_mask)

    def _append(
        self, tokens: _Sequence, means: Means, pruned: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """Makes the tokens the pruned ones and the means behind their last visual token.

        Returns:
            int64 [B, S' + c]: for every token the position it had, for a mean that of its centre.
        """
        place = append(means.centres, tokens.visual_index, index, tokens.attention_mask)
        tokens.hidden = place.join(pruned, means.hidden)
        tokens.attention_mask = place.join(
            tokens.attention_mask.gather(1, index), torch.ones_like(means.centres)
        )
        if tokens.raters is not None:
            never = torch.zeros_like(means.centres, dtype=torch.float32)
            tokens.raters = place.join(tokens.raters.gather(1, index), never)
        tokens.visual_index = place.visual_index
        return place.join(index, means.centres)

    def _embed(self, input_ids: torch.Tensor, visual_embeds: torch.Tensor) -> torch.Tensor:
        """Embeds tokens and puts the n-th visual embedding in the place of the n-th image token."""
        text = self.text_model.embed_tokens(input_ids)
        is_image_token = (input_ids == self.image_token_id).to(torch.int64)
        count = is_image_token.cumsum(1)
        # Beyond the V-th the token is one that the model itself made, and stays text.
        stands_for = (is_image_token != 0) & (count <= visual_embeds.shape[1])
        # A gather instead of a scatter: it needs one spare row (for text, and for V = 0) and no dynamic size.
        spare = torch.zeros_like(text[:, :1])
        visual = torch.cat([spare, visual_embeds.to(text.dtype)], dim=1)
        rank = count * stands_for.to(torch.int64)
        rows = torch.arange(rank.shape[0], device=rank.device).unsqueeze(1)
        return torch.where(stands_for.unsqueeze(-1), visual[rows, rank], text)

    def _marks(self, tokens: _Sequence) -> torch.Tensor:
        """Of the new tokens what the key mask holds, int64 [B, S]."""
        if not self.windowed:
            return tokens.attention_mask
        return tokens.attention_mask * (tokens.position_ids + 1)

    def _enter_group(self, tokens: _Sequence, past_mask: torch.Tensor) -> torch.Tensor:
        """Makes the views of a group of layers; returns its key mask, int64 [B, P + S]."""
        own = self._marks(tokens)
        present = torch.cat([past_mask, own], dim=1)
        past, total = past_mask.shape[1], present.shape[1]
        columns = torch.arange(total, device=own.device)
        rows = torch.arange(own.shape[1], device=own.device) + past
        seen = (columns.unsqueeze(0) <= rows.unsqueeze(1)).unsqueeze(0)
        if tokens.image is not None:
            images = torch.cat([torch.zeros_like(past_mask), tokens.image], dim=1).unsqueeze(1)
            mine = tokens.image.unsqueeze(2)
            seen = seen | ((mine == images) & (mine != 0))
        allowed = seen & (present != 0).unsqueeze(1)
        tokens.views = {}
        for kind, window in dict(zip(self.kinds, self.windows, strict=True)).items():
            near = allowed
            if window is not None:
                near = allowed & (own.unsqueeze(2) - present.unsqueeze(1) < window)
            # Finite, so that a row of pure padding stays finite too.
            mask = torch.where(near, 0.0, torch.finfo(torch.float32).min).to(torch.float32).unsqueeze(1)
            by_kind = {"layer_type": kind.split()[0]} if self.rotary_by_kind else {}
            rotary = self.text_model.rotary_emb(tokens.hidden, tokens.position_ids, **by_kind)
            tokens.views[kind] = _View(rotary, mask)
        return present


# Their code has one window for all layers, whatever the config's `layer_types` say.
_ONE_WINDOW = ("mistral", "phi3")


def layer_windows(config: Any) -> tuple[int | None, ...]:
    """Of each layer of a text model how many tokens it sees, itself included; None for all.

    Windows count tokens of the unpruned sequence. One as long as the model's positions hides nothing.
    """
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True) or (window or 0) >= config.max_position_embeddings:
        window = None
    named = None if config.model_type in _ONE_WINDOW else getattr(config, "layer_types", None)
    kinds = named or ["sliding_attention"] * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _image_numbers(visual_index: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Which run of visual tokens each token belongs to, int64 [B, S], from 1 on; 0 for text."""
    marks = is_visual(visual_index, attention_mask)
    before = torch.cat([torch.zeros_like(marks[:, :1]), marks[:, :-1]], dim=1)
    return (marks * (1 - before)).cumsum(1) * marks


def _gathered(position_ids: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Position ids [B, S] or [axes, B, S] at the positions [B, S']."""
    if position_ids.dim() == 2:
        return position_ids.gather(1, index)
    return position_ids.gather(2, index.unsqueeze(0).expand(position_ids.shape[0], -1, -1))


def _weight(stage: int, weights: torch.Tensor, visual_index: torch.Tensor) -> torch.Tensor:
    """What a stage's scores are multiplied by, float32 [B, V of the stage].

    The weights [B, V] count as long as all visual tokens are there; what an earlier stage has selected is
    selected from as it is.
    """
    if stage == 0:
        return weights
    number = torch.ones_like(visual_index).cumsum(1) - 1
    return torch.where(length(visual_index) == length(weights), take(weights, number), 1.0)
