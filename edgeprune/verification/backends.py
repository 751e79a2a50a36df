"""Compares a back end with ONNX Runtime: the same inputs, every output, prefill and decode steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import InputError
from edgeprune.interface import (
    LOGITS,
    PIXEL_VALUES,
    VISUAL_EMBEDS,
    first_feeds,
    is_deepstack,
    is_present,
    kept_index,
    next_feeds,
    tower_score,
)
from edgeprune.layout import PromptLayout
from edgeprune.manifest import Check, Manifest
from edgeprune.positions import prompt_positions
from edgeprune.runtime.backends import AUTO, Backend, available, is_ready, open_backend
from edgeprune.runtime.backends.base import Graph
from edgeprune.runtime.backends.ort import INSTEAD
from edgeprune.runtime.programs import run_program
from edgeprune.vision_inputs import frame_feed, vision_inputs

REFERENCE = "onnxruntime"
_STEPS = 3
_TEXT = 12
_SEED = 0

# The largest difference allowed, as a share of the output's own largest value: roundings in another order.
_LIMITS = {"fp32": 1e-3, "fp16": 2e-2}
# In half precision scores that are nearly equal may change places; as a share of the positions.
_KEPT_LIMITS = {"fp32": 0.0, "fp16": 0.05}

_Arrays = dict[str, NDArray[Any]]


def comparable(bundle: Path, name: str) -> list[str]:
    """The back ends to compare when `name` is asked for; "auto": every one that can run the bundle here."""
    if name != AUTO:
        return [] if name == REFERENCE else [name]
    usable = [entry.name for entry in available() if entry.available and is_ready(entry.name, bundle)]
    return [name for name in usable if name != REFERENCE] if REFERENCE in usable else []


def compare(bundle: Path, manifest: Manifest, name: str) -> list[Check]:
    """Runs both graphs of a bundle on the back end `name` and on ONNX Runtime.

    Every decode step gets the reference's caches on both sides, so differences do not add up over steps. Then
    the back end decodes the same tokens with its own caches, as it does in use.

    Raises:
        InputError: ONNX Runtime cannot run the bundle's type, so there is nothing to compare with.
        BackendError: a back end cannot run here, or not this bundle.
    """
    if (lacking := manifest.precision.beyond_onnxruntime) is not None:
        raise InputError(
            f"ONNX Runtime's CPU kernels do not run {lacking}: {INSTEAD[lacking]} to compare back ends"
        )
    backend = open_backend(name, bundle=bundle)
    return compare_backends(bundle, manifest, backend, open_backend(REFERENCE, exact=True))


def compare_backends(bundle: Path, manifest: Manifest, backend: Backend, reference: Backend) -> list[Check]:
    """As `compare`, of two opened back ends."""
    comparison = _Comparison(manifest, backend.name)
    rng = np.random.default_rng(_SEED)
    program = manifest.image_program
    noise = rng.integers(0, 256, size=(*program.unit, 3)).astype(np.uint8)
    image = run_program(noise, program)
    video = manifest.video_program
    pixels = {
        PIXEL_VALUES: image.pixel_values,
        **frame_feed(program, video),
        **vision_inputs(program, [image.layout], video),
    }
    found = [side.load(bundle, manifest.vision) for side in (backend, reference)]
    names = [spec.name for spec in manifest.vision.outputs]
    seen = comparison.run("vision", found, pixels, names)

    found = [side.load(bundle, manifest.language) for side in (backend, reference)]
    names = [spec.name for spec in manifest.language.outputs]
    feeds, following = _prompt(manifest, seen, PromptLayout((image.layout,)), rng)
    expected = [comparison.run("prefill", found, feeds, names)]
    for step in range(_STEPS):
        next_step = _step(manifest, expected[-1], following + step)
        expected.append(comparison.run(f"decode step {step + 1}", found, next_step, names))
    comparison.carry_on(found[0], feeds, following, expected)
    return comparison.checks


class _Comparison:
    def __init__(self, manifest: Manifest, name: str) -> None:
        self.checks: list[Check] = []
        self._manifest = manifest
        self._dtype = manifest.precision.compute
        self._name = name

    def run(self, what: str, graphs: list[Graph], feeds: _Arrays, names: list[str]) -> _Arrays:
        """Adds the checks of one run; returns the reference's outputs."""
        results: list[_Arrays] = []
        for graph in graphs:
            outputs = graph.run(feeds, names)
            results.append({name: outputs[name].numpy() for name in names})
        tested, expected = results
        self._compare(what, tested, expected, names)
        return expected

    def carry_on(self, graph: Graph, feeds: _Arrays, following: int, expected: list[_Arrays]) -> None:
        """Adds the checks of the logits of a prefill and the steps behind it, caches being what the graph
        itself gave out; where it kept other tokens, there is nothing to compare.

        Args:
            feeds: of the prefill.
            following: the position behind it.
            expected: of the prefill, and of each step.
        """
        inputs, outputs = self._manifest.language.inputs, self._manifest.language.outputs
        carried = [spec.name for spec in outputs if is_present(spec.name)]
        stages = [kept_index(number) for number in range(len(self._manifest.plan.stages))]
        found = graph.run(feeds, [LOGITS, *stages, *carried])
        if any(_positions_apart(found[name].numpy(), expected[0][name]) for name in stages):
            return
        for step, before in enumerate(expected[:-1]):
            token = before[LOGITS].argmax(axis=1).astype(np.int64)
            found = graph.run(
                next_feeds(inputs, token, np.full(1, following + step), found), [LOGITS, *carried]
            )
            what = f"decode step {step + 1} with its own caches"
            self._compare(what, {LOGITS: found[LOGITS].numpy()}, expected[step + 1], [LOGITS])

    def _compare(self, what: str, tested: _Arrays, expected: _Arrays, names: list[str]) -> None:
        worst: dict[str, tuple[float, str]] = {}
        kept_apart = False
        if _merged_apart(tested, expected):
            # Means of other weights: only the scores, which are compared too, say how far apart they are.
            label = f"{self._name}: {what}, tokens merged in another order, so visual_embeds is not compared"
            self.checks.append(Check(name=label, value=1.0, limit=1.0))
            names = [name for name in names if name != VISUAL_EMBEDS]
        for name in names:
            kind = name.partition(".")[0]
            if kept_apart and kind.startswith("present"):
                continue  # rows of other tokens stand in the same places
            if expected[name].dtype == np.int64:
                apart = _positions_apart(tested[name], expected[name])
                kept_apart |= kind == "kept_index" and apart > 0
            else:
                apart = _largest_share(tested[name], expected[name])
            # A NaN is the worst there is.
            if kind not in worst or not apart <= worst[kind][0]:
                worst[kind] = (apart, name)
        for kind, (apart, name) in worst.items():
            limits = _KEPT_LIMITS if expected[name].dtype == np.int64 else _LIMITS
            where = f" (worst: {name})" if name != kind else ""
            label = f"{self._name}: {what}, {kind}{where}"
            self.checks.append(Check(name=label, value=apart, limit=limits[self._dtype]))


