"""`edgeprune eval`: how well a model answers a benchmark, pruned in one or in several ways."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    from edgeprune.evaluation import Comparison, Evaluation


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
    from edgeprune.evaluation import run
    from edgeprune.evaluation.answering import Asking
    from edgeprune.evaluation.comparison import Grid
    from edgeprune.evaluation.exporting import Pruning

    asked = {"method": method, "keep": keep, "layer": layer, "debias": debias, "curve": curve}
    given = [f"--{name}" for name, value in asked.items() if value is not None]
    if compare and (clash := [name for name in given if name not in ("--layer", "--curve")]):
        raise InputError(
            f"{', '.join(clash)} does not go with --compare, which takes --methods, --keeps and --debiases"
        )
    folder = output or Path(f"eval-{metric}")
    around = None if template is None else typed(template, "--template")
    asking = Asking(max_new_tokens, around, batch, backend, threads)
    with progress_on_stderr() as progress:
        if compare:
            grid = Grid(
                methods=tuple(_listed(methods)),
                keeps=tuple(float(read_share(share)) for share in _listed(keeps)),
                debias=tuple(_listed(debiases)),
                layer=read_layers(layer),
                curve=curve,
                seed=seed,
                resamples=resamples,
            )
            comparison = run.compare(
                target,
                metric,
                data,
                grid,
                images=images,
                annotations=annotations,
                frames=frames,
                limit=limit,
                asking=asking,
                output=folder,
                cache=cache,
                restart=restart,
                plot=True,
                progress=progress,
            )
        else:
            evaluation = run.evaluate(
                target,
                metric,
                data,
                images=images,
                annotations=annotations,
                frames=frames,
                limit=limit,
                pruning=Pruning(method, read_shares(keep), read_layers(layer), curve, debias),
                asking=asking,
                output=folder,
                cache=cache,
                resamples=resamples,
                seed=seed,
                restart=restart,
                progress=progress,
            )
    if compare:
        _print_comparison(comparison, folder, as_json)
    else:
        _print_single(evaluation, folder, as_json)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _print_single(found: Evaluation, folder: Path, as_json: bool) -> None:
    if as_json:
        print_json("eval", found.to_dict())
        return
    rows = []
    for name, value in found.figures.items():
        bounds = found.interval if name == found.main else None
        around = "" if bounds is None else f" (95 % interval {bounds.low:.2f} to {bounds.high:.2f})"
        rows.append((name, f"{value:.2f}{around}"))
    print(f"{found.benchmark}: {found.questions} questions, {found.plan}")
    print_fields(rows)
    if found.submission is not None:
        print(f"to hand in: {found.submission}")
    if found.note is not None:
        print(f"note: {found.note}")
    print(f"written to {folder}")


def _print_comparison(found: Comparison, folder: Path, as_json: bool) -> None:
    from edgeprune.evaluation.report import asked_text, difference_text, interval_text

    if as_json:
        print_json("comparison", found.to_dict())
        return
    with_asked = any(outcome.asked for outcome in found.outcomes)
    rows = [
        [
            outcome.way.name,
            "1" if outcome.way.keep is None else f"{outcome.way.keep:g}",
            interval_text(outcome.main),
            difference_text(outcome.difference).strip("*"),
            ", ".join(f"{count:.0f}" for count in outcome.kept) or f"{found.visual_tokens:.0f}",
            f"{100 * outcome.padding:.0f} %" if outcome.kept else "",
            *([f"{asked_text(outcome)} %" if outcome.asked else ""] if with_asked else []),
        ]
        for outcome in found.outcomes
    ]
    title = f"{found.benchmark}, {found.questions} questions about {found.images} images, 95 % intervals"
    header = ["selection", "keep", found.figure, "difference to the plain method", "kept", "padding"]
    header += ["asked token kept"] if with_asked else []
    print_table(header, rows, title)
    for reason in found.left_out:
        print_reason("left out", reason, stderr=False)
    print(f"written to {folder}: comparison.md, comparison.json, comparison.png, and every answer")
