"""`edgeprune bench`: what pruning gains on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgeprune.cli.output import (
    Backend,
    Bundle,
    Json,
    Threads,
    bytes_text,
    digits,
    print_fields,
    print_json,
    print_table,
    progress_on_stderr,
)

if TYPE_CHECKING:
    from edgeprune.runtime.bench import BenchReport, Spread


def bench(
    bundle: Bundle,
    image: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="A picture, may be repeated; by default one is drawn."),
    ] = None,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="The question.")] = "What is in the picture?",
    runs: Annotated[int, typer.Option(metavar="N", help="Measured runs of each variant.")] = 5,
    warmup: Annotated[int, typer.Option(metavar="N", help="Runs before those, not counted.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens to decode in each run.")] = 16,
    backend: Backend = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure what pruning gains on this machine.

    The bundle runs unpruned, pruned without debias, and pruned, beside what the count of FLOPs allows.
    """
    from edgeprune.runtime import bench as measuring

    with progress_on_stderr() as progress:
        report = measuring.run(
            bundle,
            prompt=prompt,
            images=image,
            runs=runs,
            warmup=warmup,
            max_new_tokens=max_new_tokens,
            backend=backend,
            threads=threads,
            progress=progress,
        )
    if as_json:
        print_json(report.to_dict())
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
            str(variant.kept),
            str(variant.padded_kept),
            bytes_text(variant.cache_bytes),
            bytes_text(variant.peak_memory_bytes),
        ]
        for variant in report.variants
    ]
    print_table(header, rows, "milliseconds: median of the runs (least to greatest)")
    threads = "the back end's choice of" if report.threads is None else str(report.threads)
    turns = "the variants took turns" if report.interleaved else "one variant after the other"
    fields = [
        (
            "prompt",
            f"{report.prompt_tokens} tokens, {report.visual_tokens} of them visual; "
            f"{report.new_tokens} decoded",
        ),
        ("runs", f"{report.runs} after {report.warmup} to warm up, {turns}"),
        ("back end", f"{report.backend}, {threads} threads"),
        ("peak memory", report.peak_memory_metric),
    ]
    if report.prefill_speed_up is not None and report.prefill_speed_up_bound is not None:
        share = report.prefill_speed_up / report.prefill_speed_up_bound
        fields.append(
            (
                "prefill speed-up",
                f"{report.prefill_speed_up:.2f}x, by counting FLOPs {report.prefill_speed_up_bound:.2f}x "
                f"({share:.2f} of it)",
            )
        )
    print_fields(fields)


def _spread_text(spread: Spread) -> str:
    median, least, greatest = (digits(s * 1000) for s in (spread.median, spread.least, spread.greatest))
    return f"{median} ({least} to {greatest})"
