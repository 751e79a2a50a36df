"""Measures a bundle beside other programs with the same weights, and beside what the machine allows."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import numpy as np

from edgeprune import processor
from edgeprune.bench.bundles import UNPRUNED, Measured, forms, opened
from edgeprune.bench.peers import genai, limits, llama_cpp
from edgeprune.bench.peers.llama import Llama, read_llama
from edgeprune.bench.peers.peer import Cost, Job, Run, Weights
from edgeprune.bench.run import (
    DEFAULT_PROMPT,
    Spread,
    default_prompt,
    drawn,
    fit_together,
    flops,
    measure,
    spread,
    worker_of,
)
from edgeprune.bundle import read_manifest
from edgeprune.checks import check_count
from edgeprune.errors import BackendError, EdgepruneError, InputError
from edgeprune.files import need_utf8
from edgeprune.log import note
from edgeprune.manifest import Manifest
from edgeprune.plans import Keep
from edgeprune.progress import Progress, Silent
from edgeprune.runtime.backends import AUTO, open_backend
from edgeprune.runtime.backends.ort import CPU
from edgeprune.runtime.child import child_command, child_environment
from edgeprune.runtime.images import ImageLike, load_image
from edgeprune.runtime.preparing import Preparation
from edgeprune.units import bytes_text

DEFAULT_CONTEXTS = (64, 700, 2000)
_OURS = "edgeprune"
# What numpy, PyTorch and others take their number of threads from.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class _Known:
    """A peer.

    Attributes:
        module: that has to be importable.
        package: the distribution that brings it.
        extra: the extra of edgeprune that does.
        convert: makes what it loads of the language part; None where it loads the model's folder.
        weights: the kinds that it can be measured with.
        what: it is measured of, in words.
    """

    module: str
    package: str
    extra: str
    convert: Callable[[Llama, Path, Path, Weights], Path] | None
    weights: tuple[Weights, ...]
    what: str


_TEXT = "the language part alone, on a text of as many tokens"
_PROMPT = f"first token with the images; else {_TEXT}"
PEERS = {
    "transformers": _Known(
        "transformers",
        "transformers",
        "export",
        None,
        ("fp32",),
        _PROMPT,
    ),
    "onnxruntime-genai": _Known(
        "onnxruntime_genai", "onnxruntime-genai", "peers", genai.convert, get_args(Weights), _TEXT
    ),
    "llama.cpp": _Known(
        "xllamacpp", "xllamacpp", "peers", llama_cpp.convert, get_args(Weights), f"{_TEXT}; caches in fp16"
    ),
}
"""What can be measured beside a bundle, by name."""


@dataclass(frozen=True)
class CostSpread:
    """Seconds of the wall clock, and of all threads of the process."""

    wall: Spread
    cpu: Spread


@dataclass(frozen=True)
class PeerResult:
    """What was measured of one program.

    Attributes:
        name: "edgeprune" and the form of the bundle, or the peer's.
        version: of its package.
        what: it was measured of, in words.
        load: of loading the model.
        first_token: vision and language part of the prompt; None where it was not measured.
        prefill: of the language part.
        decode: of one step, by context.
        peak_memory_bytes: of its process, see `PeersReport.peak_memory_metric`.
    """

    name: str
    version: str
    what: str
    load: Cost
    first_token: CostSpread | None
    prefill: CostSpread
    decode: Mapping[int, CostSpread]
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Limit:
    """The least times that the machine allows for one form of the bundle, in seconds; see `limits`.

    Attributes:
        name: "unpruned" or as the bundle's form is called.
        prefill: all products of its layers; None with weights of int4, whose kernels multiply integers, and
            faster than the rate that was measured.
        decode: of one step, by context: reading all weights and caches.
    """

    name: str
    prefill: float | None
    decode: Mapping[int, float]


@dataclass(frozen=True)
class PeersReport:
    """What `edgeprune bench --against` prints.

    Attributes:
        weights: that all programs have.
        threads: of each program.
        runs: measured runs of each, after `warmup` ones.
        prompt_tokens: of the prompt, of them `visual_tokens` are visual.
        new_tokens: steps at each context in a run.
        interleaved: whether the programs took turns run by run.
        peak_memory_metric: what the peak memory is, in words.
        flops, read_bytes: of a second, as numpy computes and reads.
        results: of the bundle's forms, and of the peers.
        limits: of the bundle's forms.
        not_measured: in words, which peers were not, and why.
    """

    weights: Weights
    threads: int
    runs: int
    warmup: int
    prompt_tokens: int
    visual_tokens: int
    new_tokens: int
    interleaved: bool
    peak_memory_metric: str
    flops: float
    read_bytes: float
    results: tuple[PeerResult, ...]
    limits: tuple[Limit, ...]
    not_measured: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name, ready for JSON."""
        found = asdict(self)
        for result, one in zip(found["results"], self.results, strict=True):
            result["load"] = one.load.model_dump()
        return found


