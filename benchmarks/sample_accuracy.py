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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: make the packages `benchmarks` and `samples` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray

import edgeprune
from benchmarks import sample_report
from benchmarks.sample_report import Figure, Report, Trend, mean_and_error
from edgeprune.debias.curves import ExponentialCurve, save_curve
from edgeprune.debias.selection import keep_per_10000, random_visual
from edgeprune.errors import EdgepruneError, InputError, PruningError
from edgeprune.manifest import GraphSpec
from edgeprune.runtime.backends import Backend, open_backend
from edgeprune.runtime.backends.base import Graph
from edgeprune.runtime.prompt import PromptEncoder
from edgeprune.runtime.sampling import Sampler
from edgeprune.runtime.session import Generated, PromptInputs
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
BATCH = 12


@dataclass(frozen=True)
class Variant:
    """A way to select visual tokens.

    Attributes:
        name: as in the report.
        curve: the exported graph's bias curve: "none", "preset" (the published one, resampled) or "measured".
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


QUICK = Extent(24, TUNING_SEEDS[60_006:], (0.3,), (2,), curve_pictures=6, variants=VARIANTS[:-2])
"""Shows that the measurement works, on two padded tuning pictures, so that held-out ones stay unseen."""


@dataclass(frozen=True, eq=False)
class Questions:
    """N questions about P pictures, each with V visual tokens.

    Attributes:
        inputs: of each question, as the session takes it; one picture's arrays are shared by its questions.
        answers: of each question the expected word.
        picture: int64 [N], the number of the picture it is about.
        target: int64 [N], the visual token that shows the thing asked about.
        valid: float32 [N, V], the padding mask of its picture.
    """

    inputs: list[PromptInputs]
    answers: list[str]
    picture: NDArray[np.int64]
    target: NDArray[np.int64]
    valid: NDArray[np.float32]


class SeeingOnce:
    """A back end whose vision graph sees each picture once, however many questions are asked about it."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.name = backend.name
        self.synchronize, self.peak_memory = backend.synchronize, backend.peak_memory

    def load(self, folder: Path, spec: GraphSpec, weights: Path | None = None) -> Graph:
        graph = self._backend.load(folder, spec, weights)
        return _Remembering(graph) if spec.inputs[0].name == "pixel_values" else graph


class _Remembering:
    """A vision graph and what it has seen."""

    def __init__(self, graph: Graph) -> None:
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self._graph = graph
        self._seen: dict[bytes, Array] = {}

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        """Results of single pictures, put together; host arrays serve as tensors."""
        ((wanted, pictures),), (name,) = feeds.items(), outputs
        keys = [picture.tobytes() for picture in pictures]
        for key, picture in zip(keys, pictures, strict=True):
            if key not in self._seen:
                self._seen[key] = self._graph.run({wanted: picture[None]}, outputs)[name].numpy()
        return {name: np.concatenate([self._seen[key] for key in keys])}


class SampleModel:
    """A bundle in ONNX Runtime on the CPU."""

    def __init__(self, folder: Path, threads: int) -> None:
        backend = SeeingOnce(open_backend("onnxruntime", threads=threads))
        self._model = edgeprune.load(folder, backend)
        manifest = self._model.manifest
        self._words = PromptEncoder(
            folder, manifest.prompt, manifest.tokens_per_image, manifest.model.max_positions
        )

    def questions(self, drawn: list[Scene]) -> Questions:
        """All questions about the pictures, with the padding mask that the bundle makes."""
        inputs: list[PromptInputs] = []
        for one in drawn:
            prepared = [self._model.prepare(prompt(question.text), [one.image]) for question in one.questions]
            first = prepared[0]
            inputs += [replace(first, input_ids=each.input_ids) for each in prepared]
        asked = [(number, question) for number, one in enumerate(drawn) for question in one.questions]
        return Questions(
            inputs=inputs,
            answers=[question.answer for _, question in asked],
            picture=np.array([number for number, _ in asked]),
            target=np.array([picture_targets(drawn[number])[question.text] for number, question in asked]),
            valid=np.stack([each.visual_valid for each in inputs]),
        )

    def answer(self, asked: Questions, masks: Array, max_new_tokens: int = MAX_NEW_TOKENS) -> list[Generated]:
        """Greedy replies to all questions, with float32 [N, V] as their padding masks."""
        inputs = [replace(each, imposed=mask) for each, mask in zip(asked.inputs, masks, strict=True)]
        how = self._model.manifest.generation
        replies: list[Generated] = self._model.session.generate(
            inputs, [Sampler(how).pick for _ in inputs], max_new_tokens, batch_size=BATCH
        )
        return replies

    def text(self, reply: Generated) -> str:
        """The answer before the end token."""
        words: str = self._words.decode(reply.token_ids)
        return words.strip()


