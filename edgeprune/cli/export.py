"""`edgeprune export`: from a Hugging Face model to a bundle."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeprune.cli import summary
from edgeprune.cli.output import Json, print_json, progress_on_stderr

if TYPE_CHECKING:
    from edgeprune.plans import Keep


class DTypeName(str, Enum):
    """The types that weights can have."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model folder in Hugging Face's layout, or a hub id.")
    ],
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE[,...]",
            help="Share of visual tokens that the layers behind the first selection see on average, above 0 "
            "and at most 1; 1 does not prune. Several: the share that each selection keeps, of all visual "
            "tokens. By default the method's published setting.",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            # Written out, because the methods' module would load too much for --help.
            help="Pruning method: `fastv`, `himap`, `illava`, `illava-decoder`, `pyramiddrop`, "
            "`sparsevlm`, `tokencarve`, `random`; `none` is the unpruned graph.",
        ),
    ] = "fastv",
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="N[,...]",
            help="Prune before this decoder layer, or these where the method selects several times; by "
            "default the method's own.",
        ),
    ] = None,
    debias: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="What the first selection is debiased by: `position` (the bias curve), `padding` (the "
            "padding mask), both, or `none`.",
        ),
    ] = "position,padding",
    curve: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|PRESET|none",
            help="Bias curve: a JSON file, a preset's name, or `none`; by default the method's.",
        ),
    ] = None,
    dtype: Annotated[
        DTypeName | None, typer.Option(help="Type of the weights; by default the one they are stored in.")
    ] = None,
    opset: Annotated[int, typer.Option(metavar="N", help="ONNX opset.")] = 18,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the method `random`.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="The bundle; by default named after model, method and share.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier bundle.")] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not compare the result with the original model.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Export a vision-language model as a bundle that prunes.

    Writes the ONNX graphs, the weights and a manifest into one folder, and compares the result with the
    original model before it is put in place. An export that fails or is stopped leaves nothing behind.

    `edgeprune export llava-hf/llava-1.5-7b-hf --keep 0.3 --dtype fp16 -o llava`
    """
    import edgeprune
    from edgeprune.bundle import read_manifest
    from edgeprune.errors import InputError
    from edgeprune.plans import method_by_name

    # Before the exporter's packages are loaded, so that a mistake is told at once.
    method_by_name(method)
    shares, layers = _shares(keep), _layers(layer)
    position, padding = _debias(debias)
    if not position and curve not in (None, "none"):
        raise InputError(
            f"the bias curve {curve} was given and --debias {debias} leaves positions as they are: add "
            "position, or leave the curve out"
        )
    with progress_on_stderr() as progress:
        bundle = edgeprune.export(
            model,
            keep=shares,
            output=output,
            method=method,
            layer=layers,
            curve=curve if position else "none",
            padding_mask=padding,
            dtype=dtype.value if dtype else None,
            opset=opset,
            seed=seed,
            force=force,
            verify=not no_verify,
            progress=progress,
        )
    manifest = read_manifest(bundle)
    if as_json:
        print_json(summary.as_json(bundle, manifest))
    else:
        summary.print_summary(bundle, manifest)


def _shares(text: str | None) -> Keep:
    """One keep ratio, or several; checked as text, so that a message shows what was typed."""
    from edgeprune.selection import keep_per_10000

    if text is None:
        return None
    parts = text.split(",")
    for part in parts:
        keep_per_10000(part)
    return float(text) if len(parts) == 1 else tuple(map(float, parts))


def _layers(text: str | None) -> int | tuple[int, ...] | None:
    if text is None:
        return None
    try:
        layers = tuple(map(int, text.split(",")))
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is not a whole number, nor several separated by commas", param_hint="'--layer'"
        ) from error
    return layers[0] if len(layers) == 1 else layers


def _debias(text: str) -> tuple[bool, bool]:
    """Whether positions are debiased, and whether padding is."""
    from edgeprune.errors import InputError

    names = [name.strip() for name in text.split(",")]
    if names == ["none"]:
        return False, False
    for name in names:
        if name not in ("position", "padding"):
            raise InputError(
                f"--debias {text}: expected position, padding, both with a comma between, or none"
            )
    return "position" in names, "padding" in names
