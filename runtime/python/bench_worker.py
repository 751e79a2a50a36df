"""The process that measures one variant for `bench`: `python -m edgeprune.runtime.bench_worker JOB`.

JOB is a JSON file, a `Job`. For each line on its standard input the worker does one run and answers with
one line of JSON, a `Run`; at the end of input it quits. A process of its own makes the peak memory the
variant's own, and lets variants take turns.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from edgeprune.errors import EdgepruneError, InputError
from edgeprune.manifest import Manifest
from edgeprune.runtime.backends import open_backend
from edgeprune.runtime.model import Model
from edgeprune.runtime.session import Session


@dataclass(frozen=True)
class Job:
    """What a worker measures.

    Attributes:
        bundle: the folder of weights and tokenizer.
        graphs: the folder of the variant's graphs and of its manifest.
        backend, threads: as for `load`.
        prompt: the question.
        pictures: files of numpy arrays, uint8 [H, W, 3].
        new_tokens: how many to generate in each run.
        debiased: whether the variant is told which visual tokens are padding.
    """

    bundle: str
    graphs: str
    backend: str
    threads: int | None
    prompt: str
    pictures: tuple[str, ...]
    new_tokens: int
    debiased: bool


@dataclass(frozen=True)
class Run:
    """What one run took, in seconds and bytes; see `bench.VariantResult`.

    `kept` are the visual tokens left after each stage, `padded` is how many of the last ones are padding.
    """

    prompt_tokens: int
    visual_tokens: int
    kept: tuple[int, ...]
    padded: int
    time_to_first_token: float
    vision: float
    prefill: float
    time_per_output_token: float
    cache_bytes: int
    peak_memory_bytes: int | None
    peak_memory_metric: str


class Worker:
    """Loads a variant and measures it run by run."""

    def __init__(self, job: Job, manifest: Manifest) -> None:
        options: dict[str, Any] = {} if job.threads is None else {"threads": job.threads}
        self._backend = open_backend(job.backend, **options)
        session = Session(self._backend, Path(job.graphs), manifest, weights=Path(job.bundle))
        self._model = Model(Path(job.bundle), manifest, self._backend, session)
        self._pictures = [np.load(path) for path in job.pictures]
        self._job = job

    def run(self) -> Run:
        """One prompt from its pictures' pixels to the last token; end-of-sequence tokens do not end it."""
        manifest, new_tokens = self._model.manifest, self._job.new_tokens
        started = perf_counter()
        inputs = self._model.prepare(self._job.prompt, self._pictures)
        valid = inputs.visual_valid
        if not self._job.debiased:
            inputs = replace(inputs, visual_valid=np.ones_like(valid))
        needed, limit = len(inputs.input_ids) + new_tokens - 1, manifest.model.max_positions
        if needed > limit:
            raise InputError(
                f"the prompt and {new_tokens} new tokens need {needed} positions and the model has {limit}: "
                "ask for fewer new tokens, or shorten the prompt"
            )
        state = self._model.session.prefill([inputs])
        token = state.logits.argmax(axis=1)
        first = perf_counter()
        for _ in range(new_tokens - 1):
            state.step(token)
            token = state.logits.argmax(axis=1)
        last = perf_counter()
        memory, stages = self._backend.peak_memory(), state.stages[0]
        return Run(
            prompt_tokens=len(inputs.input_ids),
            visual_tokens=len(inputs.visual_valid),
            kept=tuple(stage.kept for stage in stages),
            padded=int((valid[stages[-1].kept_visual] == 0).sum() if stages else (valid == 0).sum()),
            time_to_first_token=first - started,
            vision=state.vision_seconds,
            prefill=state.prefill_seconds,
            time_per_output_token=(last - first) / (new_tokens - 1),
            cache_bytes=state.cache_bytes,
            peak_memory_bytes=memory.bytes,
            peak_memory_metric=memory.metric,
        )


def main(path: str) -> int:
    """Serves one job; a user's error is answered as {"error": class, "message": text} and ends it with 1."""
    text = json.loads(Path(path).read_text(encoding="utf-8"))
    job = Job(**{**text, "pictures": tuple(text["pictures"])})
    manifest = Manifest.model_validate_json((Path(job.graphs) / "variant.json").read_text(encoding="utf-8"))
    try:
        worker = Worker(job, manifest)
        for _ in sys.stdin:
            print(json.dumps(asdict(worker.run())), flush=True)
    except EdgepruneError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
