"""`edgeprune inspect`: what a bundle is, and what it keeps of an image."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeprune.cli import summary
from edgeprune.cli.images import check_drawable, draw_reply
from edgeprune.cli.output import Backend, Bundle, Json, bytes_text, print_fields, print_json
from edgeprune.cli.text import typed
from edgeprune.errors import OutputError

if TYPE_CHECKING:
    from edgeprune.manifest import Manifest
    from edgeprune.runtime import Reply


def inspect(
    bundle: Bundle,
    image: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Draw the kept and dropped tokens of this image; may be repeated."),
    ] = None,
    prompt: Annotated[
        str, typer.Option(metavar="TEXT", help="The question that decides what is kept, with --image.")
    ] = "What is in the image?",
    draw: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where they are drawn; by default kept.png."),
    ] = None,
    backend: Backend = "auto",
    as_json: Json = False,
) -> None:
    """Show what a bundle holds and how it prunes.

    That is its plan, bias curve, padding mask, graphs, files and verification. With `--image`, also
    run it and draw which visual tokens are kept, with and without debias side by side.
    """
    from edgeprune.bundle import read_manifest

    images = image or []
    if draw is not None and not images:
        raise typer.BadParameter("expected an --image to draw on", param_hint="'--draw'")
    if draw is None:
        draw = Path("kept.png")
        if images and os.path.lexists(draw):
            raise OutputError(f"{draw} exists already: name the drawing with --draw, which replaces a file")
    manifest = read_manifest(bundle)
    drawn: dict[str, Any] = {}
    if images:
        check_drawable(manifest, images, draw)
        reply = _first_token(bundle, backend, typed(prompt, "--prompt"), images)
        draw_reply(manifest, images, reply, draw)
        drawn = _drawing_facts(reply, draw)
    if as_json:
        print_json("bundle", {**summary.as_json(bundle, manifest), **({"drawing": drawn} if drawn else {})})
        return
    _print_text(bundle, manifest)
    if drawn:
        kept, plain = (
            ", ".join(map(str, drawn[name])) for name in ("padded_kept", "padded_kept_without_debias")
        )
        compared = reply.plan.debias and None not in drawn["padded_kept_without_debias"]
        kept_text = f"{', '.join(map(str, drawn['kept']))} of {drawn['visual_tokens']} tokens"
        print_fields(
            [
                ("drawn in", str(draw)),
                ("kept", kept_text),
                ("padding among them", f"{kept} (without debias {plain})" if compared else kept),
            ]
        )


def _print_text(bundle: Path, manifest: Manifest) -> None:
    summary.print_summary(bundle, manifest)
    if manifest.curve:
        print(f"weights by token, 0 to the largest: {summary.curve_plot(manifest.curve)}")
    model, program = manifest.model, manifest.image_program
    grid = "as many as it has squares" if program.grid is None else "{} x {}".format(*program.grid)
    tiles = "" if program.cut is None else f", in up to {program.most_tiles} tiles"
    print_fields(
        [
            ("visual tokens", f"{program.most_tokens} an image ({grid}{tiles})"),
            *([("videos", manifest.video_program.sampling.describe())] if manifest.video_program else []),
            ("positions", str(model.max_positions)),
            (
                "caches",
                f"{bytes_text(manifest.cache_bytes_per_token)} a token that nothing prunes, "
                f"{bytes_text(manifest.cache_bytes_per_token * model.max_positions)} at all positions",
            ),
            ("cache groups", ", ".join(f"layers {g.first} to {g.last}" for g in manifest.cache_groups)),
            ("written by", f"edgeprune {manifest.edgeprune_version}, opset {manifest.opset}"),
        ]
    )
    summary.print_graphs(manifest)
    summary.print_files(manifest)


def _first_token(bundle: Path, backend: str, prompt: str, images: list[str]) -> Reply:
    """Pruning happens in the prefill, so one token is enough to see it."""
    from edgeprune.runtime import load

    return load(bundle, backend).generate(prompt, images, max_new_tokens=1)


def _drawing_facts(reply: Reply, output: Path) -> dict[str, Any]:
    """The drawing in numbers; null is what a stage's scores, already debiased, do not tell."""
    plain = [stage.without_debias() if stage.score_is_raw else None for stage in reply.stages]
    return {
        "file": str(output),
        "visual_tokens": reply.statistics.visual_tokens,
        "kept": list(reply.statistics.kept),
        "padded_kept": list(reply.statistics.padded_kept),
        "padded_kept_without_debias": [
            None if kept is None else stage.padded_among(kept)
            for stage, kept in zip(reply.stages, plain, strict=True)
        ],
        "kept_visual": [list(stage) for stage in reply.kept_visual],
        "kept_visual_without_debias": [None if kept is None else kept.tolist() for kept in plain],
    }