def _merged_apart(tested: _Arrays, expected: _Arrays) -> bool:
    """Whether a vision tower's scores, equal up to rounding, come in another order: it is what merges."""
    scores = [name for name in expected if name.startswith(tower_score(0).removesuffix("0"))]
    if any(tested[name].shape != expected[name].shape for name in scores):
        return False  # told by the scores themselves
    return not all(np.array_equal(_order(tested[name]), _order(expected[name])) for name in scores)


def _order(scores: NDArray[Any]) -> NDArray[np.int64]:
    """int64 [N, V], the best first, equal ones by index."""
    return np.argsort(-scores, axis=1, kind="stable")


def _largest_share(tested: NDArray[Any], expected: NDArray[Any]) -> float:
    if tested.shape != expected.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    wide = expected.astype(np.float64)
    return float(np.abs(tested.astype(np.float64) - wide).max() / max(np.abs(wide).max(), 1e-6))


def _positions_apart(tested: NDArray[Any], expected: NDArray[Any]) -> float:
    if tested.shape != expected.shape:
        return float("inf")
    apart = [np.setxor1d(*rows).size / 2 for rows in zip(tested, expected, strict=True)]
    return float(sum(apart) / max(expected.size, 1))


def _prompt(
    manifest: Manifest, seen: _Arrays, layout: PromptLayout, rng: np.random.Generator
) -> tuple[_Arrays, int]:
    """An image, an eighth of it padding, between random words; and the position behind them."""
    image, visual = manifest.prompt.image_token_id, len(seen[VISUAL_EMBEDS])
    words = rng.integers(0, manifest.model.vocab_size, size=_TEXT)
    words[words == image] = 0 if image else 1
    ids = np.concatenate([words[: _TEXT // 2], np.full(visual, image), words[_TEXT // 2 :]])[None]
    valid = np.ones((1, visual), dtype=np.float32)
    valid[:, : visual // 8] = 0
    positions = prompt_positions(manifest.positions, ids[0] == image, layout)
    feeds = first_feeds(
        manifest.language.inputs,
        ids.astype(np.int64),
        np.ones_like(ids, dtype=np.int64),
        np.expand_dims(positions.ids, -2),
        np.nonzero(ids == image)[1][None].astype(np.int64),
        valid,
        np.minimum(1 + np.arange(visual), manifest.curve_places)[None],
        [counts.kept for counts in manifest.plan.counts(visual)],
        seen[VISUAL_EMBEDS][None],
        [value[None] for name, value in seen.items() if is_deepstack(name)],
    )
    return feeds, positions.following


def _step(manifest: Manifest, results: _Arrays, position: int) -> _Arrays:
    """The next token, the likeliest, after the caches of `results`."""
    token = results[LOGITS].argmax(axis=1).astype(np.int64)
    return next_feeds(manifest.language.inputs, token, np.full(1, position), results)
