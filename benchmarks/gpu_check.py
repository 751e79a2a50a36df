"""What only a GPU can show, in one run: the kernels, the engines, and how long the first token takes.

    python benchmarks/gpu_check.py --markdown docs/gpu-results.md

Needs the extras export, rtx and ort-gpu (or ort, for engines alone), CMake with CUDA for the kernels, and
PyTorch with CUDA for what is compared with it. A part whose prerequisites are missing is skipped and says
which; without a GPU what is left are the kernels' tests on the CPU, and the building of engines. Prints one
JSON object; exits with 1 where a part failed.

| part | shows |
|---|---|
| kernels | ctest: CUDA against the CPU reference, CUDA graphs, the plugin's contract |
| sanitizer | compute-sanitizer's memcheck and racecheck over the kernels' tests |
| kernel-times | the stage by CUDA events, beside the bandwidth bound and the same step in eager PyTorch |
| sample | the sample model on each back end, pruned and unpruned, against ONNX Runtime's CPU, every output |
| batches | replies of the sample model to several questions, together and one by one: caches carried on |
| large | as `sample`, for a larger random LLaVA |
| families | the same for a tiny random model of each architecture that the tests know, in fp32 |
| first-token | `edgeprune bench` of it beside an export without pruning; Hugging Face's SDPA and FastV |
| pixels | `edgeprune bench` of a Qwen2.5-VL at two sizes of image: vision tower and prefill |
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script: make the repository's packages importable
    sys.path.insert(0, str(ROOT))

from edgeprune.errors import EdgepruneError  # noqa: E402

KEEP = 0.3
NEW_TOKENS = 16
PROMPT = "What is in the image ?"
# Of different lengths, so that rows of a batch are padded.
QUESTIONS = ("what color is the star", "what shape is red", "what is there", "which shape is small and green")
FLAVOUR = "tensorrt-rtx"
QWEN_SHAPE = "qwen-large"
# Of its engines: images of up to 2,016 visual tokens of 28 x 28 pixels.
QWEN_PIXELS = 2016 * 28 * 28
# Where there is no GPU, engines are built for this one, only to see that they build.
_DEFAULT_TARGET = "sm89"


class SkippedError(Exception):
    """A part's prerequisite is missing; the message says which."""


@dataclass(frozen=True)
class Place:
    """Where and with what to work.

    Attributes:
        work: the folder for builds, models and bundles, reused by the next run.
        target: the GPU's architecture, or None where there is none.
        shape: of the larger random LLaVA, see benchmarks/random_model.py.
        runs: measured runs.
        backends: those that can run on this GPU; without one, that whose engines can be built.
        qwen: of the random Qwen-VL.
    """

    work: Path
    target: str | None
    shape: str
    runs: int
    backends: tuple[str, ...] = (FLAVOUR,)
    qwen: str = QWEN_SHAPE


@dataclass
class Outcome:
    """What became of a part: "ran", "skipped" or "failed", with the reason or the results."""

    status: str
    reason: str | None = None
    results: dict[str, Any] = field(default_factory=dict)


def run_part(part: Callable[[Place], dict[str, Any]], place: Place) -> Outcome:
    """Runs a part; no failure keeps the others from running."""
    try:
        results = part(place)
    except SkippedError as reason:
        return Outcome("skipped", str(reason))
    except (EdgepruneError, subprocess.CalledProcessError, OSError, RuntimeError) as error:
        output = getattr(error, "stderr", "") or getattr(error, "stdout", "") or ""
        tail = "; ".join(output.strip().splitlines()[-3:])
        return Outcome("failed", f"{error}{f' ({tail})' if tail else ''}")
    failed = results.pop("failed", None)
    return Outcome("failed" if failed else "ran", failed, results)


# --- Kernels -------------------------------------------------------------------------


