"""Measures what pruning costs the sample model in accuracy, through exported bundles.

    python benchmarks/sample_accuracy.py -o docs

Writes sample-accuracy.md (its measured part; text outside the markers is kept), .json and .png.

Everything is answered by ONNX Runtime from bundles that the exporter wrote, one per method, layer, keep
ratio and bias curve. A selection that no method makes (a random one) is imposed through the padding mask:
where exactly K tokens are marked valid, exactly those are kept.

The pictures come from seeds that neither training nor any setting has used, the bias curve measured on the
sample model from tuning seeds. Every selection answers the same questions, so differences are paired.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: make the packages `benchmarks` and `samples` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray

from benchmarks import sample_report
from benchmarks.sample_report import Figure, Report, Trend
from edgeprune.bundle import read_manifest
from edgeprune.curves import ExponentialCurve, save_curve
from edgeprune.errors import EdgepruneError, InputError, PruningError
from edgeprune.selection import keep_per_10000, kept_count, random_visual
from samples.scenes import (
    GRID,
    HELD_OUT_SEEDS,
    MAX_OBJECTS,
    TUNING_SEEDS,
    Scene,
    color_question,
    prompt,
    scene,
    shape_question,
)

Array = NDArray[Any]

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "tiny-llava"
CURVE_SEEDS = TUNING_SEEDS[50_000:]
"""Pictures that the bias curve is measured on."""
PER_PICTURE = 2 * MAX_OBJECTS
MAX_NEW_TOKENS = 4
BATCH = 24


@dataclass(frozen=True)
class Variant:
    """A way to select visual tokens.

    Attributes:
        name: as in the report.
        curve: the exported graph's bias curve: "none", "preset" (the method's default) or "measured".
        mask: what the graph gets as its padding mask: "ones", "picture" (the true one), or a random
            selection from all tokens ("random") or from the content tokens ("random content").
    """

    name: str
    curve: str
    mask: str


VARIANTS = (
    Variant("random", "none", "random"),
    Variant("random among content", "none", "random content"),
    Variant(sample_report.BASELINE, "none", "ones"),
    Variant("FastV + position", "preset", "ones"),
    Variant("FastV + padding", "none", "picture"),
    Variant("FastV + both", "preset", "picture"),
    Variant("FastV + position, measured curve", "measured", "ones"),
    Variant("FastV + both, measured curve", "measured", "picture"),
)


@dataclass(frozen=True)
class Extent:
    """What is measured.

    Attributes:
        questions: how many to ask at least, twelve of each picture.
        seeds: the pictures asked about, from the first one on. `samples/evaluate.py` and the tests begin at
            the start of the held-out range; those from its 60,000th on nobody had looked at.
        keeps, layers: keep ratios, and the layers pruned before.
        curve_pictures: how many pictures a bias curve is measured on.
        variants: the selections.
    """

    questions: int = 2400
    seeds: range = HELD_OUT_SEEDS[60_000:]
    keeps: tuple[float, ...] = (0.5, 0.3, 0.2, 0.1)
    layers: tuple[int, ...] = (2, 1)
    curve_pictures: int = 400
    variants: tuple[Variant, ...] = VARIANTS


QUICK = Extent(24, TUNING_SEEDS[60_000:], (0.3,), (2,), curve_pictures=6, variants=VARIANTS[:-2])
"""Shows that the measurement works. On tuning pictures, so that held-out ones stay unseen."""


@dataclass(frozen=True, eq=False)
class Questions:
    """N questions about P pictures, each with V visual tokens, ready for the graphs.

    Attributes:
        ids: of each question the prompt's token ids, visual tokens included.
        answers: of each question the expected word.
        picture: int64 [N], the number of the picture it is about.
        target: int64 [N], the visual token that shows the thing asked about.
        pixels: float32 [P, 3, h, w], preprocessed pictures.
        valid: float32 [P, V], their padding masks.
    """

    ids: list[list[int]]
    answers: list[str]
    picture: NDArray[np.int64]
    target: NDArray[np.int64]
    pixels: NDArray[np.float32]
    valid: NDArray[np.float32]

    def batches(self) -> Iterator[NDArray[np.int64]]:
        """Question numbers int64 [B], in batches whose prompts have one length, so that none is padded."""
        lengths = np.array([len(ids) for ids in self.ids])
        for length in np.unique(lengths):
            numbers = np.flatnonzero(lengths == length)
            for start in range(0, len(numbers), BATCH):
                yield numbers[start : start + BATCH]


class SampleModel:
    """A bundle's graphs in ONNX Runtime on the CPU."""

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime

        from edgeprune.runtime.prompt import PromptEncoder

        self.manifest = read_manifest(folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._vision, self._language = (
            onnxruntime.InferenceSession(str(folder / spec.file), options, providers=["CPUExecutionProvider"])
            for spec in (self.manifest.vision, self.manifest.language)
        )
        self._words = PromptEncoder(
            folder, self.manifest.prompt, self.manifest.preprocessing.tokens_per_image
        )

    def questions(self, drawn: list[Scene]) -> Questions:
        """All questions about the pictures, preprocessed as the bundle says."""
        from edgeprune.manifest import PaddingMask
        from edgeprune.runtime.preprocess import preprocess, visual_valid

        spec = self.manifest.preprocessing
        # The method's mask, also where this bundle is exported without one.
        mask = PaddingMask(kind="share", threshold=0.5)
        asked = [(number, question) for number, one in enumerate(drawn) for question in one.questions]
        return Questions(
            ids=[self._words.encode(prompt(question.text), images=1) for _, question in asked],
            answers=[question.answer for _, question in asked],
            picture=np.array([number for number, _ in asked]),
            target=np.array([_targets(drawn[number])[question.text] for number, question in asked]),
            pixels=np.stack([preprocess(np.asarray(one.image), spec) for one in drawn]),
            valid=np.stack([visual_valid(*one.image.size, spec, mask) for one in drawn]),
        )

    def visual_embeds(self, pixels: NDArray[np.float32]) -> Array:
        """[P, V, D] of [P, 3, h, w]."""
        parts = [
            self._vision.run(None, {"pixel_values": pixels[start : start + BATCH]})[0]
            for start in range(0, len(pixels), BATCH)
        ]
        return np.concatenate(parts)

    def prefill_feeds(self, ids: NDArray[np.int64], embeds: Array, valid: Array) -> dict[str, Array]:
        """The language graph's inputs for ids [B, S], embeds [B, V, D] and the padding mask [B, V]."""
        batch, length = ids.shape
        visual = np.nonzero(ids == self.manifest.prompt.image_token_id)[1].reshape(batch, -1)
        feeds: dict[str, Array] = {
            "input_ids": ids,
            "visual_embeds": embeds,
            "visual_index": visual,
            "visual_valid": valid.astype(np.float32),
            "position_ids": np.tile(np.arange(length), (batch, 1)),
            "attention_mask": np.ones_like(ids),
        }
        for spec in self.manifest.language.inputs:
            if spec.name not in feeds:
                known = {"batch": batch}
                shape = [axis if isinstance(axis, int) else known.get(axis, 0) for axis in spec.shape]
                feeds[spec.name] = np.zeros(shape, dtype=spec.dtype)
        return feeds

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """The language graph's outputs by name."""
        names = [spec.name for spec in self.manifest.language.outputs]
        return dict(zip(names, self._language.run(names, feeds), strict=True))

    def answer(self, feeds: dict[str, Array]) -> tuple[list[str], Array | None]:
        """Greedy answers up to the end token, and the kept visual tokens int64 [B, K] if any are dropped."""
        visual = feeds["visual_index"]
        kept: Array | None = None
        tokens = np.zeros((len(visual), 0), dtype=np.int64)
        ended = np.zeros(len(visual), dtype=bool)
        while tokens.shape[1] < MAX_NEW_TOKENS and not ended.all():
            outputs = self.run(feeds)
            if not tokens.size and "kept_index.0" in outputs:
                kept = _kept_visual(outputs["kept_index.0"], visual)
            following = outputs["logits"].argmax(-1)[:, None]
            tokens = np.concatenate([tokens, following], axis=1)
            ended |= np.isin(following[:, 0], self.manifest.prompt.eos_token_ids)
            feeds = _decode_feeds(feeds, outputs, following)
        return [self._words.decode(self._before_end(row)).strip() for row in tokens], kept

    def _before_end(self, tokens: NDArray[np.int64]) -> list[int]:
        ends = np.flatnonzero(np.isin(tokens, self.manifest.prompt.eos_token_ids))
        return [int(token) for token in tokens[: ends[0] if ends.size else None]]


def _targets(drawn: Scene) -> dict[str, int]:
    """By question, the visual token that shows the thing asked about."""
    places = {}
    for thing in drawn.things:
        place = thing.row * GRID + thing.column
        places[color_question(thing.shape)] = places[shape_question(thing.color)] = place
    return places


def _kept_visual(kept_index: Array, visual_index: Array) -> Array:
    """From kept positions [B, S'] and the visual tokens' positions [B, V] to kept visual tokens [B, K]."""
    is_kept = (visual_index[:, :, None] == kept_index[:, None, :]).any(-1)
    return np.nonzero(is_kept)[1].reshape(len(visual_index), -1)


def _decode_feeds(feeds: dict[str, Array], outputs: dict[str, Array], tokens: Array) -> dict[str, Array]:
    """The next step: one token, no visual tokens, the caches carried on."""
    following = {
        "input_ids": tokens,
        "position_ids": feeds["position_ids"][:, -1:] + 1,
        "attention_mask": np.ones_like(tokens),
    }
    for name, value in feeds.items():
        if name.startswith("visual_"):
            following[name] = value[:, :0]
        elif name.startswith("past_"):
            following[name] = outputs["present_" + name.removeprefix("past_")]
    return following


class Evaluation:
    """Exports bundles and asks them all questions."""

    def __init__(self, model: Path, work: Path, extent: Extent, threads: int) -> None:
        self.model, self.work, self.extent, self.threads = model, work, extent, threads
        self._began = time.perf_counter()
        unpruned = self._bundle("unpruned", keep=1.0, method="none")
        pictures = -(-extent.questions // PER_PICTURE)
        self.seeds = extent.seeds[:pictures]
        self.asked = unpruned.questions([scene(seed) for seed in self.seeds])
        self.embeds = unpruned.visual_embeds(self.asked.pixels)
        self._unpruned = unpruned

    def report(self, command: str) -> Report:
        """Measures everything."""
        right, _ = self._answers(self._unpruned, self.asked.valid[self.asked.picture], 0)
        unpruned = self._figure("unpruned", None, 1.0, right, None, None)
        self._log(f"unpruned: {unpruned.accuracy:.1%}")
        figures: list[Figure] = []
        trends: list[Trend] = []
        for layer in self.extent.layers:
            for keep in sorted(self.extent.keeps):
                flat = self._bundle(f"{layer}-{keep}-none", keep=keep, layer=layer, curve="none")
                if len(trends) < 1 + self.extent.layers.index(layer):
                    trends.append(self._trend(flat, layer))
                figures += self._figures(layer, keep, flat, trends[-1])
        return Report(
            command=command,
            questions=len(self.asked.answers),
            pictures=len(self.seeds),
            seeds=(self.seeds[0], self.seeds[-1]),
            curve_seeds=(CURVE_SEEDS[0], CURVE_SEEDS[self.extent.curve_pictures - 1]),
            machine=f"{os.cpu_count()} CPU cores, no GPU; {self.threads} thread{'s' * (self.threads > 1)}",
            versions={
                "python": platform.python_version(),
                **{name: version(name) for name in ("onnxruntime", "onnx", "torch", "transformers", "numpy")},
            },
            minutes=(time.perf_counter() - self._began) / 60,
            padding=float(1 - self.asked.valid.mean()),
            unpruned=unpruned,
            figures=tuple(figures),
            trends=tuple(trends),
        )

    def _figures(self, layer: int, keep: float, flat: SampleModel, trend: Trend) -> list[Figure]:
        """All variants at one layer and keep ratio."""
        measured = self.work / f"curve-{layer}.json"
        save_curve(ExponentialCurve(b=trend.b, num_tokens=trend.tokens), measured)
        curves = {"preset": None, "measured": measured}
        models = {"none": flat}
        for name in {variant.curve for variant in self.extent.variants} - {"none"}:
            models[name] = self._bundle(f"{layer}-{keep}-{name}", keep=keep, layer=layer, curve=curves[name])
        share = keep_per_10000(keep)
        valid = self.asked.valid[self.asked.picture]
        masks = {"ones": np.ones_like(valid), "picture": valid}
        for name, among_content in (("random", False), ("random content", True)):
            rng = np.random.default_rng([layer, share, among_content])
            masks[name] = np.zeros_like(valid)
            np.put_along_axis(masks[name], random_visual(rng, valid, share, among_content), 1.0, axis=1)
        answered: dict[str, tuple[Array, Array]] = {}
        for variant in self.extent.variants:
            mask = masks[variant.mask]
            right, kept = self._answers(models[variant.curve], mask, share)
            if variant.mask.startswith("random") and not np.take_along_axis(mask, kept, axis=1).all():
                raise PruningError(
                    "the graph kept other tokens than the imposed ones: expected those marked valid; "
                    "check the selection of the exported graph"
                )
            answered[variant.name] = right, kept
        baseline, _ = answered[sample_report.BASELINE]
        found = [
            self._figure(name, layer, keep, right, kept, baseline) for name, (right, kept) in answered.items()
        ]
        for figure in found:
            self._log(f"layer {layer}, keep {keep:g}, {figure.name}: {figure.accuracy:.1%}")
        return found

    def _answers(self, model: SampleModel, masks: Array, keep: int) -> tuple[Array, Array]:
        """Whether each question is answered right, bool [N], and its kept visual tokens int64 [N, K]."""
        asked, visual = self.asked, masks.shape[1]
        right = np.zeros(len(asked.answers), dtype=bool)
        kept = np.zeros((len(right), kept_count(visual, keep) if keep else visual), dtype=np.int64)
        for numbers in asked.batches():
            ids = np.array([asked.ids[number] for number in numbers])
            feeds = model.prefill_feeds(ids, self.embeds[asked.picture[numbers]], masks[numbers])
            texts, chosen = model.answer(feeds)
            right[numbers] = [
                text == asked.answers[number] for text, number in zip(texts, numbers, strict=True)
            ]
            kept[numbers] = np.arange(visual) if chosen is None else chosen
        return right, kept

    def _figure(
        self,
        name: str,
        layer: int | None,
        keep: float,
        right: Array,
        kept: Array | None,
        baseline: Array | None,
    ) -> Figure:
        asked = self.asked
        accuracy, error = sample_report.mean_and_error(right.astype(float), asked.picture)
        difference = difference_error = padding = target = None
        if baseline is not None and name != sample_report.BASELINE:
            difference, difference_error = sample_report.mean_and_error(
                right.astype(float) - baseline, asked.picture
            )
        if kept is not None:
            is_valid = np.take_along_axis(asked.valid[asked.picture], kept, axis=1)
            padding = float(1 - is_valid.mean())
            target = float((kept == asked.target[:, None]).any(1).mean())
        return Figure(name, layer, keep, accuracy, error, difference, difference_error, padding, target)

    def _trend(self, model: SampleModel, layer: int) -> Trend:
        """The sample model's own recency bias at a layer, from the scores of its exported graph."""
        asked = model.questions([scene(seed) for seed in CURVE_SEEDS[: self.extent.curve_pictures]])
        embeds = model.visual_embeds(asked.pixels)
        sums = np.zeros(asked.valid.shape)
        for numbers in asked.batches():
            ids = np.array([asked.ids[number] for number in numbers])
            pictures = asked.picture[numbers]
            feeds = model.prefill_feeds(ids, embeds[pictures], asked.valid[pictures])
            score = np.take_along_axis(model.run(feeds)["score.0"], feeds["visual_index"], axis=1)
            np.add.at(sums, pictures, score)
        trend = sample_report.fit_trend(layer, sums / PER_PICTURE, asked.valid)
        self._log(f"layer {layer}, measured trend: b = {trend.b:.2e} +- {trend.error:.2e}")
        return trend

    def _bundle(self, name: str, **options: Any) -> SampleModel:
        from edgeprune.export.pipeline import export

        return SampleModel(export(self.model, output=self.work / name, verify=False, **options), self.threads)

    def _log(self, line: str) -> None:
        print(f"{time.perf_counter() - self._began:6.0f} s  {line}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Accuracy of the sample model, pruned in several ways.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the document")
    parser.add_argument("--model", type=Path, default=SAMPLE, help="the model folder (default: the sample)")
    parser.add_argument(
        "--questions", type=int, help=f"how many to ask at least (default: {Extent.questions})"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--quick", action="store_true", help="few questions, one keep ratio, one layer")
    options = parser.parse_args(arguments)
    extent = QUICK if options.quick else Extent()
    try:
        if options.questions is not None:
            extent = replace(extent, questions=options.questions)
        _check(options, extent)
        with tempfile.TemporaryDirectory() as work:
            evaluation = Evaluation(options.model, Path(work), extent, options.threads)
            report = evaluation.report(_command(options))
        sample_report.write(report, options.output)
    except EdgepruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.output}/sample-accuracy.md, .json and .png")
    return 0


def _check(options: argparse.Namespace, extent: Extent) -> None:
    for name, value, least, most in (
        # Two pictures at least, because one has no standard error.
        ("--questions", extent.questions, PER_PICTURE + 1, PER_PICTURE * len(extent.seeds)),
        ("--threads", options.threads, 1, 64),
    ):
        if not least <= value <= most:
            raise InputError(f"{name} is {value}: expected {least} to {most}; choose a number in this range")
    if not options.output.is_dir():
        raise InputError(f"{options.output} is not a folder: expected an existing one; create it first")


def _command(options: argparse.Namespace) -> str:
    """The command line that repeats this run; the output folder is the repository's."""
    parts = ["python benchmarks/sample_accuracy.py -o docs"]
    if options.quick:
        parts.append("--quick")
    if options.questions is not None:
        parts.append(f"--questions {options.questions}")
    if options.threads != 1:
        parts.append(f"--threads {options.threads}")
    return " ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
