"""What a decode step costs by what is done with its caches: all are copied, or what is new is written.

    python -m benchmarks.decoding BUNDLE [--keep K] [--context 700 2000] [--threads 1]

Every form of the language graph decodes behind caches of random numbers, of as many tokens as are asked for
in front of the first pruning stage and of as many less behind each as the plan drops of the visual tokens of
one image. The forms take turns. Printed is the processor time of a step, which other processes disturb less
than the wall clock; it is that of all threads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.bundle import read_manifest
from edgeprune.choices import run_plan
from edgeprune.interface import LOGITS, is_cache, is_present, layer_of, next_feeds
from edgeprune.manifest import Manifest
from edgeprune.runtime.backends import open_backend

_WARM_UP = 2


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time decode steps by the form of the caches.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--keep", type=float, help="the share of visual tokens kept, 1 for the unpruned model"
    )
    parser.add_argument("--context", type=int, nargs="+", default=[700, 2000], help="tokens in the caches")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8, help="timed steps in a turn")
    parser.add_argument("--turns", type=int, default=4)
    given = parser.parse_args(arguments)
    manifest = read_manifest(given.bundle)
    plan = run_plan(manifest, given.keep, None)
    backend = open_backend("onnxruntime", threads=given.threads)
    forms = {"copied": manifest.language} | {
        form: manifest.language_form(form) for form in manifest.language_forms
    }
    graphs = {name: backend.load(given.bundle, spec) for name, spec in forms.items() if spec is not None}
    print("| tokens in the caches | | CPU ms a step: median (least to greatest turn) |\n|---|---|---:|")
    for context in given.context:
        lengths = plan.cache_lengths(context, min(manifest.most_image_tokens, context))
        turns: dict[str, list[float]] = {name: [] for name in graphs}
        for _ in range(given.turns):
            for name, graph in graphs.items():
                turns[name].append(_turn(graph, manifest, lengths, given.steps))
        for name, found in turns.items():
            median, least, greatest = (
                f"{1000 * seconds:.1f}" for seconds in (statistics.median(found), min(found), max(found))
            )
            held = " / ".join(map(str, lengths))
            print(f"| {held} | {name} | {median} ({least} to {greatest}) |")


def _turn(graph: Any, manifest: Manifest, lengths: tuple[int, ...], steps: int) -> float:
    """The median of a step's processor time, in seconds."""
    rng = np.random.default_rng(0)
    inputs = manifest.language.inputs
    caches: dict[str, Any] = {}
    for spec in manifest.language.outputs:
        if is_cache(spec.name):
            length = lengths[manifest.plan.group_of_layer(layer_of(spec.name))]
            size = (1, manifest.model.kv_heads, length, manifest.model.head_dim)
            caches[spec.name] = rng.standard_normal(size, dtype=np.float32).astype(spec.dtype)
        elif is_present(spec.name):
            caches[spec.name] = np.ones((1, lengths[layer_of(spec.name)]), dtype=np.int64)
    graph.expect([length + steps + _WARM_UP for length in lengths])
    spent = []
    for step in range(steps + _WARM_UP):
        feeds = next_feeds(inputs, np.array([step]), np.array([max(lengths) + step]), caches)
        started = time.process_time()
        caches = graph.run(feeds, [LOGITS, *caches])
        caches.pop(LOGITS).numpy()
        spent.append(time.process_time() - started)
    return statistics.median(spent[_WARM_UP:])


if __name__ == "__main__":
    main()
