"""Ways to select visual tokens, asked the same questions: none, random, methods, debiased methods; and the
image resized until it has as many tokens, with nothing pruned.

Every way answers from a graph that the exporter wrote, one for each method: keep ratio and debias are choices
of a run. A random selection is imposed through the padding mask, since where exactly K tokens are marked
valid, exactly those are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.bundle import read_manifest
from edgeprune.choices import run_plan
from edgeprune.debias.selection import keep_per_10000, kept_count, random_visual
from edgeprune.errors import InputError
from edgeprune.evaluation.answering import Asking, Choice, Mask, ask, settings_of
from edgeprune.evaluation.benchmarks import Benchmark, can_score
from edgeprune.evaluation.bootstrap import RESAMPLES, Interval, check_resampling, interval, paired
from edgeprune.evaluation.exporting import Bundles, Pruning
from edgeprune.evaluation.metrics import Tally
from edgeprune.evaluation.outputs import Outputs
from edgeprune.evaluation.predictions import Prediction, PredictionFile
from edgeprune.log import note
from edgeprune.manifest import Manifest
from edgeprune.plans import PruningPlan, Ranking, method_by_name
from edgeprune.progress import Progress, Silent
from edgeprune.questions.question import Question

UNPRUNED, RESIZE = "unpruned", "resize"
RANDOM, RANDOM_CONTENT = "random", "random among content"
DEBIAS = ("none", "position", "padding", "both")
_RANDOM_METHOD = "fastv"


@dataclass(frozen=True)
class Grid:
    """What to compare.

    Attributes:
        methods: pruning methods.
        keeps: keep ratios.
        debias: of each method, which of `DEBIAS`; "none" is what the others are compared with.
        layer: prune before this layer, or these; None is each method's own.
        curve: a bias curve's file or preset; None is each method's own.
        random: whether to draw at random too.
        seed: of random selections and of resampling.
        resamples: for the intervals.
    """

    methods: tuple[str, ...] = ("fastv",)
    keeps: tuple[float, ...] = (0.5, 0.3, 0.1)
    debias: tuple[str, ...] = DEBIAS
    layer: int | tuple[int, ...] | None = None
    curve: str | None = None
    random: bool = True
    seed: int = 0
    resamples: int = RESAMPLES

    def __post_init__(self) -> None:
        """Raises InputError for numbers that a later step would fall over."""
        check_resampling(self.resamples, self.seed)

    def check(self) -> None:
        """Raises InputError for what cannot be compared."""
        for method in self.methods:
            if method_by_name(method).ranking in (None, Ranking.RANDOM):
                raise InputError(
                    f"{method} is no method to compare: leave it out, unpruned and random selections are "
                    "compared anyhow"
                )
        for keep in self.keeps:
            if keep_per_10000(keep) == 10_000:
                raise InputError(
                    "a keep ratio of 1 prunes nothing: leave it out, unpruned is compared anyhow"
                )
        for name in self.debias:
            if name not in DEBIAS:
                raise InputError(f"unknown debias {name!r}: choose among {', '.join(DEBIAS)}")
        if not self.methods or not self.keeps or not self.debias:
            raise InputError("nothing to compare: give at least one method, keep ratio and debias")


@dataclass(frozen=True)
class Way:
    """One way to select visual tokens, at one keep ratio.

    Attributes:
        name: as in the report.
        method: the exported method.
        keep: keep ratio; None where nothing is pruned.
        debias: one of `DEBIAS`.
        drawn: where a random selection is drawn from: "all" tokens, or the "content", those that show the
            image; None for no random selection.
        resized: whether the image is resized until it has as many visual tokens, and nothing is pruned.
        baseline: the way that it is compared with, or None.
        beside: another one that it is compared with too, or None.
    """

    name: str
    method: str
    keep: float | None = None
    debias: str = "none"
    drawn: str | None = None
    resized: bool = False
    baseline: str | None = None
    beside: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What one way came to.

    Attributes:
        way: the way.
        figures: all of the benchmark's figures.
        main: the main one with its interval.
        difference: of the main figure from the baseline's, paired; None without one.
        added: likewise, from what it is compared with too.
        plan: what ran, in words.
        kept: mean number of visual tokens after each stage.
        padding: of the tokens that the first stage kept, the share of padding.
        asked: after each stage, the share of questions whose asked token is still there, of those that say
            which one it is; None where none does.
    """

    way: Way
    figures: dict[str, float]
    main: Interval
    difference: Interval | None
    added: Interval | None
    plan: str
    kept: tuple[float, ...]
    padding: float
    asked: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Comparison:
    """All outcomes on one benchmark."""

    benchmark: str
    figure: str
    questions: int
    images: int
    resamples: int
    visual_tokens: float
    outcomes: tuple[Outcome, ...]
    left_out: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Every figure, ready for JSON."""
        return asdict(self)


def ways(grid: Grid) -> Iterator[Way]:
    """Every way of a grid, baselines before what is compared with them."""
    free = [method for method in grid.methods if method_by_name(method).keep_is_free]
    unpruned = free[0] if free else _RANDOM_METHOD
    yield Way(UNPRUNED, unpruned)
    for keep in grid.keeps:
        yield Way(RESIZE, unpruned, keep, resized=True)
        if grid.random:
            yield Way(RANDOM, _RANDOM_METHOD, keep, drawn="all")
            yield Way(RANDOM_CONTENT, _RANDOM_METHOD, keep, drawn="content")
        for method in grid.methods:
            plain = method if "none" in grid.debias else None
            for debias in sorted(set(grid.debias), key=DEBIAS.index):
                yield Way(
                    name=method if debias == "none" else f"{method} + {debias}",
                    method=method,
                    keep=keep,
                    debias=debias,
                    baseline=None if debias == "none" else plain,
                    # What position adds to padding.
                    beside=f"{method} + padding" if debias == "both" else None,
                )


@dataclass(frozen=True)
class Needs:
    """What a way answers from.

    Attributes:
        pruning: of the bundle.
        choice: of its runs.
    """

    pruning: Pruning
    choice: Choice


def needs_of(way: Way, grid: Grid) -> Needs:
    """Which bundle a way needs, and what is chosen when it runs."""
    keep = 1.0 if way.keep is None or way.resized else way.keep
    debias = "position,padding" if way.debias == "both" else way.debias
    # A keep ratio that is part of the graph is exported, and no choice of a run.
    free = method_by_name(way.method).keep_is_free
    pruning = Pruning(way.method, None if free else keep, grid.layer, grid.curve)
    return Needs(pruning, Choice(keep if free else None, debias, _mask(way, grid.seed), _resize(way)))


def comparison_of(
    bundles: Bundles,
    benchmark: Benchmark,
    questions: Sequence[Question],
    asking: Asking,
    grid: Grid,
    output: Path,
    restart: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Asks every way all questions. Answers are kept in `output`, so that an interrupted run goes on.

    Raises:
        InputError: the questions have no reference answers, or an earlier run had other settings.
        EdgepruneError: a bundle cannot be exported or run.
    """
    if benchmark.metric is None or not can_score(benchmark, questions):
        raise InputError(
            f"{benchmark.title} cannot be scored here: a comparison needs a metric and reference answers; "
            "give them with `annotations`, or predict with one bundle at a time"
        )
    listener = progress or Silent()
    tallies: dict[tuple[str, float | None], Tally] = {}
    outcomes: list[Outcome] = []
    left_out: list[str] = []
    visual = 0.0
    for way in ways(grid):
        needs = needs_of(way, grid)
        folder = bundles.of(needs.pruning)
        manifest = read_manifest(folder)
        videos = manifest.video_program is not None and any(one.is_video for one in questions)
        reason = _pointless(way, manifest, videos)
        if reason is not None:
            if reason not in left_out:
                note(reason)
                left_out.append(reason)
            continue
        listener.step(way.name if way.keep is None else f"{way.name} at {way.keep:g}", len(questions))
        path = output / _file_name(way)
        plan = run_plan(manifest, needs.choice.keep, needs.choice.debias)
        settings = settings_of(folder, questions, asking, plan, _selection(way, grid.seed))
        with PredictionFile(path, settings, questions, restart) as file:
            ask(folder, questions, file, asking, needs.choice, listener)
        tally = benchmark.metric(questions, file.texts())
        tallies[way.name, way.keep] = tally
        found = [file.done[number] for number in range(len(questions))]
        if way.name == UNPRUNED:
            visual = sum(one.visual_tokens for one in found) / len(found)
        others = [
            None if name is None else tallies.get((name, way.keep)) for name in (way.baseline, way.beside)
        ]
        outcomes.append(_outcome(way, tally, others, plan, found, grid))
    return Comparison(
        benchmark=benchmark.title,
        figure=tally.main,
        questions=len(questions),
        images=len(tally.counts),
        resamples=grid.resamples,
        visual_tokens=visual,
        outcomes=tuple(outcomes),
        left_out=tuple(left_out),
    )


