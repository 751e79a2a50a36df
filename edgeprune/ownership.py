"""Which files of a folder edgeprune wrote, by the lists that it left there: only those are ever replaced."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from edgeprune.errors import InputError
from edgeprune.json_file import read_json
from edgeprune.manifest import MANIFEST_NAME
from edgeprune.scratch import is_scratch

SIDECAR_NAME = "engine.json"
"""The list of what `build` made, in each folder of engines."""
ENGINES = "engines"
"""A bundle's folder of folders of engines."""
RUNTIME_CACHE = "runtime.cache"
"""The ending of what TensorRT for RTX compiled for this machine's GPU, kept beside the engines."""

_SHOWN = 5


@dataclass(frozen=True)
class Kind:
    """A kind of folder that edgeprune writes.

    Attributes:
        marker: the JSON file that tells of the others.
        listed: from the marker's content the names of all other files; an exception, that it is none of ours.
        lacking: of a folder that is of another kind, for messages: "it ...".
        elsewhere: what to do, in messages, where the folder cannot be written.
    """

    marker: str
    listed: Callable[[Mapping[str, Any]], list[str]]
    lacking: str
    elsewhere: str

    def files(self, folder: Path) -> frozenset[str] | None:
        """The names that the folder's marker accounts for; None where the folder is not of this kind."""
        try:
            names = self.listed(read_json(folder / self.marker))
        except (InputError, OSError, ValueError, LookupError, TypeError, AttributeError):
            return None
        return frozenset([self.marker, *names]) if all(isinstance(name, str) for name in names) else None


# Lists of an older or newer edgeprune count too, so no more is read than what all have had.


def _check_version(raw: Mapping[str, Any]) -> None:
    version = raw["schema_version"]
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(version)


def _of_manifest(raw: Mapping[str, Any]) -> list[str]:
    _check_version(raw)
    return [entry["path"] for entry in raw["files"]]


def _of_sidecar(raw: Mapping[str, Any]) -> list[str]:
    _check_version(raw)
    engines = raw["engines"]
    return [*(one["path"] for one in engines.values()), *(f"{which}.{RUNTIME_CACHE}" for which in engines)]


BUNDLE_FOLDER = Kind(
    MANIFEST_NAME, _of_manifest, f"has no {MANIFEST_NAME} that lists its files", "choose another `output`"
)
ENGINE_FOLDER = Kind(
    SIDECAR_NAME,
    _of_sidecar,
    f"has no {SIDECAR_NAME} that lists its files",
    "build in a copy of the bundle elsewhere",
)


def engines_of(bundle: Path) -> list[str]:
    """The names of the bundle's folders of engines."""
    folder = bundle / ENGINES
    if folder.is_symlink() or not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if not is_scratch(path.name))
    return sorted(path.name for path in found if ENGINE_FOLDER.files(path) is not None)


def foreign_files(folder: Path, kind: Kind) -> list[str] | None:
    """What lies in a folder and edgeprune did not write, by relative names, folders with a slash behind.

    Returns:
        None where the folder as a whole is not of this kind.
    """
    known = kind.files(folder)
    if known is None:
        return None
    if kind is BUNDLE_FOLDER:
        built = {
            f"{ENGINES}/{name}/{file}"
            for name in engines_of(folder)
            for file in ENGINE_FOLDER.files(folder / ENGINES / name) or ()
        }
        known |= built
    above = {str(parent) for name in known for parent in PurePosixPath(name).parents}
    # An empty one is left behind by a first build that failed.
    above |= {ENGINES} if kind is BUNDLE_FOLDER else set()
    return sorted(_unknown(folder, known, above))


def _unknown(folder: Path, known: frozenset[str], above: set[str], prefix: str = "") -> Iterator[str]:
    for entry in os.scandir(folder):
        name, is_folder = f"{prefix}{entry.name}", entry.is_dir(follow_symlinks=False)
        if is_folder and name in above:
            yield from _unknown(Path(entry.path), known, above, f"{name}/")
        elif is_folder or name not in known:
            yield f"{name}/" if is_folder else name


def some_of(names: list[str]) -> str:
    """Some names for a message, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
