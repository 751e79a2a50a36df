"""`edgeprune build`: from a bundle to TensorRT engines."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli.output import Bundle, Json, bytes_text, print_fields, print_json, progress_on_stderr


class FlavourName(str, Enum):
    """The flavours of TensorRT."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


class PluginWish(str, Enum):
    """Whether the plugin takes the place of the pruning nodes' function body."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


def build(
    bundle: Bundle,
    flavour: Annotated[
        FlavourName | None, typer.Option(help="TensorRT, or TensorRT for RTX; by default what is installed.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SM|current",
            help="GPU architecture such as sm89; by default `current`, this machine's. For TensorRT for RTX "
            "it may be repeated.",
        ),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(metavar="N", help="Prompts that run together; by default 1.")
    ] = None,
    max_prompt: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Tokens of a prompt, visual ones included; by default the images' and 512."
        ),
    ] = None,
    max_images: Annotated[
        int | None, typer.Option(metavar="N", help="Images of a prompt; by default 1.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens generated after a prompt; by default 512.")
    ] = None,
    max_visual: Annotated[
        int | None,
        typer.Option(metavar="N", help="Visual tokens of a prompt; by default what its images can have."),
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option(
            metavar="MB", min=1, help="GPU memory for kernels; by default as much as TensorRT likes."
        ),
    ] = None,
    plugin: Annotated[
        PluginWish,
        typer.Option(help="Run the pruning nodes by the plugin, or by their function body."),
    ] = PluginWish.AUTO,
    timing_cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep measured kernel times here. TensorRT only.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build although memory looks too small.")] = False,
    as_json: Json = False,
) -> None:
    """Build TensorRT engines of a bundle, into its folder `engines`.

    TensorRT builds on the GPU that the engines are for; TensorRT for RTX builds anywhere, for desktop GPUs.
    A build that fails or is stopped leaves nothing behind, and earlier engines as they were.

    `edgeprune build llava --flavour tensorrt-rtx --target sm89`
    """
    from edgeprune.runtime.backends import tensorrt as engines
    from edgeprune.runtime.backends.tensorrt.sidecar import read_sidecar

    with progress_on_stderr() as progress:
        folder = engines.build(
            bundle,
            flavour=flavour.value if flavour else None,
            targets=target or ["current"],
            max_batch=max_batch,
            max_prompt=max_prompt,
            max_images=max_images,
            max_new_tokens=max_new_tokens,
            max_visual=max_visual,
            workspace=None if workspace is None else workspace * 1_000_000,
            plugin=plugin.value,
            timing_cache=timing_cache,
            force=force,
            progress=progress,
        )
    sidecar = read_sidecar(folder)
    if as_json:
        print_json("build", {"folder": str(folder), **sidecar.model_dump(mode="json")})
        return
    limits = sidecar.limits
    fields = [
        ("engines", f"{folder}"),
        ("built for", f"{' and '.join(sidecar.targets)}, with {sidecar.flavour} {sidecar.version}"),
        (
            "limits",
            f"{limits.batch} prompts of {limits.prompt} tokens and {limits.images} images, "
            f"{limits.new_tokens} new tokens each",
        ),
        ("pruning", f"by the {sidecar.pruning}" if sidecar.pruning != "no pruning" else "none"),
    ]
    for name, engine in sidecar.engines.items():
        size, peak = bytes_text(engine.bytes), bytes_text(engine.peak_memory_bytes)
        fields.append((name, f"{size}, built in {engine.build_seconds:.0f} s with at most {peak} of memory"))
    print_fields(fields)
