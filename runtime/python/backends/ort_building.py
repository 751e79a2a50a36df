"""`build` for ONNX Runtime: a bundle's graphs as it optimises them here, and what they run fastest with.

What loads or runs a graph does so in a child process of its own, this module again, so that memory and times
are those of one thing alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from statistics import median
from time import perf_counter, process_time
from typing import Any, Literal

import edgeprune
from edgeprune import processor
from edgeprune.bundle import read_manifest, sha256_of
from edgeprune.errors import BackendError
from edgeprune.fields import Part
from edgeprune.files import need_utf8, write_text
from edgeprune.manifest import FileEntry, Manifest
from edgeprune.memory import anonymous_memory, host_peak_memory, resident_memory
from edgeprune.ownership import ENGINE_FOLDER, SIDECAR_NAME
from edgeprune.progress import Progress, Silent
from edgeprune.replacing import writing_to
from edgeprune.runtime.backends.ort import (
    CPU,
    NOT_WANTED,
    Options,
    OrtBackend,
    open_backend,
    session_settings,
)
from edgeprune.runtime.backends.ort_engines import (
    BACKEND,
    TITLE,
    Engines,
    Load,
    OrtSidecar,
    Setting,
    device_name,
    graphs_of,
    this_cpu,
)
from edgeprune.runtime.backends.sidecars import bundle_hash, check_source, engine_folder, this_platform
from edgeprune.runtime.child import run_job, serve_job
from edgeprune.runtime.model import Model

_MODULE = "edgeprune.runtime.backends.ort_building"
# Weights are written twice, as they are and as kernels read them.
_TIMES_WEIGHTS = 2
# Small tensors stay in the graph's own file.
_LEAST_OUTSIDE = 1024
_PROMPT = "What is in the image? " * 8
# Of each setting: steps that do not count, how many do at least and at most, and after how many seconds
# no further one is taken.
_WARM_UP, _LEAST, _MOST, _LONG = 2, 4, 24, 1.0
_ROUNDS = 2
# What is gained by less scatters from run to run.
_EQUAL = 1.1


class Job(Part):
    """What a child does.

    Attributes:
        kind: "optimise" writes what ONNX Runtime makes of `source` to `output`, "load" loads the bundle's
            graphs or their engines and tells what that took, "steps" measures decode steps.
        engines: file names by those of the bundle's graphs, in `output`; None for the bundle's own graphs.
        cores: of which the settings are made.
    """

    kind: Literal["optimise", "load", "steps"]
    source: Path
    output: Path
    engines: dict[str, str] | None = None
    cores: int = 1


def build(bundle: str | os.PathLike[str], *, progress: Progress | None = None) -> Path:
    """Builds the engines of a bundle for this machine's CPU into its folder `engines`, replacing earlier
    ones of the same kind.

    Args:
        bundle: the folder that `edgeprune export` wrote.
        progress: told the steps.

    Returns:
        The folder of the engines.

    Raises:
        BundleError: not a bundle, or a damaged one.
        MissingDependencyError: ONNX Runtime is not installed.
        OutputError: the bundle's folder cannot be written to, or its disk is full.
        BackendError: ONNX Runtime cannot load the graphs.
    """
    progress = progress or Silent()
    root = Path(os.path.abspath(bundle))
    manifest = read_manifest(root)
    need_utf8(root, "the bundle")  # the children are told in JSON
    open_backend(CPU, {}).language_form(manifest)  # refuses what no kernel runs
    import onnxruntime

    version = onnxruntime.__version__
    check_source(root, manifest, _TIMES_WEIGHTS * sum(entry.bytes for entry in manifest.files), progress)
    with writing_to(
        engine_folder(root, BACKEND, version, device_name()), force=True, kind=ENGINE_FOLDER
    ) as scratch:
        for file in graphs_of(manifest):
            progress.step(f"optimising {file}")
            _run(Job(kind="optimise", source=root / file, output=scratch / _flat(file)), progress)
        progress.step("hashing the engines")
        paths = sorted(scratch.iterdir())
        # Whatever is no graph stands by its own name.
        engines = {path.name: _entry(path) for path in paths} | {
            file: _entry(scratch / _flat(file)) for file in graphs_of(manifest)
        }
        files = {file: _flat(file) for file in graphs_of(manifest)}
        loads = []
        for which, own in (("the bundle's graphs", None), ("the engines", files)):
            progress.step(f"loading {which}")
            loads.append(_run(Job(kind="load", source=root, output=scratch, engines=own), progress))
        steps = _run(
            Job(kind="steps", source=root, output=scratch, engines=files, cores=processor.cores()), progress
        )
        settings = tuple(Setting.model_validate(one) for one in steps)
        best = best_of(settings)
        sidecar = OrtSidecar(
            edgeprune_version=edgeprune.__version__,
            backend=BACKEND,
            version=version,
            platform=this_platform(),
            bundle_sha256=bundle_hash(manifest),
            cpu=this_cpu(),
            cpu_features=processor.features(),
            threads=best.threads,
            spinning=best.spinning,
            steps=settings,
            load_of_bundle=Load.model_validate(loads[0]),
            load=Load.model_validate(loads[1]),
            engines=engines,
        )
        write_text(scratch / SIDECAR_NAME, sidecar.model_dump_json(indent=2) + "\n")
    return engine_folder(root, BACKEND, version, device_name())


def _flat(file: str) -> str:
    """The name of a graph's engine."""
    return PurePosixPath(file).name