def run(
    bundle: str | os.PathLike[str],
    *,
    against: Sequence[str],
    model: str | os.PathLike[str],
    contexts: Sequence[int] | None = None,
    keep: Keep = None,
    prompt: str = DEFAULT_PROMPT,
    images: Sequence[ImageLike] | None = None,
    runs: int = 5,
    warmup: int = 1,
    max_new_tokens: int = 16,
    backend: str = AUTO,
    threads: int | None = None,
    progress: Progress | None = None,
) -> PeersReport:
    """Measures a bundle beside peers, on the CPU.

    Args:
        bundle: the folder that `edgeprune export` wrote, with weights of fp32 or int4; the peers get the same
            kind, each by its own way of rounding.
        against: names of `PEERS`.
        model: the folder that the bundle was exported from.
        contexts: lengths of the caches at which decode steps are measured; None for 64, 700 and 2000, as far
            as the model's positions allow.
        keep, prompt, images, runs, warmup: as for `edgeprune.bench.run.run`.
        max_new_tokens: steps at each context, at least 2.
        backend: "onnxruntime", or "auto" for the same.
        threads: of each program; None for all cores.
        progress: told the steps.

    Raises:
        InputError: a name, a number or the model's folder cannot be used, or a context is too long.
        InputError, BundleError, BackendError: as `edgeprune.bench.run.run`.
    """
    check_count("runs", runs)
    check_count("warmup", warmup, least=0)
    check_count("max_new_tokens", max_new_tokens, least=2)
    if threads is not None:
        check_count("threads", threads)
    if backend not in (AUTO, CPU):
        raise InputError(
            f"the back end is {backend!r}: peers are measured on the CPU, beside {CPU}; leave `backend` out"
        )
    unknown = [name for name in against if name not in PEERS] or ([] if against else [""])
    if unknown:
        raise InputError(
            f"there is no peer {unknown[0]!r} to measure beside it: choose of {', '.join(PEERS)}"
        )
    need_utf8(bundle, "the bundle")
    listener, cores = progress or Silent(), threads or processor.cores()
    manifest, source = read_manifest(bundle), Path(model)
    weights = _weights(manifest)
    lengths = _contexts(contexts, manifest, max_new_tokens)
    device = open_backend(CPU, bundle=Path(bundle), threads=cores)
    pictures = [drawn()] if images is None else [load_image(image) for image in images]
    prompt = default_prompt(manifest, prompt, len(pictures))
    (own,) = opened(bundle, [], device)
    *others, pruned = forms(own, keep)
    ours = [*(form for form in others if form.name == UNPRUNED), pruned]
    inputs = Preparation.of(own.bundle, manifest).prepare(prompt, pictures)
    visual = manifest.tower_tokens(inputs.layout.tokens)
    tokens = len(inputs.input_ids)
    with tempfile.TemporaryDirectory(prefix="edgeprune-bench-") as name:
        scratch = Path(name)
        files = []
        for number, picture in enumerate(pictures):
            files.append(scratch / f"image-{number}.npy")
            np.save(files[-1], picture)

        def job(peer: str, loads: Path, form: Measured) -> Path:
            path = scratch / f"job-{len(list(scratch.glob('job-*')))}.json"
            wanted = Job(
                peer=peer,
                source=loads,
                bundle=own.bundle,
                plan=form.plan,
                threads=cores,
                prompt=prompt,
                images=tuple(files),
                tokens=tokens,
                contexts=lengths,
                steps=max_new_tokens,
            )
            path.write_text(wanted.model_dump_json(), encoding="utf-8")
            return path

        jobs = {f"{_OURS} {form.name}": job(_OURS, own.bundle, form) for form in ours}
        what = dict.fromkeys(jobs, "the prompt with its images")
        if own.engine is not None:
            what = {name: f"{text}, by the engines {own.engine}" for name, text in what.items()}
        sizes = [own.size] * len(jobs)
        not_measured = []
        for peer in dict.fromkeys(against):
            listener.step(f"preparing {peer}")
            try:
                loads = _prepared(peer, source, scratch / peer, weights)
            except EdgepruneError as error:
                not_measured.append(f"{peer}: {error}")
                continue
            jobs[peer], what[peer] = job(peer, loads, own), PEERS[peer].what
            sizes.append(_size(loads))
        listener.step("measuring the machine")
        environment = dict.fromkeys(_THREADS, str(cores))
        rates = _rates(environment)
        together = fit_together(device, sizes)
        if not together:
            note("the programs do not fit into memory together: they are measured one after the other")
        listener.step("measuring", len(jobs) * (warmup + runs))
        start = worker_of("edgeprune.bench.peers.worker", Run.model_validate, environment)

        def failed(name: str, error: EdgepruneError) -> None:
            if name not in PEERS:
                raise error
            not_measured.append(f"{name}: {error}")

        measured = measure(jobs, warmup, runs, together, listener, start, failed)
    return PeersReport(
        weights=weights,
        threads=cores,
        runs=runs,
        warmup=warmup,
        prompt_tokens=tokens,
        visual_tokens=visual,
        new_tokens=max_new_tokens,
        interleaved=together,
        peak_memory_metric=measured[next(iter(jobs))][-1].peak_memory_metric,
        flops=rates.flops,
        read_bytes=rates.bytes,
        results=tuple(_result(name, what[name], measured[name]) for name in measured),
        limits=tuple(_limit(form, rates, weights, (tokens, visual), lengths) for form in ours),
        not_measured=tuple(not_measured),
    )


