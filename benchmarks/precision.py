"""What weights in fewer bits cost the sample model, on images that it has never seen.

    python -m benchmarks.precision [--questions 1200] [--calibrate FILE] [--weights fp32 int8 int4 ...]

Exports the sample model in each precision, asks it held-out questions, pruned and unpruned, and prints
how many answers are right (with a 95 % interval from resampled images), how many are those of fp32, which
share of the kept tokens fp32 keeps too, and how far scores are: sum |score - fp32's| / sum |fp32's|.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import edgeprune
from edgeprune.runtime import Model, load
from samples.scenes import HELD_OUT_SEEDS, Question, scene

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "tiny-llava"
ALL = ("fp32", "fp16", "int8", "fp8", "int4", "int4 by GPTQ")
_RESAMPLES = 2000


@dataclass
class Asked:
    """Questions by image, and what a model made of them."""

    seeds: list[int]
    questions: list[Question]
    texts: list[str]
    kept: list[frozenset[int]]
    scores: list[np.ndarray[Any, Any]]

    @property
    def right(self) -> np.ndarray[Any, Any]:
        pairs = zip(self.texts, self.questions, strict=True)
        return np.array([text.strip() == question.answer for text, question in pairs], dtype=float)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=int, default=1200)
    parser.add_argument("--calibrate", type=Path, help="a question file for GPTQ; without one it is left out")
    parser.add_argument("--weights", nargs="+", default=ALL, choices=ALL)
    parser.add_argument("--keep", type=float, default=0.3)
    given = parser.parse_args(arguments)
    names = [name for name in given.weights if name != ALL[-1] or given.calibrate is not None]
    print("| weights | bytes | right, pruned | as fp32 | kept as fp32 | scores off | right, unpruned |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    before: Asked | None = None
    for name in ["fp32", *(name for name in names if name != "fp32")]:
        with tempfile.TemporaryDirectory() as folder:
            bundle = _exported(name, given.calibrate, given.keep, Path(folder) / "bundle")
            model = load(bundle, "onnxruntime", threads=1)
            size = sum(entry.bytes for entry in model.manifest.files if entry.path.endswith(".safetensors"))
            pruned, whole = _ask(model, given.questions, None), _ask(model, given.questions, 1)
        before = before or pruned
        print(
            f"| {name} | {size:,} | {' | '.join(_figures(pruned, before))} | {_interval(whole)} |", flush=True
        )


def _exported(name: str, calibrate: Path | None, keep: float, output: Path) -> Path:
    weights: Any = None if name == "fp32" else name.split()[0]
    images = calibrate if name.endswith("GPTQ") else None
    return edgeprune.export(
        SAMPLE, keep=keep, weights=weights, calibrate_images=images, output=output, verify=False
    )


def _ask(model: Model, questions: int, keep: float | None) -> Asked:
    found = Asked([], [], [], [], [])
    for seed in HELD_OUT_SEEDS[60_000:]:
        if len(found.questions) >= questions:
            break
        drawn = scene(seed)
        prompts = [question.text for question in drawn.questions]
        replies = model.generate(
            prompts, [[drawn.image]] * len(prompts), keep=keep, max_new_tokens=4, batch_size=len(prompts)
        )
        for question, reply in zip(drawn.questions, replies, strict=True):
            found.seeds.append(seed)
            found.questions.append(question)
            found.texts.append(reply.text)
            if reply.stages:
                found.kept.append(frozenset(map(int, reply.stages[0].kept_visual)))
                found.scores.append(reply.stages[0].score)
    return found


def _figures(found: Asked, before: Asked) -> list[str]:
    same = np.mean([one == other for one, other in zip(found.texts, before.texts, strict=True)])
    kept = np.mean([len(a & b) / len(b) for a, b in zip(found.kept, before.kept, strict=True)])
    off = sum(float(np.abs(a - b).sum()) for a, b in zip(found.scores, before.scores, strict=True))
    off /= sum(float(np.abs(b).sum()) for b in before.scores)
    return [_interval(found), f"{same:.1%}", f"{kept:.4f}", f"{off:.2%}"]


def _interval(found: Asked) -> str:
    seeds = np.unique(found.seeds, return_inverse=True)[1]
    sums, counts = np.bincount(seeds, weights=found.right), np.bincount(seeds)
    drawn = np.random.default_rng(0).integers(0, len(sums), size=(_RESAMPLES, len(sums)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return f"{found.right.mean():.1%} ({low:.1%} to {high:.1%})"


if __name__ == "__main__":
    main()
