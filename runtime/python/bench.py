"""What pruning gains here: a bundle measured unpruned, pruned without debias, and pruned.

The three variants have the same weights, made from the bundle's own graph.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune import bound as bounds
from edgeprune import errors
from edgeprune.bundle import read_manifest
from edgeprune.errors import BackendError, EdgepruneError
from edgeprune.manifest import Manifest
from edgeprune.memory import available_memory
from edgeprune.progress import Progress, Silent
from edgeprune.runtime.backends import open_backend
from edgeprune.runtime.bench_worker import Job, Run
from edgeprune.runtime.checks import check_count
from edgeprune.runtime.images import Picture, load_image
from edgeprune.runtime.variants import NO_DEBIAS, PRUNED, UNPRUNED, write_variant

DEFAULT_PROMPT = "What is in the picture?"


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of several measurements, in seconds."""

    median: float
    least: float
    greatest: float


@dataclass(frozen=True)
class VariantResult:
    """What was measured of one variant.

    Attributes:
        name: "unpruned", "pruned without debias" or "pruned".
        kept: visual tokens left after the last stage.
        padded_kept: how many of those are padding.
        time_to_first_token: preprocessing, vision and prefill together, and choosing the token.
        vision, prefill: their parts of it.
        time_per_output_token: of one decode step.
        cache_bytes: keys and values at the end.
        peak_memory_bytes: of a process of its own; see `BenchReport.peak_memory_metric`.
    """

    name: str
    kept: int
    padded_kept: int
    time_to_first_token: Spread
    vision: Spread
    prefill: Spread
    time_per_output_token: Spread
    cache_bytes: int
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class BenchReport:
    """What `edgeprune bench` prints.

    Attributes:
        backend: the back end that ran.
        threads: CPU threads, None where the back end chose.
        runs: measured runs of each variant, after `warmup` ones.
        prompt_tokens: S, of them `visual_tokens` are visual.
        new_tokens: tokens decoded in each run, end-of-sequence tokens ignored.
        interleaved: whether the variants took turns run by run, so that a drift of the machine hits all
            alike; not where they do not fit into memory together.
        peak_memory_metric: what the peak memory is, in words.
        variants: the measured variants, unpruned first.
        prefill_speed_up: median prefill time unpruned over pruned; None where the bundle does not prune.
        prefill_speed_up_bound: what the count of FLOPs allows (edgeprune.bound), likewise.
    """

    backend: str
    threads: int | None
    runs: int
    warmup: int
    prompt_tokens: int
    visual_tokens: int
    new_tokens: int
    interleaved: bool
    peak_memory_metric: str
    variants: tuple[VariantResult, ...]
    prefill_speed_up: float | None
    prefill_speed_up_bound: float | None

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name, ready for JSON."""
        return asdict(self)


def run(
    bundle: str | os.PathLike[str],
    *,
    prompt: str = DEFAULT_PROMPT,
    images: Sequence[Picture] | None = None,
    runs: int = 5,
    warmup: int = 1,
    max_new_tokens: int = 16,
    backend: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Measures a bundle.

    Args:
        bundle: the folder that `edgeprune export` wrote; it is only read.
        prompt: the question.
        images: its pictures; None draws one.
        runs: measured runs of each variant.
        warmup: runs before those, not counted.
        max_new_tokens: tokens to decode in each run, at least 2.
        backend: as for `load`; one that executes the bundle's ONNX files.
        threads: CPU threads, None for the back end's own choice.
        progress: told the steps.

    Raises:
        MissingDependencyError: onnx, which makes the variants, is not installed.
        InputError, BundleError, BackendError, PruningError: as `load` and `Model.generate`.
    """
    check_count("runs", runs)
    check_count("warmup", warmup, least=0)
    check_count("max_new_tokens", max_new_tokens, least=2)  # the time per token is of those after the first
    listener = progress or Silent()
    folder = Path(bundle).resolve()
    manifest = read_manifest(folder)
    options: dict[str, Any] = {} if threads is None else {"threads": threads}
    flavour = open_backend(backend, **options).name
    if not flavour.startswith("onnxruntime"):
        raise BackendError(
            f"the back end {flavour} runs engines, and the variants to compare are ONNX files: choose "
            "onnxruntime"
        )
    names = (UNPRUNED, NO_DEBIAS, PRUNED) if manifest.plan.prunes else (UNPRUNED,)
    pictures = [_drawn()] if images is None else [load_image(image) for image in images]
    if manifest.prompt.chat_template is None and prompt == DEFAULT_PROMPT:
        prompt = f"{manifest.prompt.image_token * len(pictures)}\n{prompt}"
    together = _fit_together(manifest, len(names))
    if not together:
        listener.note("the variants do not fit into memory together: they are measured one after the other")
    with tempfile.TemporaryDirectory(prefix="edgeprune-bench-") as scratch:
        listener.step("making the variants")
        files = []
        for number, picture in enumerate(pictures):
            files.append(str(Path(scratch) / f"picture-{number}.npy"))
            np.save(files[-1], picture)
        jobs = {}
        for number, name in enumerate(names):
            graphs = Path(scratch) / f"variant-{number}"
            graphs.mkdir()
            variant = write_variant(name, folder, manifest, graphs)
            (graphs / "variant.json").write_text(variant.model_dump_json(), encoding="utf-8")
            job = Job(
                bundle=str(folder),
                graphs=str(graphs),
                backend=flavour,
                threads=threads,
                prompt=prompt,
                pictures=tuple(files),
                new_tokens=max_new_tokens,
                debiased=name == PRUNED,
            )
            jobs[name] = graphs / "job.json"
            jobs[name].write_text(json.dumps(asdict(job)), encoding="utf-8")
        listener.step("measuring", len(names) * (warmup + runs))
        measured = _measure(jobs, warmup, runs, together, listener)
    return _report(manifest, measured, flavour, threads, warmup, max_new_tokens, together)


