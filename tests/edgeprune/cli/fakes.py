"""A model that answers at once, for what only passes options on and prints results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.manifest import Manifest
from edgeprune.runtime import Reply, StageResult, Statistics
from tests.manifests import make_manifest

PIECES = ("a ", "red ", "ring")


def make_reply(
    pruned: bool = True, tower_tokens: int = 16, method: str = "fastv", debias: str = "position padding"
) -> Reply:
    """16 visual tokens, of which the upper four are padding; 5 kept, two of them padding without debias."""
    score = np.linspace(2.0, 1.0, 16, dtype=np.float32)
    valid = np.ones(16, dtype=np.float32)
    valid[:4] = 0
    plan = make_manifest(method, debias).plan if pruned else make_manifest("none").plan
    stage = StageResult(
        planned=make_manifest(method).plan.stages[0],
        debias=plan.debias,
        kept_visual=np.array([4, 5, 6, 7, 8]),
        candidates=np.arange(16),
        score=score,
        weight=valid,
        visual_valid=valid,
    )
    statistics = Statistics(
        visual_tokens=16,
        tower_tokens=tower_tokens,
        kept=(5,) if pruned else (),
        padded_kept=(0,) if pruned else (),
        image_tokens=(16,),
        image_kept=((5,),) if pruned else (),
        prompt_tokens=25,
        new_tokens=4,
        batch=1,
        preprocess_seconds=0.001,
        vision_seconds=0.002,
        prefill_seconds=0.003,
        time_to_first_token_seconds=0.0064,
        decode_seconds=0.25,
        tokens_per_second=1234.5,
        cache_bytes=4096,
        peak_memory_bytes=123_000_000,
        peak_memory_metric="resident set",
    )
    return Reply("a red ring", (7, 8, 9, 2), "stop", plan, (stage,) if pruned else (), statistics)


class FakeModel:
    """Remembers what it was asked, and answers in pieces."""

    backend_name = "fake"
    engines = None

    def __init__(self, reply: Reply | None = None, manifest: Manifest | None = None) -> None:
        self.reply = reply or make_reply()
        self.manifest = manifest or make_manifest()
        self.loaded: tuple[Path, str, dict[str, Any]] | None = None
        self.talking: dict[str, Any] | None = None
        self.questions: list[tuple[str, list[str]]] = []
        self.asked: tuple[str, list[str], dict[str, Any]] | None = None

    def load(self, bundle: Path, backend: str = "auto", **options: Any) -> FakeModel:
        self.loaded = (bundle, backend, options)
        return self

    def conversation(self, **options: Any) -> FakeModel:
        self.talking = options
        return self

    def ask(self, question: str, images: Any = (), **options: Any) -> Reply:
        self.questions.append((question, list(images)))
        return self.generate(question, images, **options)

    def generate(self, prompt: str, images: Any = (), *, stream: Any = None, **options: Any) -> Reply:
        self.asked = (prompt, list(images), options)
        if stream is not None:
            for piece in PIECES:
                stream(piece)
        return self.reply
