"""Every pruning method as a plain loop over one prompt, written from its description alone.

Nothing here comes from the exporter: Hugging Face's own layers run on the whole sequence in every step, with
no caches, no batch and no left padding; attention is what their eager attention returns; tokens are dropped
and merged by indexing. Numbers of tokens are given, not computed from a plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from tests.export.reference import in_window


@dataclass(frozen=True)
class Recipe:
    """A method with its numbers.

    Attributes:
        method: its name.
        layers: selections are before these.
        counts: visual tokens that each keeps.
        curve: bias curve weights of the visual tokens. They, and the padding mask, act on a selection that
            all visual tokens reach: the first one, and those behind it as long as none has dropped any.
        random: the scores of random pruning.
    """

    method: str
    layers: tuple[int, ...]
    counts: tuple[int, ...]
    curve: torch.Tensor
    random: torch.Tensor | None = None

    @property
    def renumbers(self) -> bool:
        return self.method in ("pyramiddrop", "sparsevlm")


@dataclass
class Outcome:
    """Greedy tokens, logits [steps, vocab], and for each selection the origin of every token behind it.

    An origin is a position in the sequence that reached the selection; a mean of several has its centre's.
    """

    tokens: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    kept: list[list[int]] = field(default_factory=list)

    def stacked(self) -> torch.Tensor:
        return torch.stack(self.logits)


class _Prompt:
    """One prompt on its way through the layers, with the new tokens behind it."""

    def __init__(self, hidden: torch.Tensor, visual: list[int], prompt: int) -> None:
        self.hidden = hidden
        self.positions = torch.arange(len(hidden))
        self.visual = visual
        self.all_visual = len(visual)
        self.prompt = prompt
        self.text_before = visual[0]

    @property
    def new(self) -> int:
        return len(self.hidden) - self.prompt


@torch.no_grad()
def generate(
    model: LlavaForConditionalGeneration,
    ids: torch.Tensor,
    visual_embeds: torch.Tensor,
    valid: torch.Tensor,
    recipe: Recipe,
    steps: int,
) -> Outcome:
    """Greedy decoding of one prompt.

    Args:
        model: with eager attention.
        ids: int64 [S], without padding.
        visual_embeds: [V, D].
        valid: float32 [V].
    """
    decoder, outcome = model.model.language_model, Outcome()
    visual = [n for n, token in enumerate(ids.tolist()) if token == model.config.image_token_id]
    for step in range(steps):
        new = torch.tensor(outcome.tokens, dtype=torch.int64)
        hidden = model.get_input_embeddings()(torch.cat([ids, new]))
        hidden[visual] = visual_embeds
        state = _Prompt(hidden, list(visual), len(ids))
        raters = find_raters(hidden[: len(ids)], visual)
        attention: dict[int, torch.Tensor] = {}
        # TokenCarve cuts the first layers' caches too: new tokens never see what was dropped there.
        forgotten = []
        if recipe.method == "tokencarve" and step:
            forgotten = [i for i in range(len(ids)) if i not in set(outcome.kept[0])]
        for number in range(len(decoder.layers)):
            if number in recipe.layers:
                stage = recipe.layers.index(number)
                origin = _select(model, state, recipe, stage, attention, raters, valid)
                if step == 0:
                    outcome.kept.append(origin)
                forgotten = []
            state.hidden, attention[number] = _layer(model, number, state, forgotten)
        logits = model.lm_head(decoder.norm(state.hidden[-1])).float()
        outcome.logits.append(logits)
        outcome.tokens.append(int(logits.argmax()))
    return outcome


def _layer(
    model: Any, number: int, state: _Prompt, forgotten: Sequence[int] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states behind a layer, and its attention, mean over heads, float32 [n, n]."""
    decoder = model.model.language_model
    caught: list[torch.Tensor] = []
    layer = decoder.layers[number]
    hook = layer.self_attn.register_forward_hook(lambda *call: caught.append(call[2][1]))
    size = len(state.hidden)
    seen = torch.ones(size, size, dtype=torch.bool).tril()
    seen[state.prompt :, list(forgotten)] = False
    seen &= in_window(decoder.config, number, state.positions[None])[0]
    mask = torch.zeros(1, 1, size, size, dtype=state.hidden.dtype)
    mask = mask.masked_fill(~seen, torch.finfo(state.hidden.dtype).min)
    positions = state.positions[None]
    out = layer(
        state.hidden[None],
        attention_mask=mask,
        position_ids=positions,
        position_embeddings=decoder.rotary_emb(state.hidden[None], positions),
    )
    hook.remove()
    return out[0], caught[0][0].float().mean(0)


def find_raters(embeds: torch.Tensor, visual: list[int]) -> list[int]:
    """Distances from the end of the prompt, so that they hold when tokens before are dropped."""
    text = range(visual[-1] + 1, len(embeds))
    likeness = embeds[visual].float() @ embeds[list(text)].float().T
    received = likeness.softmax(dim=1).mean(dim=0)
    found = [t for t, value in zip(text, received, strict=True) if value > received.mean()]
    return [t - len(embeds) for t in (found or text)]


def _best(score: torch.Tensor, valid: torch.Tensor | None = None) -> list[int]:
    """Indices, best first; padded tokens last; equal ones by index."""
    keyed = score.double() if valid is None else torch.where(valid == 0, -torch.inf, score.double())
    return [int(i) for i in np.argsort(-keyed.numpy(), kind="stable")]