def kernels(place: Place) -> dict[str, Any]:
    """Builds plugins/ and runs its tests; those that need a GPU count as skipped without one."""
    build = _build_plugins(place)
    done = subprocess.run(
        ["ctest", "--test-dir", str(build), "--output-on-failure"],
        capture_output=True,
        text=True,
        check=False,
    )
    outcomes = re.findall(r"Test +#\d+: (\S+) \.+ *\**(Passed|Failed|Skipped|Not Run)", done.stdout)
    if not outcomes:
        raise RuntimeError(f"ctest ran no test: {done.stdout.strip()[-300:]}{done.stderr.strip()[-300:]}")
    results: dict[str, Any] = {"tests": dict(outcomes), "on_gpu": place.target is not None}
    bad = [name for name, outcome in outcomes if outcome in ("Failed", "Not Run")]
    if bad:
        results["failed"] = f"ctest: {', '.join(bad)}"
    return results


def sanitizer(place: Place) -> dict[str, Any]:
    """compute-sanitizer over the kernels' tests."""
    _need_gpu(place)
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        raise SkippedError("compute-sanitizer is not installed; it comes with the CUDA toolkit")
    test = _build_plugins(place) / "tests" / "test_kernels_cuda"
    if not test.is_file():
        raise SkippedError("test_kernels_cuda was not built: CMake found no CUDA compiler")
    results: dict[str, Any] = {}
    for kind in ("memcheck", "racecheck"):
        command = [tool, "--tool", kind, "--error-exitcode", "3", str(test)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        results[kind] = (done.stdout.strip().splitlines() or ["no output"])[-1]
        if done.returncode:
            results["failed"] = f"{kind}: {results[kind]}"
    return results


def kernel_times(place: Place) -> dict[str, Any]:
    """The pruning step by the kernels, by its bound, and in eager PyTorch."""
    _need_gpu(place)
    bench = _build_plugins(place) / "bench" / "bench_prune"
    if not bench.is_file():
        raise SkippedError("bench_prune was not built: CMake found no CUDA compiler")
    done = subprocess.run([str(bench), str(place.runs * 20)], capture_output=True, text=True, check=True)
    results: dict[str, Any] = json.loads(done.stdout)
    torch = _torch_with_cuda()
    if torch is None:
        results["eager"] = "not measured: this PyTorch has no CUDA"
        return results
    for row in results["results"]:
        row["eager_us"] = _eager_us(torch, row["visual"], row["kept"], row["width"], place.runs * 20)
    return results


def eager_step(
    torch: Any, hidden: Any, score: Any, visual_index: Any, weight: Any, kept: int
) -> tuple[Any, Any]:
    """One pruning stage as PyTorch code usually writes it: [B, S, D] -> [B, S', D] and int64 [B, S']."""
    effective = (score.gather(1, visual_index) * weight).masked_fill(weight == 0, -torch.inf)
    best = visual_index.gather(1, effective.topk(kept, dim=1).indices)
    stays = torch.ones(score.shape, dtype=torch.bool, device=score.device)
    stays.scatter_(1, visual_index, False).scatter_(1, best, True)
    length = score.shape[1] - visual_index.shape[1] + kept
    index = stays.nonzero()[:, 1].view(score.shape[0], length)
    return hidden.gather(1, index[:, :, None].expand(-1, -1, hidden.shape[2])), index


def _eager_us(torch: Any, visual: int, kept: int, width: int, runs: int) -> float:
    text = 84  # as bench_prune has it
    with torch.device("cuda"), torch.no_grad():
        hidden = torch.zeros(1, visual + text, width, dtype=torch.float16)
        score, ones = torch.rand(1, visual + text), torch.ones(1, visual)
        index = torch.arange(visual)[None] + 35
        times = []
        for run in range(runs + 10):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            eager_step(torch, hidden, score, index, ones, kept)
            end.record()
            end.synchronize()
            if run >= 10:
                times.append(begin.elapsed_time(end) * 1000)
    return statistics.median(times)


def _build_plugins(place: Place) -> Path:
    for tool in ("cmake", "ctest"):
        if shutil.which(tool) is None:
            raise SkippedError(f"{tool} is not installed")
    build = place.work / "plugins"
    architecture = (place.target or _DEFAULT_TARGET)[2:]
    options = ["-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"]
    for command in (
        ["cmake", "-S", str(ROOT / "plugins"), "-B", str(build), *options],
        ["cmake", "--build", str(build), "-j", "4"],
    ):
        subprocess.run(command, capture_output=True, text=True, check=True)
    return build


# --- Engines -------------------------------------------------------------------------


def sample(place: Place) -> dict[str, Any]:
    """The sample model on each back end against ONNX Runtime's CPU, in fp32 and fp16."""
    _need_backend(place)
    model = ROOT / "samples" / "tiny-llava"
    return _merged(_compared(place, model, f"sample-{dtype}", dtype) for dtype in ("fp32", "fp16"))


def batches(place: Place) -> dict[str, Any]:
    """Greedy replies of the sample model in fp32, as one batch and one by one, against ONNX Runtime's CPU. An
    engine's caches lie in the same memory from step to step and from prompt to prompt.
    """
    _need_backend(place)
    model = ROOT / "samples" / "tiny-llava"
    bundle, engines = _bundle_with_engines(
        place, model, "sample-batches", "fp32", KEEP, max_batch=len(QUESTIONS)
    )
    results = {} if engines is None else _told(engines)
    if place.target is None:
        return {**results, "compared": "not without a GPU"}
    expected = _replies(bundle, "onnxruntime", 1)
    differ = []
    for backend in place.backends:
        for size in (1, len(QUESTIONS)):
            name = f"{backend}, batches of {size}"
            found = _replies(bundle, backend, size)
            count = sum(one.token_ids != other.token_ids for one, other in zip(found, expected, strict=True))
            results[name] = {
                "replies that differ": count,
                "cache_bytes": found[-1].statistics.cache_bytes,
                "peak_memory_bytes": found[-1].statistics.peak_memory_bytes,
            }
            differ += [f"{name}: {count} of {len(QUESTIONS)} replies differ"] if count else []
    return {**results, "failed": "; ".join(differ)} if differ else results


def _replies(bundle: Path, backend: str, size: int) -> Any:
    """To each question about the same image."""
    import edgeprune

    model = edgeprune.load(bundle, backend)
    images = [[ROOT / "samples" / "pictures" / "wide.png"]] * len(QUESTIONS)
    return model.generate(
        list(QUESTIONS), images, max_new_tokens=NEW_TOKENS, do_sample=False, batch_size=size
    )


def large(place: Place) -> dict[str, Any]:
    """As `sample`, for the larger random LLaVA, in fp16."""
    _need_backend(place)
    return _compared(place, _random_model(place, place.shape), f"{place.shape}-pruned", "fp16")


def families(place: Place) -> dict[str, Any]:
    """The same for tiny random models of the other architectures, in fp32, where nothing is rounded away."""
    _need_backend(place)
    from tests import tiny

    def saved(name: str, save: Callable[..., Path], *kind: str) -> dict[str, Any]:
        folder = place.work / f"{name}-model"
        if not folder.exists():
            save(folder, *kind)
        return _compared(place, folder, name, "fp32")

    makers: dict[str, tuple[Callable[..., Path], tuple[str, ...]]] = {
        "llava-next": (tiny.save_anyres, ("llava_next",)),
        "llava-onevision": (tiny.save_anyres, ("llava_onevision", "qwen2")),
        "video-llava": (tiny.save_video_llava, ()),
        "internvl": (tiny.save_internvl, ()),
        "smolvlm": (tiny.save_smolvlm, ()),
        "qwen2.5-vl": (tiny.save_qwen, ("qwen2_5_vl",)),
        "qwen3-vl": (tiny.save_qwen, ("qwen3_vl",)),
        "gemma3": (tiny.save_gemma3, ()),
    }
    return _merged(saved(f"tiny-{name}", save, *kind) for name, (save, kind) in makers.items())


def _compared(place: Place, model: Path, name: str, dtype: str) -> dict[str, Any]:
    """Exports a model, builds its engines, and where there is a GPU compares each back end with the CPU."""
    from edgeprune.bundle import read_manifest
    from edgeprune.manifest import failures
    from edgeprune.verification.backends import compare

    bundle, engines = _bundle_with_engines(place, model, name, dtype, KEEP)
    results: dict[str, Any] = {name: {} if engines is None else _told(engines)}
    if place.target is None:
        results[name]["compared"] = "not without a GPU"
        return results
    manifest = read_manifest(bundle)
    bad = []
    # One graph runs both: how many tokens a stage keeps is told when it runs.
    for form, plan in (("pruned", manifest.plan), ("unpruned", manifest.plan.keeping_all())):
        for backend in place.backends:
            checks = compare(bundle, manifest.model_copy(update={"plan": plan}), backend)
            results[name][f"{backend}, {form}"] = {check.name: check.value for check in checks}
            bad += [f"{name}, {backend}, {form}: {found}"] if (found := failures(checks)) else []
    if bad:
        results["failed"] = "; ".join(bad)
    return results


def _told(engines: Path) -> dict[str, Any]:
    """What the builder wrote beside its engines."""
    from edgeprune.runtime.backends.tensorrt.sidecar import read_sidecar

    sidecar = read_sidecar(engines)
    return {
        "engines": {
            which: {"bytes": entry.bytes, "build_seconds": entry.build_seconds}
            for which, entry in sidecar.engines.items()
        },
        "back end": f"{sidecar.backend} {sidecar.version}",
        "target": sidecar.targets[0],
    }


def first_token(place: Place) -> dict[str, Any]:
    """Seconds to the first token of the larger model: each back end in every form, an export without pruning
    stages, and Hugging Face's own code."""
    _need_gpu(place)
    _need_backend(place)
    model = _random_model(place, place.shape)
    image = _noise(336, 336)
    results: dict[str, Any] = {"bench": _bench(place, model, place.shape, image)}
    torch = _torch_with_cuda()
    if torch is None:
        results["Hugging Face"] = "not measured: this PyTorch has no CUDA"
        return results
    return results | _hugging_face(torch, model, image, place.runs)


def pixels(place: Place) -> dict[str, Any]:
    """Seconds to the first token of a Qwen2.5-VL, for images of 1,008 and 2,016 visual tokens."""
    _need_gpu(place)
    _need_backend(place)
    model = _random_model(place, place.qwen)
    sizes = {"1,008 visual tokens": (784, 1008), "2,016 visual tokens": (1008, 1568)}
    return {
        name: _bench(place, model, place.qwen, _noise(*size), beside=False) for name, size in sizes.items()
    }


def _bench(place: Place, model: Path, shape: str, image: Any, *, beside: bool = True) -> dict[str, Any]:
    """`edgeprune bench` of a pruned model, and beside an export without pruning stages, by the back end."""
    from edgeprune.bench import run as bench

    others = []
    if beside:
        others.append(_bundle_with_engines(place, model, f"{shape}-unpruned", "fp16", None)[0])
    pruned, _ = _bundle_with_engines(place, model, f"{shape}-pruned", "fp16", KEEP)
    return {
        backend: bench.run(
            pruned,
            baselines=others,
            prompt=PROMPT,
            images=[image],
            runs=place.runs,
            warmup=2,
            max_new_tokens=NEW_TOKENS,
            backend=backend,
        ).to_dict()
        for backend in place.backends
    }


def _noise(height: int, width: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _hugging_face(torch: Any, folder: Path, image: Any, runs: int) -> dict[str, Any]:
    """Vision tower and prefill of Hugging Face's own code, as benchmarks/prefill.py runs it, on the GPU."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from benchmarks.prefill import hugging_face
    from edgeprune.debias.selection import keep_per_10000, kept_count

    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float16).to("cuda").eval()
    inputs = processor(images=image, text=f"<image>\n{PROMPT}", return_tensors="pt").to("cuda")
    inputs["pixel_values"] = inputs["pixel_values"].half()
    visual = int((inputs["input_ids"] == model.config.image_token_id).sum())
    results: dict[str, Any] = {}
    with torch.device("cuda"), torch.no_grad():
        ways = hugging_face(model, inputs, kept_count(visual, keep_per_10000(KEEP)), 2)
        ways["Hugging Face vision"] = lambda: model.get_image_features(inputs["pixel_values"])
        for name, way in ways.items():
            seconds = []
            for run in range(runs + 2):
                torch.cuda.synchronize()
                began = time.perf_counter()
                way()
                torch.cuda.synchronize()
                if run >= 2:
                    seconds.append(time.perf_counter() - began)
            results[name] = {"seconds": _spread(seconds)}
    return results


def _bundle_with_engines(
    place: Place, model: Path, name: str, dtype: str, keep: float | None, max_batch: int = 1
) -> tuple[Path, Path | None]:
    """A bundle, unpruned where keep is None, and the folder of its engines where a back end needs them."""
    if importlib.util.find_spec("onnxscript") is None:
        raise SkippedError("the exporter's packages are not installed: pip install 'edgeprune[export]'")
    from edgeprune import export

    bundle = place.work / name
    max_pixels = QWEN_PIXELS if name.startswith(place.qwen) else None
    if not bundle.exists():
        pruning: dict[str, Any] = {"keep": 1.0, "method": "none"} if keep is None else {"keep": keep}
        export(model, **pruning, dtype=dtype, output=bundle, verify=False, max_pixels=max_pixels)
    if FLAVOUR not in place.backends:
        return bundle, None
    from edgeprune.runtime.backends.tensorrt import build

    target = place.target or _DEFAULT_TARGET
    return bundle, build(bundle, backend=FLAVOUR, targets=[target], max_images=1, max_batch=max_batch)


def _random_model(place: Place, shape: str) -> Path:
    from benchmarks.random_model import write

    folder = place.work / f"{shape}-model"
    if not folder.exists():
        write(shape, folder, "fp16")
    return folder


def _merged(parts: Any) -> dict[str, Any]:
    """Results of several engines in one; all failures in one sentence."""
    merged: dict[str, Any] = {}
    failed = []
    for part in parts:
        if "failed" in part:
            failed.append(part.pop("failed"))
        merged |= part
    return {**merged, "failed": "; ".join(failed)} if failed else merged


# --- What is here, and the report ----------------------------------------------------


def _need_gpu(place: Place) -> None:
    if place.target is None:
        raise SkippedError("no NVIDIA GPU answers here")


def _need_backend(place: Place) -> None:
    if not place.backends:
        raise SkippedError("no back end of a GPU can run here: pip install 'edgeprune[rtx,ort-gpu]'")


def _torch_with_cuda() -> Any:
    """PyTorch; None where it is missing or runs on the CPU only."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return torch if torch.cuda.is_available() else None


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def machine() -> tuple[dict[str, Any], str | None]:
    """Facts about this machine, and its GPU's architecture."""
    from edgeprune.cli.machine import read_machine
    from edgeprune.runtime.backends.tensorrt import device

    found = read_machine()
    gpu = device.read_gpu(device.runtime("the GPU check", "rtx")) if device.is_installed() else None
    versions = {}
    for package in (
        "edgeprune",
        "tensorrt-rtx-cu13",
        "tensorrt",
        "onnxruntime",
        "onnxruntime-gpu",
        "torch",
        "transformers",
    ):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    facts = {
        "gpu": None if gpu is None else asdict(gpu),
        "driver": next((one.driver for one in found.gpus), None),
        "cuda_toolkit": found.cuda,
        "cpu": found.cpu,
        "system": found.system,
        "python": platform.python_version(),
        "versions": versions,
    }
    return facts, None if gpu is None else gpu.target


def backends_for(target: str | None) -> dict[str, str | None]:
    """The back ends that run on a GPU, and why one is left out; without a GPU engines can only be built."""
    from edgeprune.runtime.backends import available
    from edgeprune.runtime.backends.ort import CUDA
    from edgeprune.runtime.backends.tensorrt.flavours import FLAVOURS, load
    from edgeprune.runtime.backends.tensorrt.targets import resolve_targets

    reason = None
    try:
        module = load(FLAVOURS[FLAVOUR], "building engines")
        resolve_targets(FLAVOURS[FLAVOUR], module, [target or _DEFAULT_TARGET])
    except EdgepruneError as error:
        reason = str(error)
    return {FLAVOUR: reason, **{one.name: one.reason for one in available() if one.name == CUDA}}


PARTS: dict[str, Callable[[Place], dict[str, Any]]] = {
    "kernels": kernels,
    "sanitizer": sanitizer,
    "kernel-times": kernel_times,
    "sample": sample,
    "batches": batches,
    "large": large,
    "families": families,
    "first-token": first_token,
    "pixels": pixels,
}


def markdown(report: dict[str, Any]) -> str:
    """The report as a page: what ran where, every part's figures, and what was skipped with its reason."""
    facts = report["machine"]
    gpu = facts["gpu"]
    name = f"{gpu['name']} ({gpu['target']})" if gpu else "no GPU"
    versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
    lines = [
        "# Results on a GPU",
        "",
        f"Written by `{report['command']}` on {report['date']}.",
        "",
        f"{name}, driver {facts['driver']}, CUDA {facts['cuda_toolkit']}; {facts['cpu']}, {facts['system']}, "
        f"Python {facts['python']}; {versions}.",
    ]
    lines += [
        "",
        *(f"- {backend}: {reason or 'ran'}" for backend, reason in facts["backends"].items()),
    ]
    for part, outcome in report["parts"].items():
        lines += ["", f"## {part}: {outcome['status']}", ""]
        if outcome["reason"]:
            lines += [outcome["reason"], ""]
        rows = list(_rows(outcome["results"]))
        if rows:
            lines += ["| figure | value |", "|---|---|", *(f"| {label} | {value} |" for label, value in rows)]
    return "\n".join(lines) + "\n"


def _rows(value: Any, label: str = "") -> Any:
    """Every leaf with the path that leads to it."""
    if isinstance(value, (dict, list, tuple)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for name, below in pairs:
            yield from _rows(below, f"{label} / {name}" if label else str(name))
    else:
        yield label, f"{value:.6g}" if isinstance(value, float) else value


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Check and measure what only a GPU can show.")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--shape", default="large", help="of the larger model: 7b or large")
    parser.add_argument("--qwen", default=QWEN_SHAPE, help="of the Qwen-VL: qwen-large or qwen2.5-vl-7b")
    parser.add_argument("--runs", type=int, default=10, help="measured runs")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu-check", help="folder to work in")
    parser.add_argument("--markdown", type=Path, help="also write the report as a page")
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    facts, target = machine()
    found = backends_for(target)
    usable = tuple(name for name, reason in found.items() if reason is None)
    place = Place(options.work.resolve(), target, options.shape, options.runs, usable, options.qwen)
    words = sys.argv[1:] if arguments is None else list(arguments)
    report: dict[str, Any] = {
        "command": " ".join(["python benchmarks/gpu_check.py", *words]),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": {**facts, "backends": found},
        "parts": {},
    }
    for name in options.parts:
        print(f"{name} ...", file=sys.stderr, flush=True)
        outcome = run_part(PARTS[name], place)
        report["parts"][name] = asdict(outcome)
        print(f"  {outcome.status}{f': {outcome.reason}' if outcome.reason else ''}", file=sys.stderr)
        if options.markdown:  # after each part: what ran stays told where a later one is cut off
            options.markdown.write_text(markdown(report), encoding="utf-8")
    print(json.dumps(report, indent=2))
    return int(any(part["status"] == "failed" for part in report["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
