"""`edgeprune export`: from a Hugging Face model to a bundle."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli import summary
from edgeprune.cli.output import Json, print_json, progress_on_stderr
from edgeprune.cli.pruning import Curve, Debias, Keep, Layer, Method, read_layers, read_shares


class DTypeName(str, Enum):
    """The types that graphs can compute in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class WeightName(str, Enum):
    """The types that weights can have."""

    INT4 = "int4"
    INT8 = "int8"
    FP8 = "fp8"
    NVFP4 = "nvfp4"
    FP16 = "fp16"
    BF16 = "bf16"
    FP32 = "fp32"


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model folder in Hugging Face's layout, or a hub id.")
    ],
    keep: Keep = None,
    method: Method = "fastv",
    layer: Layer = None,
    debias: Debias = None,
    curve: Curve = None,
    dtype: Annotated[
        DTypeName | None,
        typer.Option(help="Type to compute in; by default the one that the weights are stored in."),
    ] = None,
    weights: Annotated[
        WeightName | None,
        typer.Option(
            help="Type of the weights; by default the one to compute in. nvfp4 is for Blackwell GPUs alone."
        ),
    ] = None,
    calibrate_images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE",
            help="Round int4 or int8 weights by what the model reads: some dozens of images.",
        ),
    ] = None,
    calibrate_prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Questions about them, one per line.")
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(metavar="N", help="ONNX opset; by default 18, with weights in blocks 21, nvfp4 23."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the method `random`.")] = 0,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Most pixels of an image, in models that take any size; by default their own."
        ),
    ] = None,
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
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            help="Hard-link weights that stay as they are instead of copying them: who alters the model's "
            "files alters the bundle's, too.",
        ),
    ] = False,
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
    from edgeprune.exporter.debiasing import check_wish
    from edgeprune.plans import method_by_name, read_debias

    # Before the exporter's packages are loaded, so that a mistake is told at once.
    method_by_name(method)
    check_wish(method, read_debias(debias), curve)
    shares, layers = read_shares(keep), read_layers(layer)
    with progress_on_stderr() as progress:
        bundle = edgeprune.export(
            model,
            keep=shares,
            output=output,
            method=method,
            layer=layers,
            curve=curve,
            debias=debias,
            dtype=dtype.value if dtype else None,
            weights=weights.value if weights else None,
            calibrate_images=calibrate_images,
            calibrate_prompts=calibrate_prompts,
            opset=opset,
            seed=seed,
            max_pixels=max_pixels,
            force=force,
            link=link,
            verify=not no_verify,
            progress=progress,
        )
    manifest = read_manifest(bundle)
    if as_json:
        print_json("bundle", summary.as_json(bundle, manifest))
    else:
        summary.print_summary(bundle, manifest)
