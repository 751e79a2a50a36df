"""Does a small LLaVA attend more to late visual tokens, if its language model has first learnt from text?

    python studies/recency.py text-frozen

trains one variant of the sample model from fixed seeds and prints one JSON object: how the attention of the
last prompt token depends on the index of the visual token, layer by layer, and the accuracy. Nothing puts a
bias in by hand; the variants differ in what the decoder learns from, what it may forget, and its positions.

The vision tower is the one of `samples/tiny-llava`, which no variant changes. The decoder first reads text,
in which things recur and the latest mention holds (`Text`); then the projector learns to show it pictures.
What the first of both stages made can be kept in a work folder for the variants that share it.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: make the repository's packages importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from edgeprune.calibration.attention import Attention
from edgeprune.calibration.fit import need_images, slope, spearman
from edgeprune.debias.masks import letterbox_valid
from edgeprune.errors import EdgepruneError, InputError
from samples import model as sample
from samples import packing, stages
from samples.packing import Packed
from samples.scenes import (
    COLORS,
    GRID,
    MAX_OBJECTS,
    SHAPES,
    TUNING_SEEDS,
    Question,
    Scene,
    color_question,
    scene,
    shape_question,
)
from samples.stages import Log, StagePlan

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "tiny-llava"
PICTURES = TUNING_SEEDS[70_000:]
"""Attention and accuracy are measured on these."""
TEXTS = 64
"""Held-out texts that accuracy and attention over text are measured on."""
QUESTIONS_PER_TEXT = 8
TEXT_TOKENS = 32
"""Tokens of a text in training; they are spread over the places that a prompt's visual tokens have."""
MOST_MENTIONS = 16
FILLERS = ("what", "is", "the", "color", "shape")
"""They say nothing in a text, and make it as long as a picture."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        about: what is special about it, for `--help`.
        text: whether the decoder first learns from text; otherwise from sketches, as the sample model does.
        frozen: whether only the projector learns from pictures; otherwise the decoder follows, slowly.
        base: of the rotary positions.
        layers: of the decoder.
        decoy: whether the first two layers see a decoy; see `samples/packing.py`.
        compounds: whether a mention is one token, the sum of both words' embeddings, rather than two tokens.
        burst: how likely a text goes on about something it mentioned before, rather than something new.
        change: how likely a mention gives a word another partner.
        pictures: in one prompt, next to each other.
    """

    about: str
    text: bool = True
    frozen: bool = True
    base: float = 10_000.0
    layers: int = sample.LAYERS
    decoy: bool = False
    compounds: bool = True
    burst: float = 0.8
    change: float = 0.3
    pictures: int = 1

    @property
    def places(self) -> int:
        """Visual tokens of a prompt, or what stands in their place."""
        return self.pictures * GRID * GRID

    @property
    def objects(self) -> int:
        """At most so many in a picture: a prompt has no more of them for having several pictures."""
        return MAX_OBJECTS // self.pictures


VARIANTS = {
    "sample": Variant("the sample model as it is", text=False, frozen=False, decoy=True),
    "untrained": Variant("the decoder and projector as they are drawn: what chance does", text=False),
    "text-frozen": Variant("text, then the projector alone"),
    "text-slow": Variant("text, then the projector, the decoder following", frozen=False),
    "text-slow-decoy": Variant("the same with decoys in both stages", frozen=False, decoy=True),
    "text-frozen-base100": Variant("as text-frozen, rotary base 100", base=100.0),
    "text-frozen-base1000": Variant("as text-frozen, rotary base 1,000", base=1000.0),
    "timeless-frozen": Variant("text in which nothing changes or comes in bursts", burst=0.0, change=0.0),
    "words-frozen": Variant("text of single words, then the projector alone", compounds=False),
    "deep-frozen": Variant("as text-frozen, eight layers", layers=8),
    "text-frozen-pair": Variant("as text-frozen, 288 places: two pictures in a prompt", pictures=2),
    "text-frozen-quad": Variant("as text-frozen, 576 places: four pictures in a prompt", pictures=4),
}

TEXT = StagePlan(steps=450, batch=48, rate=2e-3)
PICTURE = StagePlan(steps=150, batch=24, rate=2e-3)


@dataclasses.dataclass(frozen=True)
class Text:
    """A running text: mentions of a colored shape between fillers.

    Attributes:
        units: a mention, which is a color and a shape, or a filler, in the order of the text.
        starts: of the units among the places that a picture's visual tokens have, ascending.
        questions: about words that were mentioned; the partner in the latest mention is the answer.
    """

    units: list[tuple[str, ...]]
    starts: list[int]
    questions: list[Question]