def comparison_outputs(grid: Grid, output: Path) -> Outputs:
    """The files that `comparison_of`, and the report of it, write into the folder `output`."""
    results = tuple(output / f"comparison.{ending}" for ending in ("md", "json", "png"))
    return Outputs(tuple(output / _file_name(way) for way in ways(grid)), results)


def _file_name(way: Way) -> str:
    at = "" if way.keep is None else f"-{way.keep:g}"
    return f"{way.name.replace(' ', '-')}{at}.jsonl"


def _outcome(
    way: Way,
    tally: Tally,
    others: Sequence[Tally | None],
    plan: PruningPlan,
    found: list[Prediction],
    grid: Grid,
) -> Outcome:
    difference, added = (
        None if other is None else paired(tally, other, grid.resamples, grid.seed) for other in others
    )
    stages = range(len(found[0].kept))
    kept = tuple(sum(one.kept[stage] for one in found) / len(found) for stage in stages)
    padded = sum(one.padded_kept for one in found) / len(found)
    return Outcome(
        way=way,
        figures=tally.result(),
        main=interval(tally, grid.resamples, grid.seed),
        difference=difference,
        added=added,
        plan=plan.describe(),
        kept=kept,
        padding=padded / kept[0] if kept and kept[0] else 0.0,
        asked=_asked(found),
    )


