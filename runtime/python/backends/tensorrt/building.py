"""`build`: from a bundle to engines, in a folder of the bundle that is put in place when it is complete."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Literal

import edgeprune
from edgeprune.bundle import read_manifest, sha256_of
from edgeprune.checks import check_count
from edgeprune.errors import BackendError, InputError, MissingDependencyError, OutputError
from edgeprune.files import need_utf8, refuse_same, write_text
from edgeprune.log import note
from edgeprune.manifest import MANIFEST_NAME, Manifest
from edgeprune.memory import PeakMemory
from edgeprune.ownership import ENGINE_FOLDER, SIDECAR_NAME
from edgeprune.progress import Progress, Silent
from edgeprune.replacing import writing_to
from edgeprune.runtime.backends.sidecars import bundle_hash, check_source, engine_folder, this_platform
from edgeprune.runtime.backends.tensorrt import flavours, memory, plugins
from edgeprune.runtime.backends.tensorrt.compile import Job, read_timing_cache
from edgeprune.runtime.backends.tensorrt.flavours import FLAVOURS, Flavour
from edgeprune.runtime.backends.tensorrt.limits import (
    language_profiles,
    most_kept,
    resolve_limits,
    vision_profile,
)
from edgeprune.runtime.backends.tensorrt.sidecar import (
    FUNCTION_BODY,
    NOTHING,
    PLUGIN,
    EngineFile,
    PluginLibrary,
    Sidecar,
)
from edgeprune.runtime.backends.tensorrt.targets import CURRENT, check_weights, resolve_targets
from edgeprune.runtime.child import run_job


def build(
    bundle: str | os.PathLike[str],
    *,
    backend: str | None = None,
    targets: Sequence[str] = (CURRENT,),
    max_batch: int | None = None,
    max_prompt: int | None = None,
    max_images: int | None = None,
    max_new_tokens: int | None = None,
    max_visual: int | None = None,
    workspace: int | None = None,
    plugin: plugins.Wish = "auto",
    timing_cache: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Builds the engines of a bundle into its folder `engines`, replacing earlier ones of the same kind.

    Args:
        bundle: the folder that `edgeprune export` wrote.
        backend: "tensorrt" or "tensorrt-rtx"; None takes the one that is installed.
        targets: GPU architectures such as "sm89", or "current" for this machine's GPU. TensorRT for RTX puts
            several into one engine, and needs no GPU for it; TensorRT builds for this machine's GPU alone.
        max_batch: prompts that run together; None for 1.
        max_prompt: tokens of a prompt, visual ones included; None for the images and 512 more.
        max_images: images of a prompt; None for 1.
        max_new_tokens: tokens generated after a prompt; None for 512.
        max_visual: visual tokens of a prompt, of images and videos together; None for as many as the images
            can have, or a usual video where that has more.
        workspace: GPU memory in bytes that kernels may use between layers; None for TensorRT's own limit.
        plugin: "on" takes the plugin for the pruning nodes, "off" their function body, "auto" the plugin
            where there is one.
        timing_cache: a file of measured kernel times that makes building again faster. TensorRT only.
        force: build although memory looks too small.
        progress: told the steps.

    Returns:
        The folder of the engines.

    Raises:
        BundleError: not a bundle, or a damaged one.
        InputError: an option has no sensible value or does not fit the others; too little memory.
        MissingDependencyError: the back end is not installed.
        OutputError: the bundle's folder cannot be written to, or its disk is full.
        BackendError: TensorRT cannot build an engine.
    """
    progress = progress or Silent()
    root = Path(os.path.abspath(bundle))
    manifest = read_manifest(root)
    need_utf8(root, "the bundle")  # the worker is told in JSON, and TensorRT takes no other
    limits = resolve_limits(manifest, max_batch, max_prompt, max_images, max_new_tokens, max_visual)
    if workspace is not None:
        check_count("workspace", workspace)
    chosen = _flavour(backend)
    trt = flavours.load(chosen, f"building engines for {chosen.title}")
    version = str(trt.__version__)
    if find_spec("onnx") is None:  # which gives the language graph the form that is built
        raise MissingDependencyError(f"building engines for {chosen.title}", "onnx", chosen.extra)
    if timing_cache is not None and chosen.builds_anywhere:
        raise InputError(
            f"{chosen.title} measures no kernels and has no timing cache: leave out `timing_cache`"
        )
    if timing_cache is not None:
        _check_timing_cache(Path(timing_cache), root, manifest)
    resolved = resolve_targets(chosen, trt, targets)
    check_weights(manifest.precision, resolved.names)
    library = plugins.choose(plugin, chosen, version, manifest.plan.prunes)
    most = most_kept(manifest, limits, library is not None)
    if manifest.plan.prunes and most < limits.visual:
        note(
            f"without the plugin TensorRT selects at most {most} visual tokens: a prompt that keeps more is "
            "refused when it is run"
        )
    memory.check(manifest, chosen, resolved.gpu, resolved.gpu_free, force)
    output: Path = engine_folder(root, chosen.name, version, "-".join(resolved.names))
    check_source(root, manifest, memory.weight_bytes(manifest), progress)

    profiles = {
        "vision": (vision_profile(manifest, limits),),
        "language": tuple(language_profiles(manifest, limits, library is not None).values()),
    }
    graphs = {"vision": manifest.vision, "language": manifest.language}
    with writing_to(output, force=True, kind=ENGINE_FOLDER) as scratch:
        engines: dict[Literal["language", "vision"], EngineFile] = {}
        metric = ""
        for name in ("vision", "language"):
            stages = len(manifest.plan.stages) if name == "language" else 0
            job = Job(
                flavour=chosen.name,
                onnx=root / graphs[name].file,
                language=name == "language",
                output=scratch / f"{name}.engine",
                # TensorRT takes none: it builds for the GPU it finds.
                targets=resolved.names if chosen.builds_anywhere else (),
                profiles=profiles[name],
                stages=stages,
                plugin=library if stages else None,
                workspace=workspace,
                timing_cache=None if timing_cache is None else Path(os.path.abspath(timing_cache)),
            )
            started = perf_counter()
            peak = _run(job, chosen, progress)
            metric = peak.metric
            engines[name] = EngineFile(
                path=job.output.name,
                bytes=job.output.stat().st_size,
                sha256=sha256_of(job.output),
                build_seconds=round(perf_counter() - started, 3),
                peak_memory_bytes=peak.bytes,
            )
        sidecar = Sidecar(
            edgeprune_version=edgeprune.__version__,
            backend=chosen.name,
            version=version,
            targets=resolved.names,
            gpu=None if chosen.builds_anywhere or resolved.gpu is None else resolved.gpu.name,
            platform=this_platform(),
            bundle_sha256=bundle_hash(manifest),
            limits=limits,
            pruning=NOTHING if not manifest.plan.prunes else FUNCTION_BODY if library is None else PLUGIN,
            plugin=None if library is None else PluginLibrary(file=library.name, sha256=sha256_of(library)),
            workspace_bytes=workspace,
            memory_metric=metric,
            engines=engines,
        )
        write_text(scratch / SIDECAR_NAME, sidecar.model_dump_json(indent=2) + "\n")
    return output


