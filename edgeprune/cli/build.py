"""`edgeprune build`: from a bundle to engines, of TensorRT or of ONNX Runtime."""

from __future__ import annotations

from enum import Enum
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeprune.cli.output import (
    Bundle,
    Json,
    bytes_text,
    print_fields,
    print_json,
    progress_on_stderr,
    seconds_text,
)

if TYPE_CHECKING:
    from edgeprune.runtime.backends.ort_engines import Load, OrtSidecar
    from edgeprune.runtime.backends.tensorrt import Sidecar


class BuiltFor(str, Enum):
    """The back ends that run engines."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"
    ONNXRUNTIME = "onnxruntime"


class PluginWish(str, Enum):
    """Whether the plugin takes the place of the pruning nodes' function body."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


def build(
    bundle: Bundle,
    backend: Annotated[
        BuiltFor | None,
        typer.Option(
            help="TensorRT, TensorRT for RTX, or ONNX Runtime on this CPU; by default which of the first two "
            "is installed."
        ),
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
    """Build engines of a bundle, into its folder `engines`.

    TensorRT builds on the GPU that the engines are for; TensorRT for RTX builds anywhere, for desktop GPUs.
    ONNX Runtime, which needs no engines, loads faster with some built on the same CPU, and finds the threads
    that are fastest; it knows none of the options below but `--json`. A build that fails or is stopped leaves
    nothing behind, and earlier engines as they were.

    `edgeprune build llava --backend tensorrt-rtx --target sm89`
    """
    given = dict(locals())
    if backend is BuiltFor.ONNXRUNTIME:
        _refuse_others(given)
        _build_for_cpu(bundle, as_json)
        return
    from edgeprune.runtime.backends import tensorrt as engines
    from edgeprune.runtime.backends.tensorrt.sidecar import read_sidecar

    with progress_on_stderr() as progress:
        folder = engines.build(
            bundle,
            backend=backend.value if backend else None,
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
    else:
        print_fields(_engine_fields(folder, sidecar))


def _engine_fields(folder: Path, sidecar: Sidecar) -> list[tuple[str, str]]:
    limits = sidecar.limits
    fields = [
        ("engines", f"{folder}"),
        ("built for", f"{' and '.join(sidecar.targets)}, with {sidecar.backend} {sidecar.version}"),
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
    return fields


def _refuse_others(given: dict[str, object]) -> None:
    """Refuses what says nothing of engines of ONNX Runtime.

    Args:
        given: the values of the options by their names.
    """
    known = {"bundle", "backend", "as_json"}
    for name, parameter in signature(build).parameters.items():
        if name not in known and given[name] != parameter.default:
            option = f"'--{name.replace('_', '-')}'"
            raise typer.BadParameter(
                "it says nothing of engines of onnxruntime: leave it out", param_hint=option
            )


def _build_for_cpu(bundle: Path, as_json: bool) -> None:
    from edgeprune.runtime.backends import ort_building
    from edgeprune.runtime.backends.ort_engines import OrtSidecar
    from edgeprune.runtime.backends.sidecars import read_sidecar

    with progress_on_stderr() as progress:
        folder = ort_building.build(bundle, progress=progress)
    sidecar = read_sidecar(folder, OrtSidecar)
    if as_json:
        print_json("build", {"folder": str(folder), **sidecar.model_dump(mode="json")})
    else:
        print_fields(_cpu_fields(folder, sidecar))


def _cpu_fields(folder: Path, sidecar: OrtSidecar) -> list[tuple[str, str]]:
    sizes = {entry.path: entry.bytes for entry in sidecar.engines.values()}
    chosen = f"{sidecar.threads}, {'spinning' if sidecar.spinning else 'not spinning'}"
    tried = "; ".join(
        f"{one.threads}{' spinning' if one.spinning else ''} {seconds_text(one.seconds)}"
        for one in sidecar.steps
    )
    return [
        ("engines", f"{folder} ({bytes_text(sum(sizes.values()))})"),
        ("built for", f"{sidecar.cpu}, with {sidecar.backend} {sidecar.version}"),
        ("threads", f"{chosen} (a decode step with {tried})"),
        ("loading", _load_text(sidecar.load)),
        ("without engines", _load_text(sidecar.load_of_bundle)),
    ]


def _load_text(load: Load) -> str:
    return (
        f"{seconds_text(load.seconds)} ({seconds_text(load.cpu_seconds)} of CPU time), then "
        f"{bytes_text(load.resident_bytes)} resident, {bytes_text(load.anonymous_bytes)} of it mapped from "
        f"no file, at most {bytes_text(load.peak_bytes)}"
    )
