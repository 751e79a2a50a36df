"""What pruning gains here: a bundle measured beside what it is compared with.

One bundle, and one engine, runs unpruned, pruned without debias, and pruned; other bundles of the same model
may be measured beside it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeprune import errors
from edgeprune.bench import bound as bounds
from edgeprune.bench.bundles import UNPRUNED, Measured, forms, opened
from edgeprune.bench.worker import Job, Run
from edgeprune.bundle import read_manifest
from edgeprune.checks import check_count, given
from edgeprune.errors import BackendError, EdgepruneError
from edgeprune.files import need_utf8
from edgeprune.log import note
from edgeprune.manifest import Manifest
from edgeprune.plans import Keep
from edgeprune.progress import Progress, Silent
from edgeprune.runtime.backends import Backend, open_backend
from edgeprune.runtime.child import child_command, child_environment
from edgeprune.runtime.images import ImageLike, load_image

DEFAULT_PROMPT = "What is in the image?"
_PATIENCE = 30

AnyRun = TypeVar("AnyRun")


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
        name: "unpruned", "pruned without debias" or "pruned", or a bundle as it was named.
        engine: which engine ran, and by what it prunes; None where the ONNX files did.
        visual_tokens: of the prompt's images, one for each place in their grids.
        kept: how many are left after the last stage.
        padded_kept: how many of those are padding, by one mask for all variants; None where only the vision
            tower merges.
        time_to_first_token: preprocessing, vision and prefill together, and choosing the token.
        vision, prefill: their parts of it.
        time_per_output_token: of one decode step.
        cache_bytes: keys and values at the end.
        peak_memory_bytes: of a process of its own; see `BenchReport.peak_memory_metric`.
    """

    name: str
    engine: str | None
    visual_tokens: int
    kept: int
    padded_kept: int | None
    time_to_first_token: Spread
    vision: Spread
    prefill: Spread
    time_per_output_token: Spread
    cache_bytes: int
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class SpeedUp:
    """How many times as fast the bundle is as another variant, by the medians.

    Attributes:
        over: that variant's name.
        time_to_first_token, prefill, time_per_output_token: their speed-ups.
        prefill_bound: the prefill's that the count of FLOPs allows (edgeprune.bench.bound).
        share_of_bound: prefill over prefill_bound.
    """

    over: str
    time_to_first_token: float
    prefill: float
    time_per_output_token: float
    prefill_bound: float
    share_of_bound: float


@dataclass(frozen=True)
class BenchReport:
    """What `edgeprune bench` prints.

    Attributes:
        backend: the back end that ran.
        threads: CPU threads, None where the back end chose.
        runs: measured runs of each variant, after `warmup` ones.
        prompt_tokens: S of the bundle, of them `visual_tokens` are visual, as the language graph gets them.
        new_tokens: tokens decoded in each run, end-of-sequence tokens ignored.
        interleaved: whether the variants took turns run by run, so that a drift of the machine hits all
            alike; not where they do not fit into memory together.
        peak_memory_metric: what the peak memory is, in words.
        variants: the measured variants, the bundle itself last.
        speed_ups: of the bundle over each other variant, in their order.
        not_measured: in words, what this back end leaves open, and how it can be had.
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
    speed_ups: tuple[SpeedUp, ...]
    not_measured: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name, ready for JSON."""
        return asdict(self)


