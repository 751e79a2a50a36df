"""The bundles of a model that an evaluation needs, exported when they are asked for and found again later."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

import edgeprune
from edgeprune.files import make_folder, read_regular
from edgeprune.plans import Keep, plan_name
from edgeprune.progress import Progress


@dataclass(frozen=True)
class Pruning:
    """How a model is pruned; the fields are parameters of `edgeprune.export`."""

    method: str
    keep: Keep = None
    layer: int | tuple[int, ...] | None = None
    curve: str | None = None
    debias: str | None = None

    def name(self) -> str:
        """In short, for people and as part of a folder's name."""
        return plan_name(self.method, self.keep)


UNPRUNED = Pruning("none")


class Bundles:
    """The bundles of a model.

    Args:
        model: the model folder.
        cache: where bundles are put, and found again.
        progress: told of exports.
    """

    def __init__(self, model: Path, cache: Path, progress: Progress) -> None:
        self._model, self._cache, self._progress = model, cache, progress
        make_folder(cache)

    def of(self, pruning: Pruning) -> Path:
        """The bundle of a model that is pruned so.

        Raises:
            EdgepruneError: it cannot be exported.
        """
        folder = self._cache / f"{pruning.name()}-{self._mark(pruning)}"
        if not folder.exists():
            self._progress.step(f"exporting {pruning.name()}")
            edgeprune.export(self._model, output=folder, verify=False, **asdict(pruning))
        return folder

    def _mark(self, pruning: Pruning) -> str:
        """Short text that changes with anything an export depends on."""
        files = sorted(path for path in self._model.iterdir() if path.is_file())
        parts = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
        parts += [edgeprune.__version__, str(pruning)]
        if pruning.curve is not None and Path(pruning.curve).is_file():
            parts.append(hashlib.sha256(read_regular(Path(pruning.curve))).hexdigest())
        return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:10]
