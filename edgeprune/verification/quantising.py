"""What storing weights in fewer bits changed: the weights themselves, and what comes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeprune import interface
from edgeprune.exporter.families import ModelParts
from edgeprune.exporter.graph import TORCH_DTYPES
from edgeprune.exporter.precision.blocks import BITS
from edgeprune.exporter.precision.linears import stored_blocks
from edgeprune.manifest import BlockKind, Manifest, Precision, WeightKind


@dataclass(frozen=True)
class Limits:
    """The largest accepted change, each as a share.

    Attributes:
        weights: of the worst matrix: |stored - original| / |original|, Frobenius norms.
        kept: visual tokens that stay by one and not by the other.
        score: sum |score - original| / sum |original|.
        logits: root mean square of the difference, in units of the original logits' own spread.
    """

    weights: float
    kept: float
    score: float
    logits: float


# Rounding a normal distribution leaves 0.006, 0.03 and 0.1 of it. What comes of that depends on the model: of
# a tiny or random one far more than of one that was trained. These tell a mistake, not how good a model is.
# There are none of nvfp4, of which nothing can be compared here.
LIMITS: dict[BlockKind, Limits] = {
    "int8": Limits(weights=0.02, kept=0.2, score=0.2, logits=0.3),
    "fp8": Limits(weights=0.06, kept=0.4, score=0.4, logits=0.6),
    "int4": Limits(weights=0.25, kept=0.7, score=0.8, logits=1.0),
}


def weakest(precision: Precision) -> Limits | None:
    """The limits of a precision; None where no weight is in blocks."""
    return next((limits for kind, limits in reversed(LIMITS.items()) if kind in precision.kinds), None)


def times_wider(precision: Precision) -> int:
    """How many times as many bits most weights have in the original, in the type that is computed in."""
    return max(1, _bits(precision.compute) // _bits(precision.weights))


def _bits(kind: WeightKind) -> int:
    if kind == "fp32" or kind == "fp16" or kind == "bf16":
        return 8 * TORCH_DTYPES[kind].itemsize
    return BITS[kind]


@torch.no_grad()
def store(model: Any, parts: ModelParts, bundle: Path, manifest: Manifest) -> float:
    """Gives a model the values that its weights have in a bundle.

    Args:
        model: all of it, in the type that is computed in.
        parts: of it.
        bundle, manifest: its export.

    Returns:
        The relative error of the worst matrix in blocks; 0 where there is none.
    """
    compute, narrow = TORCH_DTYPES[manifest.precision.compute], TORCH_DTYPES[manifest.precision.other]
    language = nn.ModuleDict({"text_model": parts.text_model, "lm_head": parts.lm_head})
    worst, in_blocks = 0.0, set()
    for name, blocks in stored_blocks(bundle / manifest.language.file):
        weight, original = blocks.weight(), language.get_parameter(name).float()
        worst = max(worst, float((weight - original).norm() / original.norm().clamp_min(1e-30)))
        module, _, own = name.rpartition(".")
        stored = nn.Parameter(weight.to(compute), requires_grad=False)
        setattr(language.get_submodule(module), own, stored)  # of its own, even if it was tied
        in_blocks.add(id(stored))
    for parameter in model.parameters() if narrow != compute else ():
        if id(parameter) not in in_blocks and parameter.dim() > 1:
            parameter.copy_(parameter.to(narrow))
    return worst


@dataclass(frozen=True)
class Selected:
    """What a prefill made: per stage kept positions int64 [B, S'] and scores float32 [B, S], and logits."""

    kept: list[NDArray[np.int64]]
    scores: list[NDArray[np.float32]]
    logits: NDArray[np.float32]

    @classmethod
    def of(cls, outputs: Mapping[str, NDArray[Any]], stages: int) -> Selected:
        """From the outputs of the language graph."""
        return cls(
            [outputs[interface.kept_index(stage)] for stage in range(stages)],
            [outputs[interface.score(stage)] for stage in range(stages)],
            outputs[interface.LOGITS],
        )

    def changes(self, original: Selected) -> dict[str, float]:
        """By the names of `Limits`, against the original's."""
        apart = np.square((self.logits - original.logits).astype(np.float64)).mean() ** 0.5
        found = {"logits": float(apart / max(1e-6, float(original.logits.std())))}
        if self.kept:
            mine, theirs = (_positions(one.kept) for one in (self, original))
            found["kept"] = len(mine - theirs) / max(1, len(mine))
            score, before = self.scores[0].astype(np.float64), original.scores[0].astype(np.float64)
            found["score"] = float(np.abs(score - before).sum() / max(1e-30, np.abs(before).sum()))
        return found


def _positions(kept: list[NDArray[np.int64]]) -> set[tuple[int, int, int]]:
    return {
        (stage, row, int(position))
        for stage, rows in enumerate(kept)
        for row, positions in enumerate(rows)
        for position in positions
    }
