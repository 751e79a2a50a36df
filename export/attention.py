"""The attention that exported decoder layers run, and the caches they see.

Hugging Face's own decoder layers are called one by one. Their attention is replaced through transformers'
attention registry, so no model code is copied: the function below computes plain matmul attention and,
where a pruning stage asks for it, hands out the attention paid by the scoring rows. Only those rows are
computed for the score; the attention of all rows stays a pattern that runtimes can fuse.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface

from edgeprune.exporter.indexing import take

NAME, TOWER_NAME = "edgeprune", "edgeprune-tower"
# transformers hands the segments of a whole run only to what has this word in its name; for others it loops.
SEGMENTS_NAME = "edgeprune-flash-segments"


@dataclass
class ScoreTap:
    """Receives the attention that the scoring rows pay the S current positions.

    Attributes:
        rows: int64 [B, R], positions of the scoring rows; None is the last one alone.
        weights: float32 [B, R], what each row counts.
        score: float32 [B, S], the rows' attention, mean over heads, weighted sum over rows.
    """

    rows: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    score: torch.Tensor | None = None


@dataclass
class LayerCaches:
    """Past keys and values per layer, each [B, kv heads, P, head dim].

    A layer calls `update`, which changes nothing; that past and new ones become one is left to `attention`.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    present_keys: list[torch.Tensor] = field(default_factory=list)
    present_values: list[torch.Tensor] = field(default_factory=list)
    added: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def update(
        self, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key, value

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of the next layer to its past and new keys: [B, S, H, d], and all its keys
        [B, kv heads, T, d].
        """
        layer = len(self.added)
        self.added.append((key, value))
        mixed, present_key, present_value = cached_attention(
            query, key, value, self.keys[layer], self.values[layer], mask, scaling
        )
        self.present_keys.append(present_key)
        self.present_values.append(present_value)
        return mixed, present_key

    def trim(self, index: torch.Tensor) -> None:
        """Of the new tokens only those at the positions [B, S'] stay in the caches of the layers so far."""
        for number, new in enumerate(self.added):
            key, value = (take(part.transpose(1, 2), index).transpose(1, 2) for part in new)
            self.present_keys[number] = torch.cat([self.keys[number], key], dim=2)
            self.present_values[number] = torch.cat([self.values[number], value], dim=2)


class PassingCache:
    """Stands for a layer's caches where its attention is only looked at: it keeps and adds nothing."""

    def update(
        self, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key, value

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As that of `LayerCaches`."""
        return attend(query, key, value, mask, scaling), key


def _probabilities(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float, heads: int
) -> torch.Tensor:
    """softmax(query key^T * scaling + mask), float32 [B, H, rows, T]; query is [B, H, rows, d]."""
    batch, _, rows, width = query.shape
    kv_heads = key.shape[1]
    # Heads that share a key head are folded into its rows, so that keys are never repeated.
    folded = (query * scaling).reshape(batch, kv_heads, heads // kv_heads * rows, width)
    scores = torch.matmul(folded, key.transpose(2, 3))
    scores = scores.reshape(batch, heads, rows, key.shape[2]).to(torch.float32)
    return torch.softmax(scores if mask is None else scores + mask, dim=-1)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    layer_caches: LayerCaches | PassingCache,
    scaling: float | None = None,
    score_tap: ScoreTap | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Grouped-query attention of new tokens to those in a cache and to themselves, with an additive float32
    mask [B, 1, S, T]; returns [B, S, H, d].
    """
    rows, width = query.shape[2:]
    scale = width**-0.5 if scaling is None else scaling
    mixed, keys = layer_caches.attend(query, key, value, attention_mask, scale)
    if score_tap is not None:
        score_tap.score = _scored(score_tap, query, keys, attention_mask, scale)[:, keys.shape[2] - rows :]
    return mixed, None


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Grouped-query attention [B, S, H, d] to keys and values [B, kv heads, T, d], of any dtype."""
    batch, heads, rows, width = query.shape
    kv_heads = key.shape[1]
    weights = _probabilities(query, key, mask, scaling, heads).to(value.dtype)
    folded = weights.reshape(batch, kv_heads, heads // kv_heads * rows, key.shape[2])
    mixed = torch.matmul(folded, value).reshape(batch, heads, rows, width)
    return mixed.transpose(1, 2)


@torch.library.custom_op("edgeprune::cached_attention", mutates_args=())
def cached_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past_key: torch.Tensor,
    past_value: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention of S new tokens to P cached ones and to themselves: one node in a traced graph, of which
    `edgeprune.exporter.cache_forms` makes what each runtime is to do.

    Args:
        query: [B, H, S, d].
        key, value: of the new tokens, [B, kv heads, S, d].
        past_key, past_value: [B, kv heads, P, d].
        mask: what is added to the scores, float32 [B, 1, S, P + S].
        scale: what they are multiplied by before.

    Returns:
        [B, S, H, d], and all keys and values, [B, kv heads, P + S, d].
    """
    keys = torch.cat([past_key, key], dim=2)
    values = torch.cat([past_value, value], dim=2)
    return attend(query, keys, values, mask, scale).contiguous(), keys, values


@cached_attention.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past_key: torch.Tensor,
    past_value: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, heads, rows, width = query.shape
    mixed = query.new_empty(batch, rows, heads, width)
    return mixed, torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)


def _scored(
    tap: ScoreTap, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """The scoring rows' attention to all T keys, float32 [B, T]."""
    heads = query.shape[1]
    if tap.rows is None:
        return _probabilities(query[:, :, -1:], key, mask[:, :, -1:], scaling, heads).mean(dim=1)[:, 0]
    assert tap.weights is not None
    asking = take(query.transpose(1, 2), tap.rows).transpose(1, 2)
    seen = take(mask[:, 0], tap.rows).unsqueeze(1)
    paid = _probabilities(asking, key, seen, scaling, heads).mean(dim=1)
    return (paid * tap.weights.unsqueeze(-1)).sum(dim=1)


def tower_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A vision tower's attention, every row to every key; there is no mask.

    Returns:
        [N, S, H, d], and where transformers has weights the attention that each position receives, the mean
        over heads and rows, float32 [N, S].
    """
    weights = _probabilities(query, key, None, scaling, query.shape[1])
    mixed = torch.matmul(weights.to(value.dtype), value)
    return mixed.transpose(1, 2), weights.mean(dim=(1, 2))


@dataclass(frozen=True)
class Segments:
    """Which patches of a vision tower see each other.

    Attributes:
        slots: int64 [segments, slots], the rows of each segment; -1 fills up.
        place: int64 [rows], where in the slots of all segments each row stands.
        patches: of a row.
    """

    slots: torch.Tensor
    place: torch.Tensor
    patches: int


def segment_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    cu_seq_lens_q: Segments,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """A vision tower's attention within segments; query, key and value [1, H, P, d] become [1, P, H, d].

    Segments stand side by side as a batch, so that a layer costs segments x slots x slots, and no shape
    depends on data.
    """
    slots, patches = cu_seq_lens_q.slots, cu_seq_lens_q.patches

    def grouped(tensor: torch.Tensor) -> torch.Tensor:
        rows = tensor[0].transpose(0, 1).unflatten(0, (-1, patches))
        return rows[slots.clamp_min(0)].flatten(1, 2).transpose(1, 2)

    filled = (slots >= 0).unsqueeze(2).expand(-1, -1, patches).flatten(1)
    mask = torch.where(filled, 0.0, torch.finfo(torch.float32).min).to(torch.float32)
    query, key, value = grouped(query), grouped(key), grouped(value)
    weights = _probabilities(query, key, mask.unsqueeze(1).unsqueeze(1), scaling, query.shape[1])
    mixed = torch.matmul(weights.to(value.dtype), value).transpose(1, 2).unflatten(1, (-1, patches))
    return mixed.flatten(0, 1)[cu_seq_lens_q.place].flatten(0, 1).unsqueeze(0), None


AttentionInterface.register(NAME, attention)
AttentionInterface.register(SEGMENTS_NAME, segment_attention)
AttentionInterface.register(TOWER_NAME, tower_attention)


def use_edgeprune_attention(layers: Any, config: Any) -> None:
    """Makes every decoder layer call `attention`."""
    config._attn_implementation = NAME
    for layer in layers:
        layer.self_attn.config._attn_implementation = NAME