def _score(
    model: Any,
    state: _Prompt,
    recipe: Recipe,
    stage: int,
    attention: dict[int, torch.Tensor],
    raters: list[int],
) -> torch.Tensor:
    layer, n, visual = recipe.layers[stage], state.prompt, state.visual
    if recipe.method == "random":
        assert recipe.random is not None
        return recipe.random[: len(visual)]
    if recipe.method == "pyramiddrop":
        return _layer(model, layer, state)[1][n - 1, visual]
    paid = attention[layer - 1]
    if recipe.method == "himap":
        rows = list(range(visual[-1] + 1, n)) if stage == 0 else visual
        return paid[rows][:, visual].sum(0)
    if recipe.method == "sparsevlm":
        return paid[[n + r for r in raters]][:, visual].mean(0)
    return paid[n - 1, visual]


def _select(
    model: Any,
    state: _Prompt,
    recipe: Recipe,
    stage: int,
    attention: dict[int, torch.Tensor],
    raters: list[int],
    valid: torch.Tensor,
) -> list[int]:
    """Shortens the state; returns the origin of every prompt token that is left."""
    visual, count = state.visual, recipe.counts[stage]
    raw = _score(model, state, recipe, stage, attention, raters)
    whole = len(visual) == state.all_visual
    if whole and recipe.method != "random":
        order = _best(raw * recipe.curve[: len(visual)], valid)
    else:
        order = _best(raw, valid if whole else None)
    appended: list[int] = []
    means: list[torch.Tensor] = []
    hidden = state.hidden.clone()
    if recipe.method == "tokencarve":
        chosen, merges = carve_by_loops(hidden[visual], order, count)
        for target, sources in merges.items():
            members = [visual[i] for i in (target, *sources)]
            hidden[visual[target]] = state.hidden[members].float().mean(0).to(hidden.dtype)
    else:
        chosen = sorted(order[:count])
    if recipe.method == "illava-decoder":
        members = [visual[i] for i in order[count - 1 :]]
        weights = torch.arange(1, len(members) + 1).float()
        mean = (weights[:, None] * state.hidden[members].float()).sum(0) / weights.sum()
        hidden[members[0]] = mean.to(hidden.dtype)
    if recipe.method == "sparsevlm" and count < len(visual):
        centres, means = recycle_by_loops(
            state.hidden, [visual[i] for i in sorted(order[count:])], raw, visual
        )
        appended = centres
    stays = [visual[i] for i in chosen]
    before = list(range(visual[0]))
    behind = [i for i in range(visual[0], state.prompt) if i not in set(visual)]
    # With several images, text stands between visual tokens: order by position, means behind the last one.
    last = stays[-1]
    front = sorted(before + [i for i in behind if i < last] + stays)
    back = [i for i in behind if i > last]
    origin = front + appended + back
    new = list(range(state.prompt, len(state.hidden)))
    rows = [hidden[i] for i in front] + means + [hidden[i] for i in back + new]
    at = {position: place for place, position in enumerate(origin)}
    state.hidden = torch.stack(rows)
    state.positions = state.positions[origin + new]
    if recipe.renumbers:
        state.positions = torch.arange(len(rows))
    state.visual = [at[i] for i in stays] + [at[i] for i in appended]
    state.prompt = len(origin)
    return origin


def carve_by_loops(
    hidden: torch.Tensor, by_attention: list[int], count: int
) -> tuple[list[int], dict[int, list[int]]]:
    """TokenCarve: which visual tokens stay, and which others are averaged into them."""
    left, values, _ = torch.linalg.svd(hidden.double(), full_matrices=False)
    information = (left @ torch.diag(values)).abs().sum(1)
    by_information = _best(information)
    total = len(hidden)
    fused = [
        0.5 * (total - by_attention.index(i)) + 0.5 * (total - by_information.index(i)) for i in range(total)
    ]
    best = sorted(range(total), key=lambda i: (-fused[i], i))[: min(total, int(1.5 * count))]
    half = int(0.5 * len(best))
    targets, others = best[:half], best[half:]
    unit = hidden.double() / hidden.double().norm(dim=1, keepdim=True)
    closest = {i: max((float(unit[i] @ unit[j]), j) for j in targets) for i in others}
    merged = sorted(others, key=lambda i: -closest[i][0])[: len(best) - count]
    merges: dict[int, list[int]] = {}
    for i in merged:
        merges.setdefault(closest[i][1], []).append(i)
    return sorted(set(best) - set(merged)), merges


def recycle_by_loops(
    hidden: torch.Tensor, pruned: list[int], raw: torch.Tensor, visual: list[int]
) -> tuple[list[int], list[torch.Tensor]]:
    """SparseVLM: the centres' positions and the means of the clusters."""
    by_score = sorted(pruned, key=lambda position: (-float(raw[visual.index(position)]), position))
    tokens = by_score[: int(len(pruned) * 0.3) + 1]
    count = int(len(tokens) / 10) + 1
    states = hidden[tokens].double()
    distance = (states[:, None] - states[None]).norm(dim=-1) / states.shape[-1] ** 0.5
    density = [float((-(row.sort().values[:count] ** 2).mean()).exp()) for row in distance]
    merit = []
    for i, own in enumerate(density):
        denser = [j for j, other in enumerate(density) if other > own or (other == own and j < i)]
        apart = min(float(distance[i, j]) for j in denser) if denser else float(distance.max())
        merit.append(apart * own)
    centres = sorted(range(len(tokens)), key=lambda i: (-merit[i], i))[:count]
    clusters: dict[int, list[int]] = {centre: [centre] for centre in centres}
    for i in range(len(tokens)):
        if i not in clusters:
            clusters[min(centres, key=lambda centre: float(distance[i, centre]))].append(i)
    means = [states[members].mean(0).to(hidden.dtype) for members in clusters.values()]
    return [tokens[centre] for centre in centres], means
