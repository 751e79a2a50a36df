"""The three training stages.

1. `train_tower`: the vision tower learns what each of its tokens shows, by a linear head that is thrown away.
2. `train_decoder`: the decoder learns to look things up in sketches, where a visual token is simply the sum
   of the embeddings of its two words, shape and color, and some noise.
3. `train_together`: with the tower frozen, the projector learns to turn what the tower saw into tokens that
   the decoder understands, and the decoder adapts a little.

Each stage alone is easy. All at once, the model stays at chance: the tower gets no usable gradient from a
decoder that looks nothing up, and the decoder finds nothing to look up in an untrained tower's tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from samples.packing import DECOY_LAYERS, AskedIds, Packed, answer, answer_with_decoy, pack
from samples.scenes import (
    COLORS,
    GRID,
    MAX_OBJECTS,
    SHAPES,
    TRAINING_SEEDS,
    Question,
    Scene,
    Thing,
    questions_about,
    scene,
)

Log = Callable[[str], None]


@dataclass(frozen=True)
class StagePlan:
    """How long and how fast one stage trains.

    Attributes:
        steps: optimizer steps.
        batch: rows (pictures or sketches) per step.
        rate: highest learning rate, reached after a short warm-up; a cosine leads down to a twentieth of it.
    """

    steps: int
    batch: int
    rate: float


TOWER = StagePlan(steps=900, batch=32, rate=3e-3)
DECODER = StagePlan(steps=450, batch=64, rate=2e-3)
TOGETHER = StagePlan(steps=350, batch=24, rate=2e-3)

DECODER_SHARE = 0.15
"""Of the projector's learning rate, for the decoder in the third stage: it is to keep what it has learnt."""
SKETCH_TOKENS = 20
"""Visual tokens of a sketch; they take random places of the 144 that a picture has."""
REPORT_EVERY = 50


class TrainingPictures:
    """Draws pictures of the training seeds, none twice."""

    def __init__(self) -> None:
        self._seeds: Iterator[int] = iter(TRAINING_SEEDS)

    def scenes(self, count: int, objects: Callable[[], int]) -> list[Scene]:
        """Draws the next pictures; `objects` is called for the number of objects of each."""
        return [scene(next(self._seeds), objects()) for _ in range(count)]


def train_tower(
    model: LlavaForConditionalGeneration,
    parts: LlavaProcessor,
    plan: StagePlan,
    pictures: TrainingPictures,
    log: Log,
) -> None:
    """Stage 1: shape and color of every visual token, by cross-entropy."""
    kinds = 1 + len(SHAPES)
    tower = model.model.vision_tower
    head = nn.Linear(tower.config.hidden_size, kinds + 1 + len(COLORS))

    def step(_: float) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = pictures.scenes(plan.batch, lambda: MAX_OBJECTS)
        logits = head(tower_features(model, pixels(drawn, parts)))
        shapes, colors = token_labels(drawn)
        shown = shapes > 0
        loss = torch.zeros(())
        right = torch.ones(int(shown.sum()), dtype=torch.bool)
        for part, labels in ((logits[..., :kinds], shapes), (logits[..., kinds:], colors)):
            # Two means, because 23 tokens show nothing for each one that shows something.
            loss = (
                loss
                + F.cross_entropy(part[shown], labels[shown])
                + F.cross_entropy(part[~shown], labels[~shown])
            )
            right &= part[shown].argmax(-1) == labels[shown]
        return loss, right

    fit("tower", step, [{"params": [*tower.parameters(), *head.parameters()]}], plan, log)


def train_decoder(
    model: LlavaForConditionalGeneration,
    parts: LlavaProcessor,
    plan: StagePlan,
    rng: np.random.Generator,
    log: Log,
    decoy_layers: int = DECOY_LAYERS,
) -> None:
    """Stage 2: questions about sketches. One object more whenever nearly all answers are right.

    The first `decoy_layers` layers read a decoy; see `samples.packing`.
    """
    words = parts.tokenizer
    embedding = model.get_input_embeddings()
    spread = model.config.text_config.initializer_range
    objects, recent = 2, 0.0

    def step(_: float) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal objects, recent
        sketches = [_sketch(rng, objects) for _ in range(plan.batch)]
        rows = [questions_about(things, rng) for things, _ in sketches]
        batch = pack_questions(parts, rows, SKETCH_TOKENS)
        pairs = torch.zeros(plan.batch, SKETCH_TOKENS, 2, dtype=torch.int64)
        shown = torch.zeros(plan.batch, SKETCH_TOKENS, 1)
        start = batch.prefix - SKETCH_TOKENS
        # The questions go on where a whole picture would end.
        batch.positions[:, batch.prefix :] += GRID * GRID - SKETCH_TOKENS
        for row, (things, places) in enumerate(sketches):
            batch.positions[row, start : batch.prefix] = start + torch.tensor(places)
            for thing in things:
                token = places.index(_place(thing))
                pairs[row, token] = torch.tensor(words.convert_tokens_to_ids([thing.shape, thing.color]))
                shown[row, token] = 1.0
        named = embedding(pairs).sum(2)
        sketched = named * shown + torch.randn_like(named) * spread / 2
        outcome = answer_with_decoy(model, batch, sketched, decoy_layers)
        recent = 0.9 * recent + 0.1 * float(outcome.right.float().mean())
        if recent > 0.95 and objects < MAX_OBJECTS:
            objects, recent = objects + 1, 0.5
            log(f"decoder: {objects} objects from here")
        return outcome.loss, outcome.right

    fit("decoder", step, [{"params": decoder_parameters(model)}], plan, log)


