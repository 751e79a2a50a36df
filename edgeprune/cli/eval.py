"""`edgeprune eval`: how well a model answers a benchmark, pruned in one or in several ways."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeprune.cli.output import (
    Backend,
    Json,
    Threads,
    print_fields,
    print_json,
    print_reason,
    print_table,
    progress_on_stderr,
)
from edgeprune.cli.pruning import Curve, Debias, Keep, Layer, read_layers, read_shares
from edgeprune.cli.text import typed
from edgeprune.errors import InputError

if TYPE_CHECKING:
    from edgeprune.evaluation.answering import Asking
    from edgeprune.evaluation.benchmarks import Benchmark
    from edgeprune.evaluation.comparison import Comparison, Grid
    from edgeprune.evaluation.exporting import Pruning
    from edgeprune.progress import Progress
    from edgeprune.questions.question import Question


def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE|MODEL",
            help="A bundle, or a model folder, of which the needed bundles are exported.",
        ),
    ],
    data: Annotated[
        Path, typer.Option(metavar="FILE", help="The question file; of MME the folder of subtasks.")
    ],
    metric: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The benchmark: exact, gqa, mmbench, mmbench-cn, mme, mmvet, pope, scienceqa, textvqa, "
            "vizwiz, vqav2, tgif-qa, msvd-qa, msrvtt-qa.",
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder of images, or of a folder of frames per video."),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Reference answers, where the question file has none."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="The folder for answers and results; by default eval-NAME."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Ask only the first questions.")] = None,
    frames: Annotated[int, typer.Option(metavar="N", help="Frames shown of each video.")] = 8,
    template: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="The prompt, with {images} and {question} in their places; by default the chat template.",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", help="End an answer after so many tokens; by default the benchmark's."),
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", help="Questions that run together.")] = 8,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of a model: the pruning method. Without this, --keep, --layer, --debias and --curve "
            "nothing is pruned.",
        ),
    ] = None,
    keep: Keep = None,
    layer: Layer = None,
    debias: Debias = None,
    curve: Curve = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Of a model: unpruned, random, methods, and debiased methods side by side."
        ),
    ] = False,
    methods: Annotated[
        str, typer.Option(metavar="NAMES", help="What --compare compares, with commas between.")
    ] = "fastv",
    keeps: Annotated[
        str, typer.Option(metavar="SHARES", help="At which keep ratios --compare does.")
    ] = "0.5,0.3,0.1",
    debiases: Annotated[
        str, typer.Option(metavar="NAMES", help="By what: among none, position, padding, both.")
    ] = "none,position,padding,both",
    cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where exported bundles are kept; by default in the output."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of random selections and of resampling.")] = 0,
    resamples: Annotated[
        int, typer.Option(metavar="N", help="Resamples of the images, for the 95 % intervals.")
    ] = 2000,
    restart: Annotated[
        bool, typer.Option("--restart", help="Ask everything anew rather than go on with an earlier run.")
    ] = False,
    backend: Backend = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure how well a model answers a benchmark's questions.

    Reads the question files of GQA, VQAv2, MME, POPE and others as their communities use them, and scores
    with their official metrics; where grading is done elsewhere, it writes the file to hand in. Answers are
    written as they come: the same command goes on after an interruption.

    `edgeprune eval llava --data llava_gqa.jsonl --annotations testdev.json --images gqa --metric gqa`
    """
    from edgeprune.debias.selection import read_share
    from edgeprune.evaluation.answering import Asking
    from edgeprune.evaluation.benchmarks import benchmark_by_name, read_questions
    from edgeprune.evaluation.comparison import Grid, comparison_outputs
    from edgeprune.evaluation.exporting import UNPRUNED, Pruning
    from edgeprune.evaluation.outputs import Outputs, inputs_of
    from edgeprune.exporter.debiasing import check_wish
    from edgeprune.files import alone_in, make_folder, refuse_same
    from edgeprune.manifest import MANIFEST_NAME
    from edgeprune.plans import method_by_name, read_debias
    from edgeprune.plotting import need_matplotlib
    from edgeprune.questions.llava import Files

    benchmark = benchmark_by_name(metric)
    is_bundle = os.path.isfile(Path(target) / MANIFEST_NAME)
    asked = {"method": method, "keep": keep, "layer": layer, "debias": debias, "curve": curve}
    given = [f"--{name}" for name, value in asked.items() if value is not None]
    if is_bundle and (compare or given):
        raise InputError(
            f"{target} is a bundle, which prunes as it was exported: {', '.join(given) or '--compare'} needs "
            "the model folder; give that, or leave it out"
        )
    if compare and (clash := [name for name in given if name not in ("--layer", "--curve")]):
        raise InputError(
            f"{', '.join(clash)} does not go with --compare, which takes --methods, --keeps and --debiases"
        )
    pruning = UNPRUNED
    if given:
        method_by_name(method or "fastv")
        check_wish(method or "fastv", read_debias(debias), curve)
        pruning = Pruning(method or "fastv", read_shares(keep), read_layers(layer), curve, debias)
    grid = Grid(
        methods=tuple(_listed(methods)),
        keeps=tuple(float(read_share(share)) for share in _listed(keeps)),
        debias=tuple(_listed(debiases)),
        layer=read_layers(layer),
        curve=curve,
        seed=seed,
        resamples=resamples,
    )
    longest = benchmark.max_new_tokens if max_new_tokens is None else max_new_tokens
    around = None if template is None else typed(template, "--template")
    asking = Asking(longest, around, batch, backend, threads)
    asking.check()
    folder = output or Path(f"eval-{metric}")
    # Answers in a bundle would be in the way of the next export to it.
    refuse_same([folder], [target])
    if compare:
        grid.check()
        need_matplotlib()
        outputs = comparison_outputs(grid, folder)
    else:
        names = ["result.json", *([f"submission.{benchmark.ending}"] if benchmark.submission else [])]
        outputs = Outputs((folder / "predictions.jsonl",), tuple(folder / name for name in names))
    files = Files(data, images, annotations, frames)
    questions = read_questions(benchmark, files, limit)
    outputs.check([*inputs_of(files, questions), curve])
    make_folder(folder)
    with alone_in(folder), progress_on_stderr() as progress:
        if compare:
            found = _compare(target, cache, benchmark, questions, asking, grid, folder, restart, progress)
        else:
            bundle = Path(target) if is_bundle else _exported(target, cache, pruning, folder, progress)
            single = _evaluate(bundle, benchmark, questions, asking, grid, folder, restart, progress)
    if compare:
        _print_comparison(found, folder, as_json)
    else:
        _print_single(single, benchmark, folder, as_json)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _model_folder(target: str, progress: Progress) -> Path:
    from edgeprune.optional import export_module

    folder: Path = export_module("exporter.pipeline").resolve_model(target, progress)
    return folder


