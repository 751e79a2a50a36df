"""What is measured beside each other: the forms of a bundle and its baselines, if they fit together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeprune.bundle import read_manifest
from edgeprune.choices import run_plan
from edgeprune.errors import InputError
from edgeprune.manifest import Manifest, ModelInfo
from edgeprune.plans import Keep, PruningPlan
from edgeprune.runtime.backends import Backend
from edgeprune.runtime.backends.ort import OrtBackend
from edgeprune.runtime.backends.tensorrt.backend import EngineBackend
from edgeprune.runtime.backends.tensorrt.limits import Limits, default_visual
from edgeprune.runtime.backends.tensorrt.sidecar import Sidecar

PRUNED, NO_DEBIAS, UNPRUNED = "pruned", "pruned without debias", "unpruned"


@dataclass(frozen=True)
class Measured:
    """One variant of a model to measure.

    Attributes:
        name: as the report calls it.
        bundle: the folder.
        manifest: of the bundle.
        plan: what its stages keep and are debiased by.
        engine: which of the bundle's engines runs, None where the ONNX files do.
        size: the bytes of what is loaded.
    """

    name: str
    bundle: Path
    manifest: Manifest
    plan: PruningPlan
    engine: str | None
    size: int


def forms(own: Measured, keep: Keep) -> list[Measured]:
    """A bundle unpruned, pruned without debias, and pruned; fewer where those do not differ.

    Args:
        own: the bundle.
        keep: other keep ratios than it was exported with.

    Raises:
        InputError: as `edgeprune.choices.run_plan`.
    """
    plan = run_plan(own.manifest, keep)
    if not plan.shortens:
        return [replace(own, name=UNPRUNED, plan=plan)]
    found = [replace(own, name=PRUNED, plan=plan)]
    if plan.debias:
        found.insert(0, replace(own, name=NO_DEBIAS, plan=plan.debiased(())))
    # What a vision tower merges is part of its graph.
    if not plan.tower:
        found.insert(0, replace(own, name=UNPRUNED, plan=plan.keeping_all()))
    return found


def opened(
    bundle: str | os.PathLike[str],
    baselines: Sequence[str | os.PathLike[str]],
    backend: Backend,
) -> list[Measured]:
    """The baselines, and last the bundle, each by the name it was given.

    Raises:
        BundleError: one of them is not a bundle.
        BackendError: the back end runs engines, and one of them has none that fits here.
        InputError: a baseline is named twice, or differs from the bundle in more than its pruning.
    """
    found: list[Measured] = []
    sidecars: list[Sidecar] = []
    for path in (*baselines, bundle):
        folder = Path(path).resolve()
        if any(folder == other.bundle for other in found):
            raise InputError(
                f"{os.fspath(path)} would be measured twice: expected the bundle and baselines other than "
                "it; leave it out once"
            )
        manifest = read_manifest(folder)
        engine, size = None, sum(entry.bytes for entry in manifest.files)
        if isinstance(backend, OrtBackend) and (built := backend.find(folder)) is not None:
            engine = built.folder.name
        if isinstance(backend, EngineBackend):
            engines, sidecar = backend.find(folder, manifest)
            sidecars.append(sidecar)
            engine = engines.name
            if manifest.plan.prunes:
                engine += f", pruning by the {sidecar.pruning}"
            size = sum(entry.bytes for entry in sidecar.engines.values())
        found.append(Measured(_name(path), folder, manifest, manifest.plan, engine, size))
    *others, own = found
    for other in others:
        _check_same_model(other, own)
    for other, sidecar in zip(others, sidecars, strict=False):
        _check_same_limits(other, sidecar, own, sidecars[-1])
    return found


def _name(path: str | os.PathLike[str]) -> str:
    """As it was given; a folder that is called as one of the forms is told apart from it."""
    name = os.fspath(path)
    return os.path.join(os.curdir, name) if name in (PRUNED, NO_DEBIAS, UNPRUNED) else name


def _check_same_model(other: Measured, own: Measured) -> None:
    """Refuses a baseline of which a difference in time would say nothing about pruning."""
    theirs, ours = other.manifest, own.manifest
    wrong = []
    for name in ModelInfo.model_fields:
        found, expected = getattr(theirs.model, name), getattr(ours.model, name)
        # Where the model lay when it was exported says nothing about what it is.
        if name != "source" and found != expected:
            wrong.append(f"its {name.replace('_', ' ')} is {found} instead of {expected}")
    if theirs.precision != ours.precision:
        wrong.append(f"its precision is {theirs.precision.describe()} instead of {ours.precision.describe()}")
    if theirs.image_program != ours.image_program:
        wrong.append("it prepares images in another way")
    if _prompt_of(theirs) != _prompt_of(ours):
        wrong.append("its tokenizer or chat template is another one")
    if wrong:
        raise InputError(
            f"the baseline {other.name} does not fit the bundle {own.name}: {'; '.join(wrong)}; export it "
            "from the same model with the same options, but for `method`, `keep` and `debias`"
        )


def _prompt_of(manifest: Manifest) -> tuple[object, ...]:
    """What decides into which tokens a prompt is made: the settings, and the contents of the files."""
    files = {entry.path: entry.sha256 for entry in manifest.files}
    prompt = manifest.prompt
    return prompt, files.get(prompt.tokenizer), files.get(prompt.chat_template or "")


def _check_same_limits(other: Measured, theirs: Sidecar, own: Measured, ours: Sidecar) -> None:
    """Refuses engines with other limits: they are tuned for other shapes, and their buffers differ."""
    # A vision tower that merges tokens leaves a shorter prompt of the same text.
    text, visual = ours.limits.prompt - ours.limits.visual, ours.limits.visual
    if visual == default_visual(own.manifest, ours.limits.images):
        visual = default_visual(other.manifest, ours.limits.images)
    wanted = ours.limits.model_copy(update={"prompt": visual + text, "visual": visual})
    if theirs.limits != wanted:
        raise InputError(
            f"the engine of the baseline {other.name} takes {_in_words(theirs.limits)}, and that of the "
            f"bundle {own.name} {_in_words(ours.limits)}: build the former again: "
            f"`{theirs.build_command(other.bundle, limits=wanted)}`"
        )


def _in_words(limits: Limits) -> str:
    return (
        f"{limits.batch} prompts of {limits.prompt} tokens and {limits.images} images with "
        f"{limits.new_tokens} new tokens"
    )
