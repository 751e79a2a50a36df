"""Why SparseVLM does badly on the sample model: which words rate, and what each part of the method costs.

    python studies/sparsevlm_ablation.py

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

if __package__ in (None, ""):  # run as a script: make the repository's packages importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

import edgeprune
from benchmarks.sample_questions import RANGES, write
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.evaluation.answering import Asking, Bundle, Choice
from edgeprune.evaluation.benchmarks import benchmark_by_name, read_questions
from edgeprune.evaluation.predictions import Prediction
from edgeprune.exporter.scoring import rater_weights
from edgeprune.plans import METHODS, Merge, Positions, ScoringRows, StagedMethod, method_by_name
from edgeprune.questions.llava import Files
from edgeprune.questions.question import Question
from samples import model as sample
from samples import stages
from samples.scenes import COLORS, MAX_OBJECTS, SHAPES, Scene, prompt, scene
from studies.recency import SAMPLE, attention_rows

METHOD = "sparsevlm"
PER_IMAGE = 2 * MAX_OBJECTS
MAX_NEW_TOKENS = 4
BATCH = 12


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
        for question, target in zip(one.questions, one.asked_tokens, strict=True):
            ids = parts(text=prompt(question.text), images=one.image, return_tensors="pt")["input_ids"]
            places = (ids[0] == model.config.image_token_id).nonzero()[:, 0]
            embeds = model.get_input_embeddings()(ids)
            embeds[0, places] = visual
            rates = rater_weights(embeds, places[None], torch.arange(ids.shape[1])[None])[0] > 0
            text = torch.arange(int(places[-1]) + 1, ids.shape[1])
            received = (visual @ embeds[0, text].T).softmax(1)
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


def measure(name: str, questions: Sequence[Question], keep: float, threads: int) -> Figure:
    """Exports a variant and asks it all questions.

    Raises:
        EdgepruneError: it cannot be exported or run.
    """
    with tempfile.TemporaryDirectory() as work, in_place_of_published(variants()[name]):
        folder = edgeprune.export(
            SAMPLE, keep=keep, method=METHOD, debias="padding", output=Path(work) / "bundle", verify=False
        )
        asking = Asking(MAX_NEW_TOKENS, batch=BATCH, threads=threads)
        plain = _ask(Bundle(folder, asking, Choice(debias="none")), questions)
        masked = _ask(Bundle(folder, asking), questions)
    stays = np.array([prediction.asked_kept for prediction in plain], dtype=np.float64)
    return Figure(
        name=name,
        kept=plain[0].kept,
        accuracy=_accuracy(plain, questions),
        masked_accuracy=_accuracy(masked, questions),
        survived=tuple(stays.mean(0).tolist()),
    )


def _ask(bundle: Bundle, questions: Sequence[Question]) -> list[Prediction]:
    found: list[Prediction] = []
    for start in range(0, len(questions), BATCH):
        part = questions[start : start + BATCH]
        found += [prediction for _, prediction in bundle.answer(list(enumerate(part, start)))]
    return found


def _accuracy(answered: Sequence[Prediction], questions: Sequence[Question]) -> tuple[float, float]:
    """The share of right answers and its standard error over images: answers about one depend."""
    pairs = zip(answered, questions, strict=True)
    right = np.array([prediction.text == question.answers[0] for prediction, question in pairs])
    means = right.reshape(-1, PER_IMAGE).mean(1)
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means)))


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
            ("--questions", [options.questions], PER_IMAGE + 1, PER_IMAGE * len(RANGES[options.seeds])),
            ("--variants", chosen, 0, len(names) - 1),
            ("--threads", [options.threads], 1, 64),
        ):
            for value in values:
                if not least <= value <= most:
                    raise InputError(
                        f"{name} is {value}: expected {least} to {most}; choose a number in this range"
                    )
        torch.set_num_threads(options.threads)
        seeds = RANGES[options.seeds][: -(-options.questions // PER_IMAGE)]
        drawn = [scene(seed) for seed in seeds]
        print(f"{len(drawn) * PER_IMAGE} questions about {len(drawn)} images\n")
        print(words_table(rate_words(drawn, layers=(0, 1, 2))), flush=True)
        figures = []
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), options.questions, seeds)
            files = Files(Path(folder) / "questions.jsonl")
            questions = read_questions(benchmark_by_name("exact"), files)
            for number in chosen:
                print(f"{names[number]} ...", file=sys.stderr, flush=True)
                figures.append(measure(names[number], questions, options.keep, options.threads))
        print(f"\n{figures_table(figures)}")
    except EdgepruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