def text(rng: np.random.Generator, variant: Variant, mentions: int, length: int) -> Text:
    """Writes a text of so many tokens.

    Args:
        rng: what decides.
        variant: how mentions recur and change, and how many tokens one takes.
        mentions: at least 1.
        length: tokens, the rest of them fillers; where there are fewer than places, gaps are between units.
    """
    size = 1 if variant.compounds else 2
    spoken: list[tuple[str, ...]] = []
    latest: dict[str, str] = {}  # by word, in the order of the latest mentions
    for _ in range(mentions):
        known = [word for word in latest if word in SHAPES]
        if known and rng.random() < variant.burst:
            # The later something was mentioned, the likelier it is mentioned again.
            shape = known[-min(len(known), int(rng.geometric(0.4)))]
        else:
            shape = str(rng.choice(SHAPES))
        color = latest.get(shape)
        if color is None or rng.random() < variant.change:
            # Where nothing changes, no color gets a second shape either.
            color = str(
                rng.choice(COLORS if variant.change else [one for one in COLORS if one not in latest])
            )
        spoken.append((color, shape))
        for word, partner in ((color, shape), (shape, color)):
            latest.pop(word, None)
            latest[word] = partner
    count = mentions + length - size * mentions
    speaks = np.zeros(count, dtype=bool)
    speaks[rng.permutation(count)[:mentions]] = True
    following = iter(spoken)
    units = [next(following) if mention else (str(rng.choice(FILLERS)),) for mention in speaks]
    before = np.cumsum([0, *np.where(speaks, size, 1)[:-1]])
    starts = before + np.sort(rng.integers(0, variant.places - length + 1, count))
    chosen = rng.permutation(list(latest))[:QUESTIONS_PER_TEXT].tolist()
    questions = [
        Question((color_question if word in SHAPES else shape_question)(word), latest[word])
        for word in chosen
    ]
    return Text(units, starts.tolist(), questions)


def pack_texts(
    model: LlavaForConditionalGeneration, parts: LlavaProcessor, read: Sequence[Text], variant: Variant
) -> tuple[Packed, torch.Tensor]:
    """Questions behind texts of L tokens each, which stand where pictures would.

    Words are to be predicted, too: the shape after every color.

    Returns:
        The rows; and float32 [B, L, D], what stands for <image>: compounds, or [0] where texts are words.
    """
    words, compounds = parts.tokenizer, variant.compounds
    length = len(read[0].units) if compounds else sum(map(len, read[0].units))
    batch = stages.pack_questions(parts, [one.questions for one in read], length)
    start = batch.prefix - length
    # The questions go on where whole pictures would end.
    batch.positions[:, batch.prefix :] += variant.places - length
    pairs = torch.zeros(len(read), length, 2, dtype=torch.int64)
    shown = torch.zeros(len(read), length, 1)
    for row, one in enumerate(read):
        token = 0
        for unit, place in zip(one.units, one.starts, strict=True):
            ids = torch.tensor(words.convert_tokens_to_ids(list(unit)))
            size = 1 if compounds else len(unit)
            own = slice(start + token, start + token + size)
            batch.positions[row, own] = start + place + torch.arange(size)
            if not compounds:
                batch.ids[row, own] = ids
            if len(unit) == 2 and compounds:
                pairs[row, token], shown[row, token] = ids, 1.0
            elif len(unit) == 2:
                batch.labels[row, start + token] = ids[1]
            token += size
    if not compounds:
        return batch, torch.zeros(0)
    # As in sketches: the sum of two embeddings, and noise, which alone is the filler.
    named = model.get_input_embeddings()(pairs).sum(2)
    spread = model.config.text_config.initializer_range
    return batch, named * shown + torch.randn_like(named) * spread / 2


def train_text(
    model: LlavaForConditionalGeneration,
    parts: LlavaProcessor,
    variant: Variant,
    plan: StagePlan,
    rng: np.random.Generator,
    log: Log,
) -> None:
    """The decoder learns to answer questions about text. One mention more whenever most answers are right."""
    most, recent = 2, 0.0

    def step(_: float) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal most, recent
        read = [text(rng, variant, int(rng.integers(2, most + 1)), TEXT_TOKENS) for _ in range(plan.batch)]
        batch, visual = pack_texts(model, parts, read, variant)
        answer = packing.answer_with_decoy if variant.decoy else packing.answer
        outcome = answer(model, batch, visual)
        recent = 0.8 * recent + 0.2 * float(outcome.right.float().mean())
        if recent > 0.8 and most < MOST_MENTIONS:
            most, recent = most + 1, 0.6
            log(f"text: up to {most} mentions from here")
        return outcome.loss, outcome.right

    stages.fit("text", step, [{"params": stages.decoder_parameters(model)}], plan, log)


