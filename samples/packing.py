"""Many questions about one picture in one row, each answered as if it stood alone.

Reading 146 tokens of picture for one question of six words would waste most of a training step. A row is
therefore a prefix (the prompt up to the end of the picture) followed by several questions. Each question
sees the prefix and itself, never another question, and its positions go on right after the prefix. To the
model this equals as many prompts with one question each.

In training the first layers read a decoy: there, the questions see the picture of another row. What they
find in it is worthless, so the decoder learns to look the answer up in the later layers, from the visual
tokens themselves. Without the decoy the very first layer fetches every answer, and no visual token would
be needed after it: pruning could then throw away anything without harm, which no large model allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

IGNORED = -100
DECOY_LAYERS = 2
"""How many layers read the decoy, unless another number is given."""


class AskedIds(NamedTuple):
    """Token ids of a question up to and including ASSISTANT:, and of its one-word answer."""

    question: list[int]
    answer: int


@dataclass(frozen=True)
class Packed:
    """B rows of S tokens, the first P of them the prefix.

    Attributes:
        ids: int64 [B, S].
        positions: int64 [B, S].
        mask: bool [B, S, S], True where a query (dimension 1) may see a key (dimension 2).
        labels: int64 [B, S], the next token where an answer or its end is due, IGNORED elsewhere.
        answers: bool [B, S], True where an answer is due, which is at ASSISTANT:.
        prefix: P.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    answers: torch.Tensor
    prefix: int


@dataclass(frozen=True)
class Outcome:
    """What a forward pass over packed rows gave.

    Attributes:
        loss: scalar, mean cross-entropy over answers and their ends.
        right: bool [A], for every question whether its answer is the likeliest of all words.
    """

    loss: torch.Tensor
    right: torch.Tensor


def pack(prefix: list[int], rows: list[list[AskedIds]], end_id: int, padding_id: int) -> Packed:
    """Lays out rows of questions behind one prefix, padded at the end to the longest row."""
    first = len(prefix)
    width = first + max(sum(len(asked.question) + 1 for asked in row) for row in rows)
    shape = (len(rows), width)
    ids = torch.full(shape, padding_id)
    ids[:, :first] = torch.tensor(prefix)
    positions = torch.arange(width).repeat(len(rows), 1)
    part = torch.full(shape, -1)
    part[:, :first] = 0
    labels = torch.full(shape, IGNORED)
    answers = torch.zeros(shape, dtype=torch.bool)
    for row, questions in enumerate(rows):
        start = first
        for number, (question, answer) in enumerate(questions, start=1):
            stop = start + len(question) + 1
            ids[row, start:stop] = torch.tensor([*question, answer])
            positions[row, start:stop] = torch.arange(first, first + stop - start)
            part[row, start:stop] = number
            labels[row, stop - 2] = answer
            labels[row, stop - 1] = end_id
            answers[row, stop - 2] = True
            start = stop
    query, key = part[:, :, None], part[:, None, :]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    return Packed(ids, positions, causal & ((key == 0) | (key == query)), labels, answers, first)


def answer(model: LlavaForConditionalGeneration, batch: Packed, visual: torch.Tensor) -> Outcome:
    """The model as it is used: every layer sees the row's own picture.

    Args:
        model: the model, in the mode the caller set.
        batch: B packed rows with V <image> tokens each.
        visual: float32 [B, V, D], the projected visual tokens of one picture per row.
    """
    hidden = model.model.language_model(
        inputs_embeds=_embed(model, batch, visual),
        attention_mask=batch.mask[:, None],
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    return _outcome(model, batch, hidden)


def answer_with_decoy(
    model: LlavaForConditionalGeneration, batch: Packed, visual: torch.Tensor, layers: int = DECOY_LAYERS
) -> Outcome:
    """As `answer`, but in the first `layers` layers the questions see the picture of the row before.

    The decoy stands between prefix and questions, at the prefix's own positions; nothing else sees it.
    """
    decoder, first = model.model.language_model, batch.prefix
    embeds = _embed(model, batch, visual)
    hidden = torch.cat([embeds[:, :first], embeds[:, :first].roll(1, 0), embeds[:, first:]], 1)
    own = batch.positions[:, :first]
    positions = torch.cat([own, own.roll(1, 0), batch.positions[:, first:]], 1)
    rotary = decoder.rotary_emb(hidden, positions)
    early_mask, late_mask = _decoy_mask(batch, decoy=True), _decoy_mask(batch, decoy=False)
    for index, layer in enumerate(decoder.layers):
        hidden = layer(
            hidden,
            attention_mask=early_mask if index < layers else late_mask,
            position_ids=positions,
            position_embeddings=rotary,
        )
    hidden = decoder.norm(torch.cat([hidden[:, :first], hidden[:, 2 * first :]], 1))
    return _outcome(model, batch, hidden)


def _embed(model: LlavaForConditionalGeneration, batch: Packed, visual: torch.Tensor) -> torch.Tensor:
    places = batch.ids == model.config.image_token_id
    return model.get_input_embeddings()(batch.ids).masked_scatter(places[:, :, None], visual)


def _decoy_mask(batch: Packed, decoy: bool) -> torch.Tensor:
    """The mask, bool [B, 1, P + S, P + S], for rows of prefix, decoy and questions."""
    first, (rows, width) = batch.prefix, batch.ids.shape
    mask = torch.zeros(rows, first + width, first + width, dtype=torch.bool)
    mask[:, :first, :first] = mask[:, first : 2 * first, first : 2 * first] = batch.mask[:, :first, :first]
    mask[:, 2 * first :, 2 * first :] = batch.mask[:, first:, first:]
    seen = slice(first, 2 * first) if decoy else slice(0, first)
    mask[:, 2 * first :, seen] = batch.mask[:, first:, :first]
    return mask[:, None]


def _outcome(model: LlavaForConditionalGeneration, batch: Packed, hidden: torch.Tensor) -> Outcome:
    due = batch.labels != IGNORED
    logits, labels = model.lm_head(hidden[due]), batch.labels[due]
    right = logits.argmax(-1) == labels
    return Outcome(F.cross_entropy(logits, labels), right[batch.answers[due]])