def _measure(
    jobs: dict[str, Path], warmup: int, runs: int, together: bool, progress: Progress
) -> dict[str, list[Run]]:
    """The counted runs of each variant; variants take turns run by run where they run together."""
    measured: dict[str, list[Run]] = {name: [] for name in jobs}
    for group in [tuple(jobs)] if together else [(name,) for name in jobs]:
        with ExitStack() as stack:
            workers = {name: stack.enter_context(_Worker(name, jobs[name])) for name in group}
            for number in range(warmup + runs):
                for name, worker in workers.items():
                    result = worker.run()
                    if number >= warmup:
                        measured[name].append(result)
                    progress.advance(1)
    return measured


class _Worker:
    """A process that measures one variant; leaving the context ends it."""

    def __init__(self, name: str, job: Path) -> None:
        self._name = name
        command = [sys.executable, "-m", "edgeprune.runtime.bench_worker", str(job)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self) -> Run:
        line = ""
        with suppress(BrokenPipeError):
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write("run\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise BackendError(
                f"the process that measures {self._name!r} ended with status {status}"
                f"{', killed for want of memory perhaps' if status < 0 else ''}: free memory, or measure "
                "a smaller model"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise getattr(errors, answer["error"], EdgepruneError)(answer["message"])
        return Run(**{**answer, "kept": tuple(answer["kept"])})


def _report(
    manifest: Manifest,
    measured: dict[str, list[Run]],
    backend: str,
    threads: int | None,
    warmup: int,
    new_tokens: int,
    together: bool,
) -> BenchReport:
    variants = tuple(_variant(name, runs) for name, runs in measured.items())
    sample = measured[variants[-1].name][-1]
    speed_up = bound = None
    if manifest.plan.prunes:
        info = manifest.model
        by_name = {variant.name: variant for variant in variants}
        speed_up = by_name[UNPRUNED].prefill.median / by_name[PRUNED].prefill.median
        text = sample.prompt_tokens - sample.visual_tokens
        counts = manifest.plan.counts(sample.visual_tokens)
        stages = [
            (stage.layer, text + count.after)
            for stage, count in zip(manifest.plan.stages, counts, strict=True)
        ]
        sizes = (info.hidden_size, info.intermediate_size, info.heads, info.kv_heads, info.head_dim)
        bound = bounds.speed_up(bounds.prefill_bound(info.layers, sample.prompt_tokens, stages, *sizes))
    return BenchReport(
        backend=backend,
        threads=threads,
        runs=len(measured[variants[-1].name]),
        warmup=warmup,
        prompt_tokens=sample.prompt_tokens,
        visual_tokens=sample.visual_tokens,
        new_tokens=new_tokens,
        interleaved=together,
        peak_memory_metric=sample.peak_memory_metric,
        variants=variants,
        prefill_speed_up=speed_up,
        prefill_speed_up_bound=bound,
    )


def _variant(name: str, runs: list[Run]) -> VariantResult:
    last = runs[-1]
    return VariantResult(
        name=name,
        kept=last.kept[-1] if last.kept else last.visual_tokens,
        padded_kept=last.padded,
        time_to_first_token=_spread([run.time_to_first_token for run in runs]),
        vision=_spread([run.vision for run in runs]),
        prefill=_spread([run.prefill for run in runs]),
        time_per_output_token=_spread([run.time_per_output_token for run in runs]),
        cache_bytes=last.cache_bytes,
        peak_memory_bytes=last.peak_memory_bytes,
    )


def _spread(values: list[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def _fit_together(manifest: Manifest, variants: int) -> bool:
    """Whether all variants fit into memory at once, each with the weights and as much again for the rest."""
    free = available_memory()
    return free is None or free > 2 * variants * sum(entry.bytes for entry in manifest.files)


def _drawn() -> NDArray[np.uint8]:
    """A picture of 640 x 480 pixels: discs on a gradient. Letterboxing pads it."""
    rows, columns = np.mgrid[0:480, 0:640]
    picture = np.stack([rows // 2, columns // 3, (rows + columns) // 5], axis=-1).astype(np.uint8)
    for x, y, radius, color in ((160, 140, 70, (220, 60, 50)), (430, 300, 110, (40, 120, 220))):
        picture[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] = color
    return picture