@dataclasses.dataclass(frozen=True)
class Shown:
    """The pictures of one prompt, and what is asked about them."""

    scenes: list[Scene]
    questions: list[Question]


def show(scenes: Sequence[Scene], pictures: int) -> list[Shown]:
    """Prompts of so many pictures each. Asked is what has one answer, in whichever picture it is."""
    prompts = []
    for start in range(0, len(scenes) - pictures + 1, pictures):
        shown = list(scenes[start : start + pictures])
        questions = [question for one in shown for question in one.questions]
        often = Counter(question.text for question in questions)
        prompts.append(Shown(shown, [question for question in questions if often[question.text] == 1]))
    return prompts


def see(
    model: LlavaForConditionalGeneration, parts: LlavaProcessor, prompts: Sequence[Shown]
) -> tuple[Packed, torch.Tensor]:
    """Rows of prompts with all their questions; and what the model sees, float32 [B, V, D]."""
    pixels = stages.pixels([one for shown in prompts for one in shown.scenes], parts)
    visual = stages.visual_tokens(model, pixels)
    visual = visual.reshape(len(prompts), -1, visual.shape[-1])
    return stages.pack_questions(parts, [one.questions for one in prompts], visual.shape[1]), visual


def train_pictures(
    model: LlavaForConditionalGeneration,
    parts: LlavaProcessor,
    variant: Variant,
    plan: StagePlan,
    rng: np.random.Generator,
    log: Log,
) -> None:
    """The second stage, for prompts of several pictures."""
    drawing = stages.TrainingPictures()

    def step(_: float) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = drawing.scenes(
            plan.batch * variant.pictures, lambda: int(rng.integers(1, variant.objects + 1))
        )
        outcome = packing.answer(model, *see(model, parts, show(drawn, variant.pictures)))
        return outcome.loss, outcome.right

    groups: list[dict[str, Any]] = [
        {"params": list(model.model.multi_modal_projector.parameters())},
        {"params": stages.decoder_parameters(model), "lr": plan.rate * stages.DECODER_SHARE},
    ]
    stages.fit("pictures", step, groups, plan, log)


@contextmanager
def attention_rows(model: LlavaForConditionalGeneration) -> Iterator[list[torch.Tensor]]:
    """Gathers every layer's attention, mean over heads, float32 [B, S, S], in forward passes inside."""
    decoder = model.model.language_model
    usual = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")  # the only one that says what it attends to
    gathered: list[torch.Tensor] = []
    hooks = [
        layer.self_attn.register_forward_hook(lambda _, __, output: gathered.append(output[1].mean(1)))
        for layer in decoder.layers
    ]
    try:
        yield gathered
    finally:
        for hook in hooks:
            hook.remove()
        decoder.set_attn_implementation(usual)


