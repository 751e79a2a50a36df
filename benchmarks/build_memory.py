"""What `edgeprune build --backend tensorrt-rtx` takes of the host's memory, for models of several shapes.

    python benchmarks/build_memory.py

Writes random LLaVAs (benchmarks/random_model.py), exports and builds each, and prints a table: the weights;
the language engine; the peak resident set of the larger of the two build processes; the part of it that is
the process's own, which the system cannot drop as it can the pages of mapped files (RssAnon, read every
20 ms); and what the build asks for before it begins. Needs no GPU. Everything is written into a temporary
folder, and removed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a script: make the repository's packages importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.random_model import SHAPES, write

FLAVOUR = "tensorrt-rtx"
_INTERVAL = 0.02


@dataclass(frozen=True)
class Taken:
    """Bytes that building one bundle took.

    Attributes:
        layers: of its language model; no bytes.
        weights: of the bundle.
        resident: the peak resident set of the larger of its two build processes.
        own: the peak of what is theirs alone.
        estimate: what the build asks for.
        engine: the language engine's size.
    """

    layers: int
    weights: int
    resident: int
    own: int
    estimate: int
    engine: int


class ChildrenMemory:
    """Within the context, watches this process's children; `peak` is the most that one had of its own."""

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ChildrenMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_INTERVAL):
            for tasks in Path("/proc/self/task").glob("*/children"):
                for child in _words(tasks):
                    self.peak = max(self.peak, _own_bytes(int(child)))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:  # it ended meanwhile
        return []


def _own_bytes(process: int) -> int:
    words = _words(Path(f"/proc/{process}/status"))
    return int(words[words.index("RssAnon:") + 1]) * 1024 if "RssAnon:" in words else 0


def measure(shape: str, dtype: str, targets: list[str], work: Path) -> Taken:
    """Builds a random LLaVA of a shape in a dtype and tells what that took."""
    from edgeprune import export
    from edgeprune.bundle import read_manifest
    from edgeprune.runtime.backends.tensorrt import build
    from edgeprune.runtime.backends.tensorrt.flavours import flavour_by_name
    from edgeprune.runtime.backends.tensorrt.memory import estimate, weight_bytes
    from edgeprune.runtime.backends.tensorrt.sidecar import read_sidecar

    write(shape, work / "model", dtype)
    bundle = export(work / "model", keep=0.3, output=work / "bundle", verify=False)
    manifest = read_manifest(bundle)
    with ChildrenMemory() as memory:
        # Whatever the estimate says: it is what is judged here.
        sidecar = read_sidecar(build(bundle, backend=FLAVOUR, targets=targets, force=True))
    return Taken(
        layers=manifest.model.layers,
        weights=weight_bytes(manifest),
        resident=max(engine.peak_memory_bytes or 0 for engine in sidecar.engines.values()),
        own=memory.peak,
        estimate=estimate(manifest, flavour_by_name(FLAVOUR)),
        engine=sidecar.engines["language"].bytes,
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    shapes = [shape for shape in SHAPES if shape not in ("7b", "wider")]  # more than many machines have
    parser = argparse.ArgumentParser(description="Measure what building engines takes of memory.")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=shapes)
    parser.add_argument("--dtypes", nargs="+", choices=["fp16", "fp32"], default=["fp16", "fp32"])
    parser.add_argument("--targets", nargs="+", default=["sm89"])
    options = parser.parse_args(arguments)
    print("| shape | layers | dtype | weights, GB | engine | resident | own | asked for | own of that |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|")
    for shape in options.shapes:
        for dtype in options.dtypes:
            with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
                taken = measure(shape, dtype, options.targets, Path(folder))
            sizes = (taken.weights, taken.engine, taken.resident, taken.own, taken.estimate)
            cells = [shape, str(taken.layers), dtype, *(f"{size / 1e9:.2f}" for size in sizes)]
            cells.append(f"{taken.own / taken.estimate:.2f}")
            print(f"| {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