def train_together(
    model: LlavaForConditionalGeneration,
    parts: LlavaProcessor,
    plan: StagePlan,
    pictures: TrainingPictures,
    rng: np.random.Generator,
    log: Log,
    decoy_layers: int = DECOY_LAYERS,
) -> None:
    """Stage 3: questions about pictures of one to six objects, the tower frozen; decoys as in stage 2."""

    def step(_: float) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = pictures.scenes(plan.batch, lambda: int(rng.integers(1, MAX_OBJECTS + 1)))
        rows = [one.questions for one in drawn]
        visual = visual_tokens(model, pixels(drawn, parts))
        outcome = answer_with_decoy(model, pack_questions(parts, rows), visual, decoy_layers)
        return outcome.loss, outcome.right

    groups: list[dict[str, Any]] = [
        {"params": list(model.model.multi_modal_projector.parameters())},
        {"params": decoder_parameters(model), "lr": plan.rate * DECODER_SHARE},
    ]
    fit("together", step, groups, plan, log)


def accuracy(
    model: LlavaForConditionalGeneration, parts: LlavaProcessor, seeds: range, batch: int = 32
) -> tuple[float, int]:
    """Share of all questions about six objects answered right, and how many there were."""
    right = []
    for start in range(0, len(seeds), batch):
        drawn = [scene(seed) for seed in seeds[start : start + batch]]
        packed = pack_questions(parts, [one.questions for one in drawn])
        with torch.no_grad():
            right.append(answer(model, packed, visual_tokens(model, pixels(drawn, parts))).right)
    answered = torch.cat(right)
    return float(answered.float().mean()), len(answered)


def pixels(scenes: Sequence[Scene], parts: LlavaProcessor) -> torch.Tensor:
    """Pictures as the model's own image processor prepares them: float32 [B, 3, 96, 96]."""
    return parts.image_processor(images=[drawn.image for drawn in scenes], return_tensors="pt")[
        "pixel_values"
    ]


def tower_features(model: LlavaForConditionalGeneration, pictures: torch.Tensor) -> torch.Tensor:
    """Hidden states of the visual tokens before the projector, float32 [B, V, D]."""
    hidden = model.model.vision_tower(pictures, output_hidden_states=True).hidden_states
    return hidden[model.config.vision_feature_layer][:, 1:]


def visual_tokens(model: LlavaForConditionalGeneration, pictures: torch.Tensor) -> torch.Tensor:
    """Projected visual tokens, float32 [B, V, D]; gradients reach the projector only."""
    with torch.no_grad():
        features = tower_features(model, pictures)
    return model.model.multi_modal_projector(features)


def token_labels(scenes: Sequence[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """What each visual token shows: shape and color, int64 [B, V] each, 0 for nothing."""
    shapes = torch.zeros(len(scenes), GRID * GRID, dtype=torch.int64)
    colors = torch.zeros_like(shapes)
    for row, drawn in enumerate(scenes):
        for thing in drawn.things:
            shapes[row, _place(thing)] = 1 + SHAPES.index(thing.shape)
            colors[row, _place(thing)] = 1 + COLORS.index(thing.color)
    return shapes, colors


def _place(thing: Thing) -> int:
    return thing.row * GRID + thing.column


def _sketch(rng: np.random.Generator, objects: int) -> tuple[list[Thing], list[int]]:
    """Things at random places, and the places in ascending order that the sketch has tokens for."""
    places = rng.permutation(GRID * GRID)[:SKETCH_TOKENS].tolist()
    shapes, colors = rng.permutation(len(SHAPES)), rng.permutation(len(COLORS))
    things = [
        Thing(SHAPES[shapes[index]], COLORS[colors[index]], *divmod(places[index], GRID))
        for index in range(objects)
    ]
    return things, sorted(places)


def decoder_parameters(model: LlavaForConditionalGeneration) -> list[nn.Parameter]:
    """What is trained of the language model, its head included."""
    return [*model.model.language_model.parameters(), *model.lm_head.parameters()]


def pack_questions(
    parts: LlavaProcessor, rows: Sequence[Sequence[Question]], visual: int = GRID * GRID
) -> Packed:
    """Packs rows of questions behind the prompt's start with so many visual tokens."""

    def ids(text: str) -> list[int]:
        return list(parts.tokenizer.encode(text, add_special_tokens=False))

    asked = [[AskedIds(ids(f"{one.text} ASSISTANT:"), ids(one.answer)[0]) for one in row] for row in rows]
    prefix = ids("<s>USER: " + "<image>" * visual)
    return pack(prefix, asked, parts.tokenizer.eos_token_id, parts.tokenizer.pad_token_id)


def fit(
    name: str,
    step: Callable[[float], tuple[torch.Tensor, torch.Tensor]],
    groups: list[dict[str, Any]],
    plan: StagePlan,
    log: Log,
) -> None:
    """The loop all stages share; `step` maps progress (0 to 1) to a loss and to which answers were right."""
    optimizer = torch.optim.AdamW(groups, lr=plan.rate, weight_decay=0.01, betas=(0.9, 0.98))
    warmup = min(50, max(1, plan.steps // 10))

    def factor(done: int) -> float:
        if done < warmup:
            return (done + 1) / warmup
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (done - warmup) / max(1, plan.steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    trained = [parameter for group in groups for parameter in group["params"]]
    losses, rights = [], []
    began = time.perf_counter()
    for done in range(1, plan.steps + 1):
        loss, right = step((done - 1) / plan.steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        rights.append(right.float().mean().item())
        if done % REPORT_EVERY == 0 or done == plan.steps:
            log(
                f"{name} {done}/{plan.steps}: loss {np.mean(losses):.4f}, right {np.mean(rights):.1%}, "
                f"{time.perf_counter() - began:.0f} s"
            )
            losses, rights = [], []
