"""Comparing the forms of a bundle's language graph: what is carried on in place, and what is copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.interface import IN_PLACE, LOGITS, is_present, kept_index, next_feeds
from edgeprune.manifest import Manifest
from edgeprune.runtime.backends import open_backend

Array = NDArray[Any]


@dataclass
class Decoded:
    """What the portable graph made of a prompt and the tokens behind it.

    Attributes:
        feeds: of the prefill.
        following: int64 [B], the position behind each prompt.
        kept: per stage, int64 [B, S'].
        logits: of the prefill and of each step, float32 [B, vocab].
        tokens: of each step, int64 [B].
    """

    feeds: dict[str, Array]
    following: Array
    kept: list[Array] = field(default_factory=list)
    logits: list[Array] = field(default_factory=list)
    tokens: list[Array] = field(default_factory=list)


def compare_in_place(
    bundle: Path,
    manifest: Manifest,
    decoded: Sequence[Decoded],
    record: Callable[[str, float, float], None],
    logit_limit: float,
    kept_limit: float,
) -> None:
    """Runs the in-place form, its own caches carried on, on what the portable one has run on.

    Args:
        bundle, manifest: which has that form, or there is nothing to compare.
        decoded: by the portable graph.
        record: takes figures by name, with their limits.
        logit_limit: of the difference of logits, in units of their spread or of 1.
        kept_limit: of the share of kept tokens that differ.
    """
    form = manifest.language_form(IN_PLACE)
    if form is None:
        return
    graph = open_backend("onnxruntime", exact=True).load(bundle, form)
    carried = [spec.name for spec in form.outputs if is_present(spec.name)]
    stages = [kept_index(number) for number in range(len(manifest.plan.stages))]
    for case in decoded:
        found = graph.run(case.feeds, [LOGITS, *stages, *carried])
        rows = np.ones(len(case.following), dtype=bool)
        for name, wanted in zip(stages, case.kept, strict=True):
            kept = found[name].numpy()
            same = kept == wanted if kept.shape == wanted.shape else np.zeros((len(rows), 1), dtype=bool)
            record("kept tokens, in-place caches against copied ones", 1 - float(same.mean()), kept_limit)
            rows &= same.all(axis=1)
        for step, wanted in enumerate(case.logits):
            if step:
                positions = case.following + step - 1
                feeds = next_feeds(form.inputs, case.tokens[step - 1], positions, found)
                found = graph.run(feeds, [LOGITS, *carried])
            if rows.any():
                apart = float(np.abs(found[LOGITS].numpy()[rows] - wanted[rows]).max())
                spread = max(1.0, float(wanted.std()))
                record("logits, in-place caches against copied ones", apart / spread, logit_limit)