def _asked(found: Sequence[Prediction]) -> tuple[float, ...] | None:
    known = [one.asked_kept for one in found if one.asked_kept is not None]
    return tuple(sum(stage) / len(known) for stage in zip(*known, strict=True)) if known else None


def _pointless(way: Way, manifest: Manifest, videos: bool) -> str | None:
    """Why a way would only repeat another one, or None."""
    if way.debias in ("position", "both") and manifest.curve is None:
        return (
            f"no bias curve of {way.method} is fitted to this model, so position debiasing is left out: give "
            "`curve`"
        )
    if way.resized and videos:
        return "the frames of videos are not resized, so that baseline is left out"
    if way.resized and manifest.image_program.fixed_tokens is not None:
        return "images of every size have as many visual tokens, so resizing them is left out"
    padding = way.debias in ("padding", "both") or way.drawn == "content"
    if padding and manifest.padding_mask.kind == "none":
        return "the model does not letterbox images, so what concerns padding is left out"
    return None


def _selection(way: Way, seed: int) -> str:
    """How visual tokens are selected, for the header of a file of answers."""
    if way.drawn is not None:
        return f"random among {way.drawn}, seed {seed}"
    return "by the plan" if way.keep is None or not way.resized else f"images resized to {way.keep:g}"


def _resize(way: Way) -> int | None:
    return keep_per_10000(way.keep) if way.resized and way.keep is not None else None


def _mask(way: Way, seed: int) -> Mask | None:
    if way.drawn is None or way.keep is None:
        return None
    share = keep_per_10000(way.keep)
    among_content = way.drawn == "content"

    def drawn(valid: NDArray[np.float32], number: int) -> NDArray[np.float32]:
        if not len(valid):
            return valid
        rng = np.random.default_rng([seed, share, among_content, number])
        chosen = np.zeros_like(valid)
        kept = kept_count(len(valid), share)
        chosen[random_visual(rng, valid[None], kept, among_content)[0]] = 1.0
        return chosen

    return drawn
