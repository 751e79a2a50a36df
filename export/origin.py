"""Where a measured bias curve comes from, and whether it belongs to an export."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from edgeprune.debias.curves import BiasCurve, FittedTo
from edgeprune.errors import InputError
from edgeprune.exporter.weights import checkpoint_files
from edgeprune.files import open_regular
from edgeprune.plans import PruningPlan

_ENDS = 1 << 20


def model_name(model: str | os.PathLike[str]) -> str:
    """What a model is called in a bundle: its hub id, or its folder's name, never a path: bundles travel.

    A folder of the hub's cache, `models--OWNER--NAME/snapshots/COMMIT`, goes by the hub id. Characters that
    cannot be printed become underscores.
    """
    folder = Path(model).expanduser()
    name = str(model)
    if folder.is_dir():
        folder = folder.resolve()
        name = folder.name
        kind, _, hub_id = folder.parent.parent.name.partition("--")
        if folder.parent.name == "snapshots" and kind == "models" and hub_id:
            name = hub_id.replace("--", "/")
    return "".join(char if char.isprintable() else "_" for char in name)


def fingerprint(folder: Path) -> str:
    """Short text that changes with a model's weights: their files' sizes, first and last megabyte."""
    found = hashlib.sha256()
    for path in checkpoint_files(folder):
        with open_regular(path, "the checkpoint") as file:
            size = os.fstat(file.fileno()).st_size
            found.update(f"{size} ".encode())
            found.update(file.read(_ENDS))
            file.seek(max(0, size - _ENDS))
            found.update(file.read(_ENDS))
    return found.hexdigest()[:16]


def origin(
    folder: Path, source: str, plan: PruningPlan, grid: tuple[int, int] | None, images: int = 0
) -> FittedTo:
    """What a curve for this model and the first stage of this plan is fitted to.

    Args:
        folder: the model.
        source: how the user calls it, a folder or a hub id.
        plan: with at least one stage.
        grid: rows and columns of visual tokens of a tile; None where images have no tiles.
        images: how many were measured.
    """
    return FittedTo(
        model=model_name(source),
        weights=fingerprint(folder),
        method=plan.method,
        layer=plan.stages[0].layer,
        grid=grid,
        images=images,
    )


def check_curve(curve: BiasCurve | None, belongs: FittedTo) -> None:
    """Refuses a measured curve of another model, method or layer; a curve that says nothing passes.

    Raises:
        InputError: names what differs.
    """
    if curve is None or curve.fitted_to is None:
        return
    found = curve.fitted_to
    if found.weights != belongs.weights:
        raise InputError(
            f"the bias curve was measured on {found.model} (weights {found.weights}), and this is "
            f"{belongs.model} (weights {belongs.weights}): expected a curve of the same model; measure one "
            "with `edgeprune calibrate`"
        )
    for name in ("method", "layer", "grid"):
        have, want = getattr(found, name), getattr(belongs, name)
        if have != want:
            raise InputError(
                f"the bias curve was measured for {name} {have}, and this export has {name} {want}: expected "
                "a curve of the same; measure one with `edgeprune calibrate`"
            )