def _check_timing_cache(path: Path, root: Path, manifest: Manifest) -> None:
    """Before hours of building, at whose end it is written."""
    refuse_same([path], [root / MANIFEST_NAME, *(root / entry.path for entry in manifest.files)])
    read_timing_cache(path)
    if not os.access(path.parent, os.W_OK):
        raise OutputError(
            f"the timing cache {path} cannot be written: name a file in a folder that exists and can be "
            "written to"
        )


def _flavour(name: str | None) -> Flavour:
    if name is not None:
        return flavours.flavour_by_name(name)
    for flavour in FLAVOURS.values():
        if flavours.is_installed(flavour):
            return flavour
    ways = " or ".join(f"pip install 'edgeprune[{flavour.extra}]'" for flavour in FLAVOURS.values())
    raise InputError(f"neither TensorRT nor TensorRT for RTX is installed: {ways}")


def _run(job: Job, flavour: Flavour, progress: Progress) -> PeakMemory:
    """Runs the job in a child process; see `worker` for why."""
    # Else glibc stops giving back freed copies of weights after the first ones: a fifth more memory in fp16.
    threshold = {"MALLOC_MMAP_THRESHOLD_": os.environ.get("MALLOC_MMAP_THRESHOLD_", str(1 << 20))}
    module, folder = "edgeprune.runtime.backends.tensorrt.worker", job.output.parent
    ended = run_job(module, job.model_dump_json(), folder, progress, threshold)
    if "error" in ended.last:
        raise BackendError(str(ended.last["error"]))
    if "done" in ended.last:
        return PeakMemory(**ended.last["done"])
    if ended.killed:
        raise BackendError(
            f"building {job.output.name} was killed, as the system does when memory runs out: end other "
            "programs, export with `dtype='fp16'`, or build on a machine with more memory"
        )
    raise BackendError(f"{flavour.title} {ended.describe(f'building {job.output.name}')}")
