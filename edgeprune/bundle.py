"""Reading bundles, and the sums and the manifest of one that is written.

A bundle is a folder; `edgeprune.replacing` puts it in place. Reading checks the schema, refuses paths that
leave the folder, compares sizes and SHA-256 sums, and sees to it that the graphs keep no weights in files
without one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import ValidationError

from edgeprune.errors import BundleError, InputError
from edgeprune.fields import first_fault, leaves, shown
from edgeprune.files import open_regular, shares_content, write_text
from edgeprune.interface import PLAN_METADATA
from edgeprune.json_file import read_json
from edgeprune.manifest import MANIFEST_NAME, SCHEMA_VERSION, FileEntry, Manifest
from edgeprune.onnx_files import read_graph
from edgeprune.plans import PruningPlan

_CHUNK = 1 << 22
# What is hashed at every load: some tenths of a second in all.
_QUICK_FILE = 64 << 20
_QUICK_TOTAL = 128 << 20
_NO_VERSION = 1 << 31
_HUB_REPOSITORY = re.compile(r"(models|datasets|spaces)--")

Progress = Callable[[int], None]


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """SHA-256 of a file as 64 hex digits, read in chunks; `progress` is told the bytes of each chunk."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if progress:
                progress(len(chunk))
    return digest.hexdigest()


def copy_with_sha256(source: Path, target: Path, progress: Progress | None = None) -> FileEntry:
    """Copies a file and hashes it in the same pass, in constant memory.

    On file systems that can (Btrfs, XFS) the copy shares the source's place on the disk until one is changed.
    """
    digest = hashlib.sha256()
    size = 0
    with open_regular(source) as original, target.open("w+b") as writer:
        shared = shares_content(original, writer)
        reader = writer if shared else original
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
            if not shared:
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
        check: "sizes" compares every file's size, and the SHA-256 sum of those that are small; "hashes"
            compares all sums.
        progress: told the bytes hashed so far, chunk by chunk.

    Raises:
        BundleError: not a bundle; written by a newer version; a file is missing, altered or truncated; a
            path leaves the folder; a graph keeps its weights in a file that is not listed.
    """
    root = Path(folder)
    path = root / MANIFEST_NAME
    if not os.path.isdir(root):
        raise BundleError(
            f"{root} is not a folder: expected a bundle, as `edgeprune export -o DIR` writes it"
        )
    if not os.path.isfile(path):
        raise BundleError(f"{root} is not a bundle: it has no {MANIFEST_NAME}; `edgeprune export` writes one")
    try:
        raw = read_json(inside(root, MANIFEST_NAME))
    except (ValueError, OSError, InputError) as error:
        raise BundleError(f"{path} cannot be read ({error}): export the bundle again") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version < _NO_VERSION:
        raise BundleError(f"{path} names no schema_version: it is not an edgeprune manifest; export again")
    if version < SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema {version}, written by an earlier edgeprune; this one reads {SCHEMA_VERSION}: "
            "export the bundle again"
        )
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema {version}, written by a newer edgeprune; this one reads "
            f"{SCHEMA_VERSION}: upgrade edgeprune, or export again with this version"
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        raise BundleError(f"{path} is not valid: {first_fault(error)}; export the bundle again") from error
    _check_listed(root, manifest)
    check_files(root, manifest.files, check == "hashes", progress)
    _check_graphs(root, manifest)
    return manifest


def _check_listed(root: Path, manifest: Manifest) -> None:
    listed = {entry.path for entry in manifest.files}
    prompt = manifest.prompt
    for name in (*manifest.graph_files, prompt.tokenizer, prompt.chat_template):
        if name is not None and name not in listed:
            raise BundleError(
                f"{root / MANIFEST_NAME} names the file {name} but does not list it: export again"
            )


def check_files(
    root: Path, entries: Sequence[FileEntry], everything: bool, progress: Progress | None = None
) -> None:
    """Compares files with a list of them: the sizes of all, and the sums of all or of those that are small.

    Args:
        root: the folder that the entries' paths are relative to.
        entries: of the list.
        everything: whether large files are hashed, too.
        progress: told the bytes hashed so far, chunk by chunk.

    Raises:
        BundleError: a file is missing or no regular one, altered or truncated, or a path leaves the folder.
    """
    left = _QUICK_TOTAL
    for entry in sorted(entries, key=lambda entry: entry.bytes):
        file = inside(root, entry.path)
        if not os.path.isfile(file):
            raise BundleError(f"{root} lacks {entry.path}: copy the whole folder again")
        size = file.stat().st_size
        if size != entry.bytes:
            raise BundleError(
                f"{file} has {size} bytes and should have {entry.bytes}: it is truncated or "
                "altered; copy it again"
            )
        left -= size
        hashed = everything or (size <= _QUICK_FILE and left >= 0)
        if hashed and sha256_of(file, progress) != entry.sha256:
            raise BundleError(f"{file} does not match its SHA-256 sum: it was altered; copy it again")


def _check_graphs(root: Path, manifest: Manifest) -> None:
    """What the graphs say of themselves: the files they open, and the plan they were made by."""
    listed = {entry.path for entry in manifest.files}
    for graph in manifest.graph_files:
        said = read_graph(root / graph)
        # What it opens and the list does not name could be anything, whatever the sums say.
        unlisted = said.external_files - listed
        if unlisted:
            raise BundleError(
                f"{root / graph} keeps weights in {shown(min(unlisted))}, which {MANIFEST_NAME} does "
                "not list, so that nobody can tell whether they are the right ones: copy the whole bundle "
                "again, or export it again"
            )
        stated = said.metadata.get(PLAN_METADATA)
        if stated is not None and not _is_plan(stated, manifest.plan):
            raise BundleError(
                f"{root / graph} was made by another plan than {MANIFEST_NAME} says "
                f"({manifest.plan.describe()}): they do not belong together; copy the whole bundle again, "
                "or export it again"
            )


def _is_plan(text: str, plan: PruningPlan) -> bool:
    try:
        return PruningPlan.model_validate_json(text) == plan
    except ValidationError:
        return False


def inside(root: Path, relative: str) -> Path:
    """`root / relative`, refused where it would leave the bundle.

    A link may lead to another file of the bundle or, in a snapshot of the Hugging Face hub's cache, to the
    place where that cache keeps its files.

    Raises:
        BundleError: the path is absolute, climbs out of the folder, or is a link that leads out.
    """
    path = root / PurePosixPath(relative)
    if not leaves(relative):
        base, target = _resolved(root), _resolved(path)
        if target.is_relative_to(base) or target.parent == _hub_files(base):
            return path
    raise BundleError(
        f"the bundle {root} names a path outside its folder ({shown(relative)!r}): do not use it"
    )


def _hub_files(folder: Path) -> Path | None:
    """`models--OWNER--NAME/blobs`, for a folder in `models--OWNER--NAME/snapshots/REVISION`."""
    for place in (folder, *folder.parents):
        repository = place.parent.parent
        if place.parent.name == "snapshots" and _HUB_REPOSITORY.match(repository.name):
            return repository / "blobs"
    return None


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (RuntimeError, OSError) as error:  # links that lead in a circle, before Python 3.13; a long name
        raise BundleError(f"{path} is a link that leads in a circle: do not use this bundle") from error
