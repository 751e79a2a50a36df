"""The bundles of a model that an evaluation needs, exported when they are asked for and found again later."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import edgeprune
from edgeprune.exporter.debiasing import check_wish
from edgeprune.files import make_folder, read_regular
from edgeprune.plans import Keep, method_by_name, plan_name, read_debias
from edgeprune.progress import Progress

_DEFAULT_METHOD = "fastv"


@dataclass(frozen=True)
class Pruning:
    """How a model is pruned; the fields are parameters of `edgeprune.export`. Without any it is not."""

    method: str | None = None
    keep: Keep = None
    layer: int | tuple[int, ...] | None = None
    curve: str | None = None
    debias: str | None = None

    @property
    def given(self) -> list[str]:
        """The fields that were given, as messages name parameters."""
        return [f"`{field.name}`" for field in fields(self) if getattr(self, field.name) is not None]

    def resolved(self) -> Pruning:
        """With the method that is meant where it was left out."""
        method = _DEFAULT_METHOD if self.given else UNPRUNED.method
        return self if self.method is not None else replace(self, method=method)

    def check(self) -> None:
        """Raises InputError for what no model can be pruned by, before the exporter is loaded."""
        method = self.resolved().method or _DEFAULT_METHOD
        method_by_name(method)
        check_wish(method, read_debias(self.debias), self.curve)

    def name(self) -> str:
        """In short, for people and as part of a folder's name."""
        return plan_name(self.resolved().method or _DEFAULT_METHOD, self.keep)


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
