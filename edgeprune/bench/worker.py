"""The process that measures one variant for `bench`; `edgeprune.runtime.child` starts it.

Its argument is a JSON file, a `Job`. For each line on its standard input the worker does one run and answers
with one line of JSON, a `Run`; at the end of input it quits. A process of its own makes the peak memory the
variant's own, and lets variants take turns.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgeprune.bundle import read_manifest
from edgeprune.checks import given
from edgeprune.debias.masks import PaddingMask
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.memory import PeakMemory
from edgeprune.plans import PruningPlan
from edgeprune.runtime.backends import open_backend
from edgeprune.runtime.child import take_stdout
from edgeprune.runtime.model import Model
from edgeprune.runtime.stages import StageResult


class Job(BaseModel):
    """What a worker measures.

    Attributes:
        bundle: the folder.
        plan: what its stages keep and are debiased by.
        backend, threads, caches: as for `load`.
        prompt: the question.
        images: files of numpy arrays, uint8 [H, W, 3].
        new_tokens: how many to generate in each run.
        padding: the mask by which padding among the kept tokens is counted, the same for all variants.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Path
    plan: PruningPlan
    backend: str
    threads: int | None
    caches: str | None
    prompt: str
    images: tuple[Path, ...]
    new_tokens: int
    padding: PaddingMask


@dataclass(frozen=True)
class Run:
    """What one run took, in seconds and bytes; see `bench.VariantResult`.

    `visual_tokens` are one for each place of the images' grids, and `tower_tokens` those of them that the
    language graph gets; `kept` are the ones left after each stage, and `padded` is how many of the last ones
    are padding, None where only a vision tower merges. Memory is the peak so far, or of the first run where
    it is not this process's alone.
    """

    prompt_tokens: int
    visual_tokens: int
    tower_tokens: int
    kept: tuple[int, ...]
    padded: int | None
    time_to_first_token: float
    vision: float
    prefill: float
    time_per_output_token: float
    cache_bytes: int
    peak_memory_bytes: int | None
    peak_memory_metric: str


class Worker:
    """Loads a variant and measures it run by run."""

    def __init__(self, job: Job) -> None:
        self._backend = open_backend(job.backend, **given(threads=job.threads, caches=job.caches))
        self._model = Model(job.bundle, read_manifest(job.bundle), self._backend)
        self._images = [np.load(path) for path in job.images]
        self._job = job
        self._memory: PeakMemory | None = None

    def run(self) -> Run:
        """One prompt from its images' pixels to the last token; end-of-sequence tokens do not end it."""
        manifest, new_tokens = self._model.manifest, self._job.new_tokens
        started = perf_counter()
        inputs = self._model.prepare(self._job.prompt, self._images)
        needed, limit = len(inputs.input_ids) + new_tokens - 1, manifest.model.max_positions
        if needed > limit:
            raise InputError(
                f"the prompt and {new_tokens} new tokens need {needed} positions and the model has {limit}: "
                "ask for fewer new tokens, or shorten the prompt"
            )
        state = self._model.session.prefill([inputs], self._job.plan, new_tokens - 1)
        token = state.logits.argmax(axis=1)
        first = perf_counter()
        for _ in range(new_tokens - 1):
            state.step(token)
            token = state.logits.argmax(axis=1)
        last = perf_counter()
        memory = self._peak_memory()
        return Run(
            prompt_tokens=len(inputs.input_ids),
            visual_tokens=inputs.layout.tokens,
            tower_tokens=manifest.tower_tokens(inputs.layout.tokens),
            kept=tuple(stage.kept for stage in state.stages[0]),
            padded=self._padded(inputs.layout.valid(self._job.padding), state.stages[0]),
            time_to_first_token=first - started,
            vision=state.vision_seconds,
            prefill=state.prefill_seconds,
            time_per_output_token=(last - first) / (new_tokens - 1),
            cache_bytes=state.cache_bytes,
            peak_memory_bytes=memory.bytes,
            peak_memory_metric=memory.metric,
        )

    def _peak_memory(self) -> PeakMemory:
        """Where other processes' memory counts too, that of the first run: until then no later variant is
        loaded, and the earlier ones have what they need.
        """
        if self._memory is None or not self._memory.shared:
            found = self._backend.peak_memory()
            metric = f"{found.metric}, until the end of the first run" if found.shared else found.metric
            self._memory = replace(found, metric=metric)
        return self._memory

    def _padded(self, valid: NDArray[np.float32], stages: Sequence[StageResult]) -> int | None:
        """How many of the visual tokens that are left are padding."""
        if not stages and self._job.plan.tower:
            return None
        left = valid[stages[-1].kept_visual] if stages else valid
        return int((left == 0).sum())


class Measures(Protocol):
    """What measures one variant."""

    def run(self) -> Any:
        """One run, a dataclass or a pydantic model."""
        ...


def serve(path: str, open_worker: Callable[[str], Measures]) -> int:
    """Serves one job; a user's error is answered as {"error": class, "message": text} and ends it with 1.

    Args:
        path: of the job's file.
        open_worker: makes what measures it of the file's text.
    """
    answers = take_stdout()
    try:
        worker = open_worker(Path(path).read_text(encoding="utf-8"))
        for _ in sys.stdin:
            run = worker.run()
            answer = run.model_dump() if isinstance(run, BaseModel) else asdict(run)
            print(json.dumps(answer), file=answers, flush=True)
    except EdgepruneError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), file=answers, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1], lambda text: Worker(Job.model_validate_json(text))))