def _exported(target: str, cache: Path | None, pruning: Pruning, folder: Path, progress: Progress) -> Path:
    """The one bundle of a model that a single evaluation needs."""
    from edgeprune.evaluation.exporting import Bundles

    return Bundles(_model_folder(target, progress), cache or folder / "bundles", progress).of(pruning)


def _evaluate(
    bundle: Path,
    benchmark: Benchmark,
    questions: list[Question],
    asking: Asking,
    grid: Grid,
    folder: Path,
    restart: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Asks one bundle; writes result.json and the submission file, and returns what is in the former."""
    from edgeprune.evaluation.answering import ask, settings_of
    from edgeprune.evaluation.benchmarks import can_score
    from edgeprune.evaluation.bootstrap import interval
    from edgeprune.evaluation.predictions import PredictionFile
    from edgeprune.files import write_text

    settings = settings_of(bundle, questions, asking)
    with PredictionFile(folder / "predictions.jsonl", settings, questions, restart) as file:
        progress.step(f"asking {benchmark.title}", len(questions))
        ask(bundle, questions, file, asking, progress=progress)
    texts = file.texts()
    result: dict[str, Any] = {
        "benchmark": benchmark.title,
        "settings": settings,
        "predictions": str(file.path),
        "figures": {},
        "main": None,
        "interval": None,
        "submission": None,
        "note": benchmark.note,
    }
    if benchmark.metric is not None and can_score(benchmark, questions):
        tally = benchmark.metric(questions, texts)
        result |= {
            "figures": tally.result(),
            "main": tally.main,
            "interval": asdict(interval(tally, grid.resamples, grid.seed)),
        }
    elif benchmark.note is None:
        result["note"] = "the questions come without reference answers, so nothing is scored here"
    if benchmark.submission is not None:
        path = folder / f"submission.{benchmark.ending}"
        benchmark.submission(questions, texts, path)
        result["submission"] = str(path)
    write_text(folder / "result.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


def _compare(
    target: str,
    cache: Path | None,
    benchmark: Benchmark,
    questions: list[Question],
    asking: Asking,
    grid: Grid,
    folder: Path,
    restart: bool,
    progress: Progress,
) -> Comparison:
    from edgeprune.evaluation import report
    from edgeprune.evaluation.comparison import compare
    from edgeprune.evaluation.exporting import Bundles

    bundles = Bundles(_model_folder(target, progress), cache or folder / "bundles", progress)
    found = compare(bundles, benchmark, questions, asking, grid, folder, restart, progress)
    report.write(found, folder)
    report.plot(found, folder / "comparison.png")
    return found


def _print_single(result: dict[str, Any], benchmark: Benchmark, folder: Path, as_json: bool) -> None:
    if as_json:
        print_json("eval", result)
        return
    rows = [(name, f"{value:.2f}") for name, value in result["figures"].items()]
    if result["interval"] is not None:
        low, high = result["interval"]["low"], result["interval"]["high"]
        rows = [
            (name, f"{value} (95 % interval {low:.2f} to {high:.2f})" if name == result["main"] else value)
            for name, value in rows
        ]
    print(f"{benchmark.title}: {result['settings']['questions']} questions, {result['settings']['plan']}")
    print_fields(rows)
    if result["submission"] is not None:
        print(f"to hand in: {result['submission']}")
    if result["note"] is not None:
        print(f"note: {result['note']}")
    print(f"written to {folder}")


def _print_comparison(found: Comparison, folder: Path, as_json: bool) -> None:
    from edgeprune.evaluation.report import difference_text, interval_text

    if as_json:
        print_json("comparison", asdict(found))
        return
    rows = [
        [
            outcome.way.name,
            "1" if outcome.way.keep is None else f"{outcome.way.keep:g}",
            interval_text(outcome.main),
            difference_text(outcome.difference).strip("*"),
            ", ".join(f"{count:.0f}" for count in outcome.kept) or f"{found.visual_tokens:.0f}",
            f"{100 * outcome.padding:.0f} %" if outcome.kept else "",
        ]
        for outcome in found.outcomes
    ]
    title = f"{found.benchmark}, {found.questions} questions about {found.images} images, 95 % intervals"
    header = ["selection", "keep", found.figure, "difference to the plain method", "kept", "padding"]
    print_table(header, rows, title)
    for reason in found.left_out:
        print_reason("left out", reason, stderr=False)
    print(f"written to {folder}: comparison.md, comparison.json, comparison.png, and every answer")
