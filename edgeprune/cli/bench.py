"""`edgeprune bench`: what pruning gains on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeprune.cli.output import (
    Backend,
    Bundle,
    Caches,
    Json,
    Threads,
    bytes_text,
    digits,
    print_fields,
    print_json,
    print_reason,
    print_table,
    progress_on_stderr,
)
from edgeprune.cli.pruning import RunKeep, read_shares
from edgeprune.cli.text import typed

if TYPE_CHECKING:
    from edgeprune.bench.peers.run import CostSpread, PeerResult, PeersReport
    from edgeprune.bench.run import BenchReport, SpeedUp, Spread


def bench(
    bundle: Bundle,
    keep: RunKeep = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BUNDLE",
            help="Measure this bundle of the same model beside it. May be repeated.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Measure other programs with the same weights beside it, on the CPU: of transformers, "
            "onnxruntime-genai and llama.cpp.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="With --against: what the bundle was exported from."),
    ] = None,
    contexts: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="With --against: lengths of the caches at which steps are measured; by default 64,700,2000.",
        ),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="An image, may be repeated; by default one is drawn."),
    ] = None,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="The question.")] = "What is in the image?",
    runs: Annotated[int, typer.Option(metavar="N", help="Measured runs of each variant.")] = 5,
    warmup: Annotated[int, typer.Option(metavar="N", help="Runs before those, not counted.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens to decode in each run.")] = 16,
    backend: Backend = "auto",
    threads: Threads = None,
    caches: Caches = None,
    as_json: Json = False,
) -> None:
    """Measure what pruning gains on this machine.

    The bundle, or its engine, runs unpruned, pruned without debias, and pruned, beside what the count of
    FLOPs allows. Or, with --against, unpruned and pruned beside other programs, and beside what the machine
    allows.

    `edgeprune bench out --keep 0.2 --backend tensorrt-rtx`
    """
    from edgeprune.bench import run as measuring

    if against is not None:
        from edgeprune.bench.peers import run as peers

        if model is None or baseline:
            wrong, reason = "--baseline", "leave it out"
            if model is None:
                wrong, reason = "--model", "expected the folder that the bundle was exported from"
            raise typer.BadParameter(f"with --against: {reason}", param_hint=f"'{wrong}'")
        with progress_on_stderr() as progress:
            beside = peers.run(
                bundle,
                against=[name.strip() for name in against.split(",")],
                model=model,
                contexts=None if contexts is None else _counts(contexts),
                keep=read_shares(keep),
                prompt=typed(prompt, "--prompt"),
                images=image,
                runs=runs,
                warmup=warmup,
                max_new_tokens=max_new_tokens,
                backend=backend,
                threads=threads,
                progress=progress,
            )
        if as_json:
            print_json("bench-against", beside.to_dict())
        else:
            _print_peers(beside)
        return
    if model is not None or contexts is not None:
        raise typer.BadParameter("they go with --against", param_hint="'--model', '--contexts'")
    with progress_on_stderr() as progress:
        report = measuring.run(
            bundle,
            keep=read_shares(keep),
            baselines=baseline or [],
            prompt=typed(prompt, "--prompt"),
            images=image,
            runs=runs,
            warmup=warmup,
            max_new_tokens=max_new_tokens,
            backend=backend,
            threads=threads,
            caches=caches,
            progress=progress,
        )
    if as_json:
        print_json("bench", report.to_dict())
    else:
        _print_report(report)


def _print_report(report: BenchReport) -> None:
    header = [
        "variant",
        "first token",
        "vision",
        "prefill",
        "per token",
        "kept",
        "padding",
        "caches",
        "peak memory",
    ]
    rows = [
        [
            variant.name,
            *map(
                _spread_text,
                (variant.time_to_first_token, variant.vision, variant.prefill, variant.time_per_output_token),
            ),
            f"{variant.kept} of {variant.visual_tokens}",
            "unknown" if variant.padded_kept is None else str(variant.padded_kept),
            bytes_text(variant.cache_bytes),
            bytes_text(variant.peak_memory_bytes),
        ]
        for variant in report.variants
    ]
    print_table(header, rows, "milliseconds: median of the runs (least to greatest)")
    turns = "the variants took turns" if report.interleaved else "one variant after the other"
    # Of bundles, one whose vision tower merges gets a shorter prompt than the others.
    of_which = ""
    if any(variant.visual_tokens != report.visual_tokens for variant in report.variants):
        of_which = f", as {report.variants[-1].name} gets it from its vision tower"
    backend = report.backend
    if report.threads is not None:
        backend += f", {report.threads} threads"
    fields = [
        (
            "prompt",
            f"{report.prompt_tokens} tokens, {report.visual_tokens} of them visual{of_which}; "
            f"{report.new_tokens} decoded",
        ),
        ("runs", f"{report.runs} after {report.warmup} to warm up{f', {turns}' if report.speed_ups else ''}"),
        ("back end", backend),
    ]
    fields += [("engine", f"{one.name}: {one.engine}") for one in report.variants if one.engine is not None]
    fields.append(("peak memory", report.peak_memory_metric))
    fields += [(f"speed-up over {found.over}", _speed_up_text(found)) for found in report.speed_ups]
    print_fields(fields)
    for reason in report.not_measured:
        print_reason("not measured", reason, stderr=False)


def _counts(text: str) -> list[int]:
    try:
        return [int(one) for one in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is no list of whole numbers: expected such as 64,700", param_hint="'--contexts'"
        ) from error


def _print_peers(report: PeersReport) -> None:
    contexts = list(report.results[0].decode)
    header = ["program", "load", "first token", "prefill", *(f"step at {context}" for context in contexts)]

    def row(result: PeerResult, kind: str) -> list[str]:
        def text(costs: CostSpread | None) -> str:
            return "-" if costs is None else _spread_text(getattr(costs, kind))

        parts = (result.first_token, result.prefill, *result.decode.values())
        return [result.name, digits(getattr(result.load, kind) * 1000), *map(text, parts)]

    limits = [
        [
            f"limit {limit.name}",
            "-",
            "-",
            "-" if limit.prefill is None else digits(limit.prefill * 1000),
            *(digits(seconds * 1000) for seconds in limit.decode.values()),
        ]
        for limit in report.limits
    ]
    title = "milliseconds: median of the runs (least to greatest)"
    print_table(header, [row(one, "wall") for one in report.results] + limits, f"by the clock, {title}")
    print_table(header, [row(one, "cpu") for one in report.results], f"CPU time of all threads, {title}")
    turns = "the programs took turns" if report.interleaved else "one program after the other"
    fields = [
        (
            "prompt",
            f"{report.prompt_tokens} tokens, {report.visual_tokens} of them visual; "
            f"{report.new_tokens} steps at each context",
        ),
        ("weights", report.weights),
        ("runs", f"{report.runs} after {report.warmup} to warm up, {turns}; {report.threads} threads"),
        (
            "machine",
            f"{digits(report.flops / 1e9)} GFLOP/s, reads {digits(report.read_bytes / 1e9)} GB/s, by numpy",
        ),
        ("peak memory", report.peak_memory_metric),
    ]
    fields += [
        (one.name, f"{bytes_text(one.peak_memory_bytes)}; {one.version}; {one.what}")
        for one in report.results
    ]
    print_fields(fields)
    for reason in report.not_measured:
        print_reason("not measured", reason, stderr=False)


def _speed_up_text(found: SpeedUp) -> str:
    return (
        f"prefill {found.prefill:.2f}x, by counting FLOPs {found.prefill_bound:.2f}x "
        f"({found.share_of_bound:.2f} of it); first token {found.time_to_first_token:.2f}x, "
        f"per token {found.time_per_output_token:.2f}x"
    )


def _spread_text(spread: Spread) -> str:
    median, least, greatest = (digits(s * 1000) for s in (spread.median, spread.least, spread.greatest))
    return f"{median} ({least} to {greatest})"