def _weights(manifest: Manifest) -> Weights:
    found = manifest.precision
    for kind in get_args(Weights):
        if found.weights == kind and found.compute == "fp32":
            weights: Weights = kind
            return weights
    raise InputError(
        f"the bundle's precision is {found.describe()}: expected weights of fp32 or int4 computed in fp32, "
        "which peers can have too; export it with `dtype='fp32'`"
    )


def _contexts(wanted: Sequence[int] | None, manifest: Manifest, steps: int) -> tuple[int, ...]:
    most = manifest.model.max_positions - steps - 2
    if wanted is None:
        return tuple(context for context in DEFAULT_CONTEXTS if context <= most)
    for context in wanted:
        check_count("contexts", context, most=most)
    return tuple(sorted(set(wanted)))


def _prepared(peer: str, model: Path, folder: Path, weights: Weights) -> Path:
    """What a peer loads.

    Raises:
        EdgepruneError: it cannot be measured; the message says why.
    """
    known = PEERS[peer]
    if find_spec(known.module) is None:
        raise InputError(f"{known.package} is not installed: pip install 'edgeprune[{known.extra}]'")
    if weights not in known.weights:
        raise InputError(f"it runs no weights of {weights} on the CPU: measure a bundle of fp32 beside it")
    llama = read_llama(model)
    return model.resolve() if known.convert is None else known.convert(llama, model, folder, weights)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _rates(environment: Mapping[str, str]) -> limits.Rates:
    """In a process of its own, as numpy reads its number of threads once."""
    done = subprocess.run(
        child_command("edgeprune.bench.peers.limits"),
        env={**child_environment(), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BackendError(
            f"the process that measures the machine ended with status {done.returncode}: free "
            f"{bytes_text(1 << 30)} of memory"
        )
    return limits.Rates.model_validate(json.loads(done.stdout))


def _result(name: str, what: str, runs: Sequence[Run]) -> PeerResult:
    package = PEERS[name].package if name in PEERS else _OURS
    first = [run.first_token for run in runs if run.first_token is not None]
    return PeerResult(
        name=name,
        version=metadata.version(package),
        what=what,
        load=runs[-1].load,
        first_token=_costs(first) if first else None,
        prefill=_costs([run.prefill for run in runs]),
        decode={context: _costs([run.decode[context] for run in runs]) for context in runs[-1].decode},
        peak_memory_bytes=runs[-1].peak_memory_bytes,
    )


def _costs(found: Sequence[Cost]) -> CostSpread:
    return CostSpread(spread([cost.wall for cost in found]), spread([cost.cpu for cost in found]))


def _limit(
    form: Measured,
    rates: limits.Rates,
    weights: Weights,
    prompt: tuple[int, int],
    contexts: Sequence[int],
) -> Limit:
    info, (tokens, visual) = form.manifest.model, prompt
    bits = {"fp32": 32, "int4": 4}[weights]
    count = limits.read_weights(info)

    def step(context: int) -> float:
        # As the bundle's own contexts are made, see `ours`.
        seen = visual if context >= tokens else 0
        return limits.step_seconds(rates, count, bits, limits.cache_values(info, form.plan, context, seen))

    prefill = flops(form, tokens, visual) / rates.flops if weights == "fp32" else None
    return Limit(form.name, prefill, {context: step(context) for context in contexts})