def picture_targets(drawn: Scene) -> dict[str, int]:
    """By question, the visual token that shows the thing asked about."""
    places = {}
    for thing in drawn.things:
        place = thing.row * GRID + thing.column
        places[color_question(thing.shape)] = places[shape_question(thing.color)] = place
    return places


class Evaluation:
    """Exports bundles and asks them all questions.

    Args:
        model: a folder of the sample model.
        work: where bundles are written.
        extent: what to measure.
        threads: CPU threads.
    """

    def __init__(self, model: Path, work: Path, extent: Extent, threads: int) -> None:
        self.model, self.work, self.extent, self.threads = model, work, extent, threads
        self.seeds = extent.seeds[: -(-extent.questions // PER_PICTURE)]
        self._drawn = [scene(seed) for seed in self.seeds]
        self._began = time.perf_counter()

    def report(self, command: str) -> Report:
        """Measures everything."""
        unpruned = self._bundle("unpruned", keep=1.0, method="none")
        asked = unpruned.questions(self._drawn)
        right, _ = _answers(unpruned, asked, asked.valid)
        whole = _figure("unpruned", None, 1.0, asked, right)
        self._log(f"unpruned: {whole.accuracy:.1%}")
        figures: list[Figure] = []
        trends: list[Trend] = []
        for layer in self.extent.layers:
            for keep in sorted(self.extent.keeps):
                flat = self._bundle(f"{layer}-{keep}-none", keep=keep, layer=layer, debias="padding")
                if keep == min(self.extent.keeps):  # the score is the same at every keep ratio
                    trends.append(self._trend(flat, layer))
                    # An unpruned bundle has no padding mask; a pruning one has the method's.
                    asked = flat.questions(self._drawn)
                figures += self._figures(layer, keep, flat, trends[-1], asked)
        return Report(
            command=command,
            questions=len(asked.answers),
            pictures=len(self.seeds),
            seeds=(self.seeds[0], self.seeds[-1]),
            curve_seeds=(CURVE_SEEDS[0], CURVE_SEEDS[self.extent.curve_pictures - 1]),
            machine=f"{os.cpu_count()} CPU cores, no GPU, {self.threads} thread{'s' * (self.threads > 1)}",
            versions={
                "python": platform.python_version(),
                **{name: version(name) for name in ("onnxruntime", "onnx", "torch", "transformers", "numpy")},
            },
            minutes=(time.perf_counter() - self._began) / 60,
            cpu_minutes=time.process_time() / 60,
            padding=float(1 - asked.valid.mean()),
            unpruned=whole,
            figures=tuple(figures),
            trends=tuple(trends),
        )

    def _figures(
        self, layer: int, keep: float, flat: SampleModel, trend: Trend, asked: Questions
    ) -> list[Figure]:
        """All variants at one layer and keep ratio."""
        measured = self.work / f"curve-{layer}.json"
        save_curve(ExponentialCurve(b=trend.b, num_tokens=trend.tokens), measured)
        curves = {"preset": "fastv", "measured": measured}
        models = {"none": flat}
        for name in {variant.curve for variant in self.extent.variants} - {"none"}:
            models[name] = self._bundle(f"{layer}-{keep}-{name}", keep=keep, layer=layer, curve=curves[name])
        share = keep_per_10000(keep)
        masks = {"ones": np.ones_like(asked.valid), "picture": asked.valid}
        for name, among_content in (("random", False), ("random content", True)):
            rng = np.random.default_rng([layer, share, among_content])
            masks[name] = np.zeros_like(asked.valid)
            np.put_along_axis(masks[name], random_visual(rng, asked.valid, share, among_content), 1.0, axis=1)
        answered: dict[str, tuple[Array, Array]] = {}
        for variant in self.extent.variants:
            mask = masks[variant.mask]
            right, kept = _answers(models[variant.curve], asked, mask)
            if variant.mask.startswith("random") and not np.take_along_axis(mask, kept, axis=1).all():
                raise PruningError(
                    "the graph kept other tokens than the imposed ones: expected those marked valid; "
                    "check the selection of the exported graph"
                )
            answered[variant.name] = right, kept
        baseline, _ = answered[sample_report.BASELINE]
        found = [
            _figure(name, layer, keep, asked, right, kept, baseline)
            for name, (right, kept) in answered.items()
        ]
        for figure in found:
            self._log(f"layer {layer}, keep {keep:g}, {figure.name}: {figure.accuracy:.1%}")
        return found

    def _trend(self, model: SampleModel, layer: int) -> Trend:
        """The sample model's own recency bias at a layer, from the scores of its exported graph."""
        asked = model.questions([scene(seed) for seed in CURVE_SEEDS[: self.extent.curve_pictures]])
        replies = model.answer(asked, asked.valid, max_new_tokens=1)
        scores = np.array([reply.stages[0].score for reply in replies], dtype=np.float64)
        first = slice(None, None, PER_PICTURE)
        trend = sample_report.fit_trend(
            layer, scores.reshape(-1, PER_PICTURE, scores.shape[1]).mean(1), asked.valid[first]
        )
        self._log(f"layer {layer}, measured trend: b = {trend.b:.2e} +- {trend.error:.2e}")
        return trend

    def _bundle(self, name: str, **options: Any) -> SampleModel:
        folder = edgeprune.export(self.model, output=self.work / name, verify=False, **options)
        return SampleModel(folder, self.threads)

    def _log(self, line: str) -> None:
        print(f"{time.perf_counter() - self._began:6.0f} s  {line}", flush=True)


def _answers(model: SampleModel, asked: Questions, masks: Array) -> tuple[Array, Array]:
    """Whether each question is answered right, bool [N], and its kept visual tokens int64 [N, K]."""
    replies = model.answer(asked, masks)
    right = [model.text(reply) == word for reply, word in zip(replies, asked.answers, strict=True)]
    every = np.arange(masks.shape[1])
    kept = [reply.stages[0].kept_visual if reply.stages else every for reply in replies]
    return np.array(right), np.array(kept)


def _figure(
    name: str,
    layer: int | None,
    keep: float,
    asked: Questions,
    right: Array,
    kept: Array | None = None,
    baseline: Array | None = None,
) -> Figure:
    """A line of the report, from what was answered right, bool [N]; `baseline` is that of plain FastV."""
    accuracy, error = mean_and_error(right.astype(float), asked.picture)
    difference = difference_error = padding = target = None
    if baseline is not None and name != sample_report.BASELINE:
        difference, difference_error = mean_and_error(right.astype(float) - baseline, asked.picture)
    if kept is not None:
        padding = float(1 - np.take_along_axis(asked.valid, kept, axis=1).mean())
        target = float((kept == asked.target[:, None]).any(1).mean())
    return Figure(name, layer, keep, accuracy, error, difference, difference_error, padding, target)


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