def _entry(path: Path) -> FileEntry:
    return FileEntry(path=path.name, bytes=path.stat().st_size, sha256=sha256_of(path))


def thread_settings(cores: int) -> list[tuple[int, bool]]:
    """Threads and spinning to try: 1, 2, 4 ... and all cores. A single thread has none to wait for."""
    counts = sorted({*(1 << power for power in range(cores.bit_length()) if 1 << power <= cores), cores})
    return [(count, spinning) for count in counts for spinning in (False, True)[: 1 + (count > 1)]]


def best_of(settings: Sequence[Setting]) -> Setting:
    """The fastest. Of those that are as fast but for what scatters, the one with the most threads, because a
    prefill gains by each, and of these one that leaves the cores alone while it waits.
    """
    fastest = min(setting.seconds for setting in settings)
    near = [setting for setting in settings if setting.seconds <= _EQUAL * fastest]
    return max(near, key=lambda setting: (setting.threads, not setting.spinning))


def _run(job: Job, progress: Progress) -> Any:
    folder = job.output if job.output.is_dir() else job.output.parent
    ended = run_job(_MODULE, job.model_dump_json(), folder, progress)
    if "error" in ended.last:
        raise BackendError(str(ended.last["error"]))
    if "done" in ended.last:
        return ended.last["done"]
    if ended.killed:
        raise BackendError(
            f"the process that loads the graphs of {job.source} was killed, as the system does when memory "
            "runs out: end other programs, or build on a machine with more memory"
        )
    raise BackendError(f"{TITLE} {ended.describe(f'loading the graphs of {job.source}')}")


def work(text: str, progress: Progress) -> Any:
    """In the child: does what a `Job` says."""
    job = Job.model_validate_json(text)
    if job.kind == "optimise":
        return optimise(job.source, job.output)
    manifest = read_manifest(job.source)
    built = None if job.engines is None else Engines(job.output, job.engines)
    if job.kind == "load":
        return _load(job.source, manifest, built).model_dump()
    tried = thread_settings(job.cores)
    progress.step("measuring decode steps by threads", _ROUNDS * len(tried))

    def seconds(setting: tuple[int, bool]) -> list[float]:
        found = step_seconds(_model(job.source, manifest, built, *setting))
        progress.advance(1)
        return found

    return [setting.model_dump() for setting in measured(tried, seconds)]


def optimise(source: Path, output: Path) -> None:
    """Writes a graph as ONNX Runtime optimises it, its weights beside it as the kernels read them.

    Raises:
        BackendError: it cannot be loaded.
    """
    import onnxruntime

    settings = session_settings(None, None)
    settings.optimized_model_filepath = str(output)
    for name, value in {
        "session.optimized_model_external_initializers_file_name": f"{output.stem}.bin",
        "session.optimized_model_external_initializers_min_size_in_bytes": str(_LEAST_OUTSIDE),
        "session.save_external_prepacked_constant_initializers": "1",
    }.items():
        settings.add_session_config_entry(name, value)
    try:
        onnxruntime.InferenceSession(
            str(source), settings, providers=["CPUExecutionProvider"], disabled_optimizers=NOT_WANTED
        )
    except Exception as error:  # ONNX Runtime raises plain RuntimeError and types of its own
        reason = " ".join(str(error).split())
        raise BackendError(f"{TITLE} cannot optimise {source}: {reason}") from error


def _model(
    bundle: Path,
    manifest: Manifest,
    built: Engines | None,
    threads: int | None = None,
    spinning: bool | None = None,
) -> Model:
    # Earlier engines are neither what was just built nor the bundle's own graphs.
    options = Options(threads=threads, spinning=spinning, engines=False)
    return Model(bundle, manifest, OrtBackend(CPU, options, built))


def _load(bundle: Path, manifest: Manifest, built: Engines | None) -> Load:
    started, cpu = perf_counter(), process_time()
    model = _model(bundle, manifest, built)
    seconds, cpu_seconds = perf_counter() - started, process_time() - cpu
    found = Load(
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        resident_bytes=resident_memory(),
        anonymous_bytes=anonymous_memory(),
        peak_bytes=host_peak_memory().bytes,
    )
    del model
    return found


def step_seconds(model: Model) -> list[float]:
    """Times of decode steps behind a short prompt without images."""
    state = model.session.prefill([model.prepare(_PROMPT)])
    found: list[float] = []
    while len(found) < _WARM_UP + _LEAST or (len(found) < _WARM_UP + _MOST and sum(found[_WARM_UP:]) < _LONG):
        token = state.logits.argmax(axis=1)
        started = perf_counter()
        state.step(token)
        found.append(perf_counter() - started)
    return found[_WARM_UP:]


def measured(
    tried: Sequence[tuple[int, bool]], seconds: Callable[[tuple[int, bool]], Sequence[float]]
) -> list[Setting]:
    """The median of each setting; they take turns, so that a drift of the machine hits all alike."""
    times: dict[tuple[int, bool], list[float]] = {setting: [] for setting in tried}
    for _ in range(_ROUNDS):
        for setting in tried:
            times[setting] += seconds(setting)
    return [
        Setting(threads=threads, spinning=spinning, seconds=median(found))
        for (threads, spinning), found in times.items()
    ]


if __name__ == "__main__":
    serve_job(work)