def attention_paid(
    model: LlavaForConditionalGeneration, batch: Packed, visual: torch.Tensor, tokens: int
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """What the last prompt token of every question attends to.

    Returns:
        By layer, float32 [N, tokens], attention paid to the last tokens of the prefix; int64 [N], the row of
        each of the N questions; bool [N], whether it is answered right.
    """
    # Eager attention adds the mask.
    added = torch.zeros(batch.mask.shape).masked_fill(~batch.mask, torch.finfo(torch.float32).min)
    with torch.no_grad(), attention_rows(model) as gathered:
        outcome = packing.answer(model, dataclasses.replace(batch, mask=added), visual)
    seen = slice(batch.prefix - tokens, batch.prefix)
    paid = [layer[batch.answers][:, seen].numpy() for layer in gathered]
    return paid, batch.answers.nonzero()[:, 0].numpy(), outcome.right.numpy()


def in_order(paid: NDArray[np.float32]) -> NDArray[np.int64]:
    """The places of tokens that stand in order: int64 [N, V], as the attention paid to them."""
    return np.tile(np.arange(paid.shape[1]), (len(paid), 1))


def measure_pictures(
    model: LlavaForConditionalGeneration,
    parts: LlavaProcessor,
    variant: Variant,
    pictures: int,
    batch: int = 20,
) -> dict[str, Any]:
    """Attention by visual token, padded ones left out, and accuracy, on tuning pictures."""
    drawn = show([scene(seed, variant.objects) for seed in PICTURES[:pictures]], variant.pictures)
    layers = [Attention.empty(variant.places) for _ in model.model.language_model.layers]
    rights = []
    for start in range(0, len(drawn), batch):
        prompts = drawn[start : start + batch]
        with torch.no_grad():
            packed, visual = see(model, parts, prompts)
        paid, rows, right = attention_paid(model, packed, visual, variant.places)
        valid = np.stack([np.concatenate([_valid(one) for one in shown.scenes]) for shown in prompts])
        for gathered, layer in zip(layers, paid, strict=True):
            gathered.add(layer, valid[rows], in_order(layer), rows + start)
        rights.append(right)
    answered = np.concatenate(rights)
    return {
        "pictures": len(drawn) * variant.pictures,
        "questions": len(answered),
        "accuracy": float(answered.mean()),
        "padding_share_of_tokens": layers[0].padding_share_of_tokens,
        "layers": [_figures(gathered) for gathered in layers],
    }


def _valid(drawn: Scene) -> np.ndarray:
    """The padding mask."""
    return letterbox_valid(*drawn.image.size, (GRID, GRID))


def measure_texts(
    model: LlavaForConditionalGeneration, parts: LlavaProcessor, variant: Variant, batch: int = 16
) -> dict[str, Any]:
    """The same over text, of the same length and with the same questions as in training."""
    rng = np.random.default_rng([7, 7])  # no seed of training
    layers = [Attention.empty(variant.places) for _ in model.model.language_model.layers]
    rights = []
    for start in range(0, TEXTS, batch):
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(start)  # the noise does not depend on what ran before
            read = [text(rng, variant, MOST_MENTIONS, variant.places) for _ in range(batch)]
            packed, visual = pack_texts(model, parts, read, variant)
        paid, rows, right = attention_paid(model, packed, visual, variant.places)
        for gathered, layer in zip(layers, paid, strict=True):
            gathered.add(layer, np.ones_like(layer), in_order(layer), rows + start)
        rights.append(right)
    answered = np.concatenate(rights)
    return {
        "questions": len(answered),
        "accuracy": float(answered.mean()),
        "layers": [_figures(gathered) for gathered in layers],
    }


def _figures(gathered: Attention) -> dict[str, Any]:
    """Trend of the mean attention over the index."""
    mean = gathered.mean
    seen = np.flatnonzero(~np.isnan(mean))
    found = slope(gathered)
    return {
        "spearman": spearman(seen, mean[seen]),
        "b": found.b,
        "b_error": found.error,
        "p": found.p,
        "last_quarter_over_first": _last_over_first(mean),
        "attention": gathered.total_paid / gathered.samples,
        "padding_share_of_attention": gathered.padding_share_of_attention,
    }


def _last_over_first(mean: np.ndarray) -> float:
    quarter = len(mean) // 4
    return float(np.nanmean(mean[-quarter:]) / np.nanmean(mean[:quarter]))


def build(variant: Variant, parts: LlavaProcessor, seed: int) -> LlavaForConditionalGeneration:
    """An untrained model with the sample model's tower."""
    transformers.set_seed(seed)
    config = sample.config(parts.tokenizer)
    config.text_config.num_hidden_layers = variant.layers
    config.text_config.rope_parameters = {"rope_type": "default", "rope_theta": variant.base}
    model = LlavaForConditionalGeneration(config)
    tower = LlavaForConditionalGeneration.from_pretrained(SAMPLE, local_files_only=True).model.vision_tower
    model.model.vision_tower.load_state_dict(tower.state_dict())
    return model


def train(
    variant: Variant,
    parts: LlavaProcessor,
    seed: int,
    plans: tuple[StagePlan, StagePlan],
    work: Path | None,
    log: Log,
) -> LlavaForConditionalGeneration:
    """Both stages.

    Args:
        variant: what to train.
        parts: the processor.
        seed: of the initial weights, the texts or sketches, and the questions about pictures.
        plans: of text (or sketches), and of pictures.
        work: where what the first stage made is kept, or found; None to keep nothing.
        log: told the progress.
    """
    model = build(variant, parts, seed)
    decoys = packing.DECOY_LAYERS if variant.decoy else 0
    first = dataclasses.replace(variant, about="", frozen=False)
    kept = None if work is None else work / f"{_digest([dataclasses.asdict(first), seed, plans[0]])}.pt"
    if kept is not None and kept.is_file():
        model.load_state_dict(torch.load(kept, weights_only=True))
        log(f"first stage: found in {kept}")
    else:
        rng = np.random.default_rng([seed, 1])
        if variant.text:
            train_text(model, parts, variant, plans[0], rng, log)
        else:
            stages.train_decoder(model, parts, plans[0], rng, log, decoys)
        if kept is not None:
            torch.save(model.state_dict(), kept)
    for parameter in stages.decoder_parameters(model):
        parameter.requires_grad_(not variant.frozen)
    rng = np.random.default_rng([seed, 2])
    if variant.pictures > 1:
        train_pictures(model, parts, variant, plans[1], rng, log)
    else:
        stages.train_together(model, parts, plans[1], stages.TrainingPictures(), rng, log, decoys)
    return model.eval()


def _digest(settings: Any) -> str:
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    names = "\n".join(f"  {name:21}{variant.about}" for name, variant in VARIANTS.items())
    parser = argparse.ArgumentParser(
        description="Trains one variant and measures its attention by token index.",
        epilog=f"variants:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("variant", choices=sorted(VARIANTS), metavar="VARIANT")
    parser.add_argument("--seed", type=int, default=0, help="of weights, texts and questions (default: 0)")
    parser.add_argument(
        "--steps", type=int, nargs=2, metavar=("TEXT", "PICTURE"), help="steps of both stages"
    )
    parser.add_argument("--batch", type=int, help="rows per step in both stages")
    parser.add_argument("--pictures", type=int, default=200, help="to measure on (default: 200)")
    parser.add_argument("--work", type=Path, help="folder that keeps first stages for other variants")
    parser.add_argument("--save", type=Path, help="folder to write the trained model to")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    options = parser.parse_args(arguments)
    try:
        report = run(options)
    except EdgepruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report, indent=2))
    return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Trains and measures.

    Raises:
        InputError: an option is out of its range, or a folder is missing.
    """
    _check(options)

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    torch.set_num_threads(options.threads)
    variant = VARIANTS[options.variant]
    plans = [TEXT if variant.text else stages.DECODER, PICTURE]
    if options.steps:
        plans = [
            dataclasses.replace(plan, steps=steps) for plan, steps in zip(plans, options.steps, strict=True)
        ]
    if options.batch:
        plans = [dataclasses.replace(plan, batch=options.batch) for plan in plans]
    began = time.process_time()
    parts = sample.processor()
    if options.variant == "sample":
        model = LlavaForConditionalGeneration.from_pretrained(SAMPLE, local_files_only=True).eval()
    elif options.variant == "untrained":
        model = build(variant, parts, options.seed).eval()
    else:
        model = train(variant, parts, options.seed, (plans[0], plans[1]), options.work, log)
    report: dict[str, Any] = {
        "variant": options.variant,
        **dataclasses.asdict(variant),
        "seed": options.seed,
        "steps": [plan.steps for plan in plans],
        "machine": f"{os.cpu_count()} CPU cores, {options.threads} thread{'s' * (options.threads > 1)}",
        "over_pictures": measure_pictures(model, parts, variant, options.pictures),
    }
    if variant.text:
        report["over_text"] = measure_texts(model, parts, variant)
    report["cpu_minutes"] = (time.process_time() - began) / 60
    if options.save:
        sample.save(model, parts, options.save)
    return report


def _check(options: argparse.Namespace) -> None:
    # Those of one prompt are one sample.
    need_images(options.pictures // VARIANTS[options.variant].pictures)
    for name, value, least, most in (
        ("--pictures", options.pictures, 1, len(PICTURES)),
        ("--seed", options.seed, 0, 2**31),
        ("--steps", min(options.steps or [1]), 1, 10**6),
        ("--batch", 2 if options.batch is None else options.batch, 2, 4096),
        ("--threads", options.threads, 1, 64),
    ):
        if not least <= value <= most:
            raise InputError(f"{name} is {value}: expected {least} to {most}; choose a number in this range")
    for name, folder in (("--work", options.work), ("--save", options.save)):
        if folder is not None and not folder.is_dir():
            raise InputError(f"{name} {folder} is no folder: expected an existing one; create it first")


if __name__ == "__main__":
    sys.exit(main())
