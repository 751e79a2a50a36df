"""Reading bundles, and the sums and the manifest of one that is written.

A bundle is a folder; `edgeprune.replacing` puts it in place. Reading checks the schema, refuses paths that
leave the folder, and compares sizes and SHA-256 sums.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import ValidationError

from edgeprune.errors import BundleError
from edgeprune.files import write_text
from edgeprune.manifest import MANIFEST_NAME, SCHEMA_VERSION, FileEntry, Manifest

_CHUNK = 1 << 22

Progress = Callable[[int], None]


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """SHA-256 of a file as 64 hex digits, read in chunks; `progress` is told the bytes of each chunk."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if progress:
                progress(len(chunk))
    return digest.hexdigest()


def copy_with_sha256(source: Path, target: Path, progress: Progress | None = None) -> FileEntry:
    """Copies a file and hashes it in the same pass, in constant memory."""
    digest = hashlib.sha256()
    size = 0
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
            writer.write(chunk)
            size += len(chunk)
            if progress:
                progress(len(chunk))
    return FileEntry(path=target.name, bytes=size, sha256=digest.hexdigest())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `edgeprune.json` into `folder`, atomically."""
    write_text(folder / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n", "the manifest")


def read_manifest(
    folder: str | os.PathLike[str],
    check: Literal["sizes", "hashes"] = "sizes",
    progress: Progress | None = None,
) -> Manifest:
    """Reads and checks the manifest of a bundle.

    Args:
        folder: the bundle.
        check: "sizes" compares every file's size (instant); "hashes" also compares SHA-256 sums.
        progress: told the bytes hashed so far, chunk by chunk.

    Raises:
        BundleError: not a bundle; written by a newer version; a file is missing, altered or truncated; a
            path leaves the folder.
    """
    root = Path(folder)
    path = root / MANIFEST_NAME
    if not root.is_dir():
        raise BundleError(
            f"{root} is not a folder: expected a bundle, as `edgeprune export -o DIR` writes it"
        )
    if not path.is_file():
        raise BundleError(f"{root} is not a bundle: it has no {MANIFEST_NAME}; `edgeprune export` writes one")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read ({error}): export the bundle again") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"{path} names no schema_version: it is not an edgeprune manifest; export again")
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema {version}, written by a newer edgeprune; this one reads up to "
            f"{SCHEMA_VERSION}: upgrade edgeprune, or export again with this version"
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "its root"
        raise BundleError(
            f"{path} is not valid at {where}: {first['msg']}; export the bundle again"
        ) from error
    _check_files(root, manifest, check == "hashes", progress)
    return manifest


def _check_files(root: Path, manifest: Manifest, hashes: bool, progress: Progress | None) -> None:
    listed = {entry.path for entry in manifest.files}
    for name in _named_files(manifest):
        if name not in listed:
            raise BundleError(
                f"{root / MANIFEST_NAME} names the file {name} but does not list it: export again"
            )
    for entry in manifest.files:
        file = inside(root, entry.path)
        if not file.is_file():
            raise BundleError(f"the bundle {root} lacks {entry.path}: copy the whole folder, or export again")
        size = file.stat().st_size
        if size != entry.bytes:
            raise BundleError(
                f"{file} has {size} bytes and should have {entry.bytes}: it is truncated or "
                "altered; copy it again"
            )
        if hashes and sha256_of(file, progress) != entry.sha256:
            raise BundleError(f"{file} does not match its SHA-256 sum: it was altered; copy it again")


def _named_files(manifest: Manifest) -> list[str]:
    names = [manifest.language.file, manifest.vision.file, manifest.prompt.tokenizer]
    if manifest.prompt.chat_template:
        names.append(manifest.prompt.chat_template)
    return names


def inside(root: Path, relative: str) -> Path:
    """`root / relative`, refused where it would leave the bundle.

    Raises:
        BundleError: the path is absolute, climbs out of the folder, or is a link that leads out.
    """
    pure = PurePosixPath(relative)
    path = root / pure
    leaves = pure.is_absolute() or ".." in pure.parts or "\\" in relative or "\0" in relative or not relative
    if leaves or not _resolved(path).is_relative_to(_resolved(root)):
        raise BundleError(f"the bundle {root} names a path outside its folder ({relative!r}): do not use it")
    return path


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError as error:  # links that lead in a circle, before Python 3.13
        raise BundleError(f"{path} is a link that leads in a circle: do not use this bundle") from error
