"""Why SparseVLM does badly on the sample model: which words rate, and what each part of the method costs.

    python benchmarks/sparsevlm_ablation.py

prints two Markdown tables. The first is of the text behind the picture: how often a word rates the visual
tokens, and how well the asked thing does in the attention that it pays. The second has SparseVLM with parts
changed, as exported bundles: the accuracy, and how often the asked thing survives.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

if __package__ in (None, ""):  # run as a script: make the packages `benchmarks` and `samples` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlavaForConditionalGeneration

import edgeprune
from benchmarks.recency import attention_rows
from benchmarks.sample_accuracy import PER_PICTURE, SAMPLE, Questions, SampleModel, picture_targets
from benchmarks.sample_questions import RANGES
from benchmarks.sample_report import mean_and_error
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.exporter.scoring import rater_weights
from edgeprune.plans import METHODS, Merge, Positions, ScoringRows, StagedMethod, method_by_name
from samples import model as sample
from samples import stages
from samples.scenes import COLORS, SHAPES, Scene, prompt, scene

METHOD = "sparsevlm"


def variants() -> dict[str, StagedMethod]:
    """SparseVLM as published, and with parts changed."""
    published = method_by_name(METHOD)
    assert isinstance(published, StagedMethod)
    last = replace(published, rows=(ScoringRows.LAST_TOKEN,))
    once = replace(published, at=(2,), shares=(Fraction(1, 2),), depth=None)
    return {
        "as published": published,
        "all text behind the picture rates": replace(published, rows=(ScoringRows.TEXT_AFTER_IMAGE,)),
        "the last token rates": last,
        "dropped tokens are not recycled": replace(published, merge=Merge.DROP),
        "positions preserved": replace(published, positions=Positions.PRESERVED),
        "neither recycled nor renumbered": replace(
            published, merge=Merge.DROP, positions=Positions.PRESERVED
        ),
        "the last token rates, neither recycled nor renumbered": replace(
            last, merge=Merge.DROP, positions=Positions.PRESERVED
        ),
        "one selection before layer 2": once,
        "one selection before layer 2, the last token rates": replace(once, rows=(ScoringRows.LAST_TOKEN,)),
    }


@contextmanager
def in_place_of_published(variant: StagedMethod) -> Iterator[None]:
    """The exporter takes the variant for SparseVLM, its padding mask included."""
    published = METHODS[METHOD]
    METHODS[METHOD] = variant
    try:
        yield
    finally:
        METHODS[METHOD] = published


@dataclass
class Word:
    """A word of the text behind the picture, in one form of question.

    Attributes:
        asked: how often it stood there.
        rated: how often it was a rater.
        received: the sum of its share of the visual tokens' softmax over text, mean over them.
        received_asked: likewise, of the one that shows the asked thing.
        places: by layer, the asked thing's place in the attention it pays, 0 for the most attended token.
    """

    asked: int = 0
    rated: int = 0
    received: float = 0.0
    received_asked: float = 0.0
    places: dict[int, list[int]] = field(default_factory=dict)


@torch.no_grad()
def rate_words(drawn: Sequence[Scene], layers: Sequence[int]) -> dict[tuple[str, str], Word]:
    """What the words of all questions about the pictures do, by form of question ("color") and word.

    Args:
        drawn: the pictures.
        layers: whose attention is looked at, in the unpruned model.
    """
    parts = sample.processor()
    model = LlavaForConditionalGeneration.from_pretrained(SAMPLE, local_files_only=True).eval()
    found: dict[tuple[str, str], Word] = {}
    for one in drawn:
        visual = stages.visual_tokens(model, stages.pixels([one], parts))[0]
        targets = picture_targets(one)
        for question in one.questions:
            ids = parts(text=prompt(question.text), images=one.image, return_tensors="pt")["input_ids"]
            places = (ids[0] == model.config.image_token_id).nonzero()[:, 0]
            embeds = model.get_input_embeddings()(ids)
            embeds[0, places] = visual
            rates = rater_weights(embeds, places[None], torch.arange(ids.shape[1])[None])[0] > 0
            text = torch.arange(int(places[-1]) + 1, ids.shape[1])
            received = (visual @ embeds[0, text].T).softmax(1)
            target = targets[question.text]
            with attention_rows(model) as gathered:
                model.model.language_model(inputs_embeds=embeds, use_cache=False)
            words = parts.tokenizer.convert_ids_to_tokens(ids[0, text].tolist())
            for number, (row, word) in enumerate(zip(text.tolist(), words, strict=True)):
                of = found.setdefault((question.text.split()[1], _kind(word)), Word())
                of.asked += 1
                of.rated += bool(rates[row])
                of.received += float(received[:, number].mean())
                of.received_asked += float(received[target, number])
                for layer in layers:
                    paid = gathered[layer][0, row, places]
                    of.places.setdefault(layer, []).append(int((paid > paid[target]).sum()))
    return found


def _kind(word: str) -> str:
    return "(the color)" if word in COLORS else "(the shape)" if word in SHAPES else word


@dataclass(frozen=True)
class Figure:
    """One variant.

    Attributes:
        name: of the variant.
        kept: visual tokens behind each selection, means not counted.
        accuracy, masked_accuracy: without debias, and with the padding mask; each with its standard error.
        survived: share of questions whose asked thing is among the kept tokens of each selection, without
            debias.
    """

    name: str
    kept: tuple[int, ...]
    accuracy: tuple[float, float]
    masked_accuracy: tuple[float, float]
    survived: tuple[float, ...]


def measure(name: str, drawn: list[Scene], keep: float, threads: int) -> Figure:
    """Exports a variant and asks it all questions about the pictures.

    Raises:
        EdgepruneError: it cannot be exported or run.
    """
    with tempfile.TemporaryDirectory() as work, in_place_of_published(variants()[name]):
        folder = edgeprune.export(
            SAMPLE, keep=keep, method=METHOD, debias="padding", output=Path(work) / "bundle", verify=False
        )
        model = SampleModel(folder, threads)
        asked = model.questions(drawn)
        right, survived, kept = _ask(model, asked, np.ones_like(asked.valid))
        masked, _, _ = _ask(model, asked, asked.valid)
    return Figure(
        name=name,
        kept=kept,
        accuracy=mean_and_error(right, asked.picture),
        masked_accuracy=mean_and_error(masked, asked.picture),
        survived=survived,
    )


def _ask(
    model: SampleModel, asked: Questions, masks: NDArray[np.float32]
) -> tuple[NDArray[np.float64], tuple[float, ...], tuple[int, ...]]:
    """Whether each question is answered right; then by selection, how often its target stays, and K."""
    replies = model.answer(asked, masks)
    texts = [model.text(reply) for reply in replies]
    right = np.array(
        [text == word for text, word in zip(texts, asked.answers, strict=True)], dtype=np.float64
    )
    survived, kept = [], []
    for stage in range(len(replies[0].stages)):
        stays = [
            target in reply.stages[stage].kept_visual
            for reply, target in zip(replies, asked.target, strict=True)
        ]
        survived.append(float(np.mean(stays)))
        kept.append(len(replies[0].stages[stage].kept_visual))
    return right, tuple(survived), tuple(kept)


def words_table(found: dict[tuple[str, str], Word]) -> str:
    """Markdown; the words of a form of question in their order.

    How often a word rates; its share of the visual tokens' softmax over text, and of the asked thing's own;
    by layer, the mean place of the asked thing in the attention that the word pays.
    """
    layers = next(iter(found.values())).places
    head = ["asked for", "word", "rates", "of visual tokens", "of the asked one"]
    head += [f"layer {number}" for number in layers]
    rows = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
    for (form, word), of in sorted(found.items(), key=lambda item: item[0][0]):
        places = [f"{np.mean(of.places[layer]):.0f}" for layer in layers]
        shares = [f"{part / of.asked:.0%}" for part in (of.rated, of.received, of.received_asked)]
        rows.append([form, word, *shares, *places])
    return _markdown(rows)


def figures_table(figures: Sequence[Figure]) -> str:
    """Markdown."""
    rows = [
        ["SparseVLM", "kept", "accuracy", "with the padding mask", "the asked thing is kept"],
        ["---", "---:", "---:", "---:", "---:"],
    ]
    for one in figures:
        accuracies = [
            f"{100 * value:.1f} ± {100 * error:.1f}" for value, error in (one.accuracy, one.masked_accuracy)
        ]
        survived = ", ".join(f"{100 * share:.0f}" for share in one.survived)
        rows.append([one.name, ", ".join(map(str, one.kept)), *accuracies, f"{survived} %"])
    return _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="SparseVLM on the sample model, part by part.")
    parser.add_argument("--questions", type=int, default=600, help="how many at least (default: 600)")
    parser.add_argument("--keep", type=float, default=0.5, help="keep ratio (default: 0.5)")
    parser.add_argument("--seeds", choices=sorted(RANGES), default="held-out", help="which pictures to draw")
    parser.add_argument(
        "--variants", type=int, nargs="+", metavar="N", help="only these, counted from 0 (default: all)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    options = parser.parse_args(arguments)
    names = list(variants())
    chosen = range(len(names)) if options.variants is None else options.variants
    try:
        for name, values, least, most in (
            ("--questions", [options.questions], PER_PICTURE + 1, PER_PICTURE * len(RANGES[options.seeds])),
            ("--variants", chosen, 0, len(names) - 1),
            ("--threads", [options.threads], 1, 64),
        ):
            for value in values:
                if not least <= value <= most:
                    raise InputError(
                        f"{name} is {value}: expected {least} to {most}; choose a number in this range"
                    )
        torch.set_num_threads(options.threads)
        pictures = -(-options.questions // PER_PICTURE)
        drawn = [scene(seed) for seed in RANGES[options.seeds][:pictures]]
        print(f"{len(drawn) * PER_PICTURE} questions about {len(drawn)} pictures\n")
        print(words_table(rate_words(drawn, layers=(0, 1, 2))), flush=True)
        figures = []
        for number in chosen:
            print(f"{names[number]} ...", file=sys.stderr, flush=True)
            figures.append(measure(names[number], drawn, options.keep, options.threads))
        print(f"\n{figures_table(figures)}")
    except EdgepruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