def run(
    bundle: str | os.PathLike[str],
    *,
    keep: Keep = None,
    baselines: Sequence[str | os.PathLike[str]] = (),
    prompt: str = DEFAULT_PROMPT,
    images: Sequence[ImageLike] | None = None,
    runs: int = 5,
    warmup: int = 1,
    max_new_tokens: int = 16,
    backend: str = "auto",
    threads: int | None = None,
    caches: str | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Measures a bundle.

    Args:
        bundle: the folder that `edgeprune export` wrote; it is only read, but for what TensorRT for RTX keeps
            beside its engines.
        keep: other keep ratios than the bundle was exported with, as for `Model.generate`.
        baselines: other bundles of the same model to measure beside it, as they are.
        prompt: the question.
        images: its images; None draws one.
        runs: measured runs of each variant.
        warmup: runs before those, not counted.
        max_new_tokens: tokens to decode in each run, at least 2.
        backend: as for `load`.
        threads: CPU threads, None for the back end's own choice.
        caches: what ONNX Runtime does with its caches, as for `load`.
        progress: told the steps.

    Raises:
        InputError: also where a baseline differs from the bundle in more than its pruning.
        InputError, BundleError, BackendError, PruningError: as `load` and `Model.generate`.
    """
    check_count("runs", runs)
    check_count("warmup", warmup, least=0)
    check_count("max_new_tokens", max_new_tokens, least=2)  # the time per token is of those after the first
    listener = progress or Silent()
    manifest = read_manifest(bundle)
    for folder in (bundle, *baselines):
        need_utf8(folder, "the bundle")  # its workers are told in JSON
    device = open_backend(backend, bundle=Path(bundle), **given(threads=threads, caches=caches))
    pictures = [drawn()] if images is None else [load_image(image) for image in images]
    prompt = default_prompt(manifest, prompt, len(pictures))
    with tempfile.TemporaryDirectory(prefix="edgeprune-bench-") as scratch:
        *others, own = opened(bundle, baselines, device)
        variants = [*others, *forms(own, keep)]
        not_measured: tuple[str, ...] = ()
        if not baselines and all(variant.name != UNPRUNED for variant in variants):
            not_measured = (_no_baseline(bundle),)
        together = fit_together(device, [variant.size for variant in variants])
        if not together:
            note("the variants do not fit into memory together: they are measured one after the other")
        files = []
        for number, picture in enumerate(pictures):
            files.append(Path(scratch) / f"picture-{number}.npy")
            np.save(files[-1], picture)
        # The bundle's own for all, so that they are counted alike.
        jobs, padding = {}, manifest.padding_mask
        for number, variant in enumerate(variants):
            job = Job(
                bundle=variant.bundle,
                plan=variant.plan,
                backend=device.name,
                threads=threads,
                caches=caches,
                prompt=prompt,
                images=tuple(files),
                new_tokens=max_new_tokens,
                padding=padding,
            )
            jobs[variant.name] = Path(scratch) / f"job-{number}.json"
            jobs[variant.name].write_text(job.model_dump_json(), encoding="utf-8")
        listener.step("measuring", len(jobs) * (warmup + runs))
        measured = measure(jobs, warmup, runs, together, listener, _worker, _reraise)
    last = measured[variants[-1].name][-1]
    return BenchReport(
        backend=device.name,
        threads=threads,
        runs=runs,
        warmup=warmup,
        prompt_tokens=last.prompt_tokens,
        visual_tokens=last.tower_tokens,
        new_tokens=max_new_tokens,
        interleaved=together,
        peak_memory_metric=last.peak_memory_metric,
        variants=tuple(_variant(variant, measured[variant.name]) for variant in variants),
        speed_ups=_speed_ups(variants, measured),
        not_measured=not_measured,
    )


def _no_baseline(bundle: str | os.PathLike[str]) -> str:
    return (
        f"what {os.fspath(bundle)} gains over the unpruned model: its vision tower merges tokens, which is "
        "part of its graph; export the model with `method='none'` too, and give that as `baselines`"
    )


def measure(
    jobs: Mapping[str, Path],
    warmup: int,
    runs: int,
    together: bool,
    progress: Progress,
    start: Callable[[str, Path], _Worker[AnyRun]],
    failed: Callable[[str, EdgepruneError], None],
) -> dict[str, list[AnyRun]]:
    """The counted runs of each variant; variants take turns run by run where they run together.

    Args:
        jobs: the file of each variant's job, by its name.
        warmup: runs that do not count, and then
        runs: that do.
        together: whether all fit into memory.
        progress: told of each run.
        start: a worker of a name and a job.
        failed: told the variant that an error comes from; where it does not raise, the others go on.
    """
    measured: dict[str, list[AnyRun]] = {name: [] for name in jobs}
    for group in [tuple(jobs)] if together else [(name,) for name in jobs]:
        with ExitStack() as stack:
            workers: dict[str, _Worker[AnyRun]] = {}
            for number in range(warmup + runs):
                for name in [name for name in group if name in measured]:
                    # Not before its turn: in its first run each worker sees what memory it takes itself.
                    if name not in workers:
                        workers[name] = stack.enter_context(start(name, jobs[name]))
                    try:
                        result = workers[name].run()
                    except EdgepruneError as error:
                        failed(name, error)
                        del measured[name]
                        continue
                    if number >= warmup:
                        measured[name].append(result)
                    progress.advance(1)
    return measured


class _Worker(Generic[AnyRun]):
    """A process that measures one variant; leaving the context ends it.

    Args:
        name: of the variant.
        job: its file.
        module: that the process runs, which answers by `worker.serve`.
        read: makes a run of the answer.
        environment: of the process, in addition.
    """

    def __init__(
        self,
        name: str,
        job: Path,
        module: str,
        read: Callable[[dict[str, Any]], AnyRun],
        environment: Mapping[str, str],
    ) -> None:
        self._name = name
        self._read = read
        self._process = subprocess.Popen(
            child_command(module, str(job)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**child_environment(), **environment},
            text=True,
        )

    def __enter__(self) -> _Worker[AnyRun]:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            # It ends by itself, and keeps what was compiled for its engine; unless it hangs.
            with suppress(subprocess.TimeoutExpired):
                self._process.communicate(timeout=_PATIENCE)
        self._process.kill()
        self._process.communicate()

    def run(self) -> AnyRun:
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
        return self._read(answer)


def worker_of(
    module: str, read: Callable[[dict[str, Any]], AnyRun], environment: Mapping[str, str]
) -> Callable[[str, Path], _Worker[AnyRun]]:
    """Starts workers of a kind; see `_Worker`."""
    return lambda name, job: _Worker(name, job, module, read, environment)


def _run_of(answer: dict[str, Any]) -> Run:
    return Run(**{**answer, "kept": tuple(answer["kept"])})


def _reraise(_: str, error: EdgepruneError) -> None:
    raise error


_worker = worker_of("edgeprune.bench.worker", _run_of, {})


def _variant(variant: Measured, runs: list[Run]) -> VariantResult:
    last = runs[-1]
    return VariantResult(
        name=variant.name,
        engine=variant.engine,
        visual_tokens=last.visual_tokens,
        kept=last.kept[-1] if last.kept else last.tower_tokens,
        padded_kept=last.padded,
        time_to_first_token=spread([run.time_to_first_token for run in runs]),
        vision=spread([run.vision for run in runs]),
        prefill=spread([run.prefill for run in runs]),
        time_per_output_token=spread([run.time_per_output_token for run in runs]),
        cache_bytes=last.cache_bytes,
        peak_memory_bytes=last.peak_memory_bytes,
    )


def spread(values: list[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def _speed_ups(variants: Sequence[Measured], measured: dict[str, list[Run]]) -> tuple[SpeedUp, ...]:
    """Of the last variant over each other one."""
    *others, own = variants

    def medians(variant: Measured) -> tuple[float, float, float]:
        runs = measured[variant.name]
        return (
            statistics.median(run.time_to_first_token for run in runs),
            statistics.median(run.prefill for run in runs),
            statistics.median(run.time_per_output_token for run in runs),
        )

    found = []
    for other in others:
        first, prefill, later = (a / b for a, b in zip(medians(other), medians(own), strict=True))
        lasts = ((each, measured[each.name][-1]) for each in (own, other))
        ours, theirs = (flops(each, last.prompt_tokens, last.tower_tokens) for each, last in lasts)
        bound = bounds.speed_up(ours / theirs)
        found.append(SpeedUp(other.name, first, prefill, later, bound, prefill / bound))
    return tuple(found)


def flops(variant: Measured, prompt_tokens: int, visual: int) -> float:
    """Of the decoder layers in one prefill of so many tokens, `visual` of them visual."""
    info, plan = variant.manifest.model, variant.plan
    sizes = (info.hidden_size, info.intermediate_size, info.heads, info.kv_heads, info.head_dim)
    text = prompt_tokens - visual
    counts = plan.counts(visual)
    stages = [(stage.layer, text + count.after) for stage, count in zip(plan.stages, counts, strict=True)]
    share = bounds.prefill_bound(info.layers, prompt_tokens, stages, *sizes)
    return share * info.layers * bounds.layer_flops(prompt_tokens, *sizes)


def fit_together(backend: Backend, sizes: Sequence[int]) -> bool:
    """Whether all variants fit into memory at once, each with what it loads, in bytes, and as much again."""
    free = backend.free_bytes()
    return free is None or free > 2 * sum(sizes)


def default_prompt(manifest: Manifest, prompt: str, images: int) -> str:
    """The prompt; in front of the default one are places for the images where no template puts them there."""
    if manifest.prompt.chat_template is None and prompt == DEFAULT_PROMPT:
        return f"{manifest.prompt.place * images}\n{prompt}"
    return prompt


def drawn() -> NDArray[np.uint8]:
    """An image of 640 x 480 pixels: discs on a gradient. Letterboxing pads it."""
    rows, columns = np.mgrid[0:480, 0:640]
    picture = np.stack([rows // 2, columns // 3, (rows + columns) // 5], axis=-1).astype(np.uint8)
    for x, y, radius, color in ((160, 140, 70, (220, 60, 50)), (430, 300, 110, (40, 120, 220))):
        picture[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] = color
    return picture
