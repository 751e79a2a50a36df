"""Sidecars: what stands beside engines, the file `engine.json`, of whichever back end they are.

It says what the engines were built from, by what and for what, and is compared before one is loaded: then a
message can say what differs, where a back end itself finds out late or not at all.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError

from edgeprune.bundle import check_files
from edgeprune.errors import BackendError, InputError, OutputError
from edgeprune.fields import Line, Part, Sha256, first_fault, shown
from edgeprune.json_file import read_json
from edgeprune.manifest import Manifest
from edgeprune.ownership import ENGINE_FOLDER, ENGINES, SIDECAR_NAME
from edgeprune.progress import Progress
from edgeprune.replacing import need_space

SIDECAR_VERSION = 1


class BaseSidecar(Part):
    """What all sidecars say.

    Attributes:
        backend: whose engines they are.
        version: of its package. Engines run with exactly the version that built them.
        platform: operating system and processor, such as linux-x86_64.
        bundle_sha256: see `bundle_hash`.
    """

    schema_version: Annotated[int, Field(strict=True, ge=1, le=SIDECAR_VERSION)] = SIDECAR_VERSION
    edgeprune_version: Line
    backend: Line
    version: Line
    platform: Line
    bundle_sha256: Sha256

    def base_misfits(self, manifest: Manifest, title: str, version: str) -> list[str]:
        """In words, what of the above keeps the engines from running here.

        Args:
            manifest: of the bundle.
            title: of the back end, for messages.
            version: of its package here.
        """
        found = []
        if self.version != version:
            found.append(f"they were built with {title} {self.version}, and {version} is installed")
        if self.platform != this_platform():
            found.append(f"they were built on {self.platform}, and this is {this_platform()}")
        if self.bundle_sha256 != bundle_hash(manifest):
            found.append("they were built from another state of the bundle")
        return found


AnySidecar = TypeVar("AnySidecar", bound=BaseSidecar)


def bundle_hash(manifest: Manifest) -> str:
    """SHA-256 over the sums of the bundle's files, in the order of their paths: of one content, one hash."""
    digest = hashlib.sha256()
    for entry in sorted(manifest.files, key=lambda entry: entry.path):
        digest.update(f"{entry.sha256}  {entry.path}\n".encode())
    return digest.hexdigest()


def this_platform() -> str:
    return f"{platform.system()}-{platform.machine()}".lower()


def engine_folder(bundle: Path, backend: str, version: str, device: str) -> Path:
    """Where the engines of a back end and its version for some devices lie."""
    return bundle / ENGINES / f"{backend}-{version}-{device}"


def _sidecar_files(bundle: Path, backend: str) -> Iterator[Path]:
    # Hidden ones are still being written.
    return (bundle / ENGINES).glob(f"{backend}-[0-9]*/{SIDECAR_NAME}")


def has_engines(bundle: Path, backend: str) -> bool:
    """Whether the bundle has engines of a back end at all, fitting or not."""
    return any(_sidecar_files(bundle, backend))


def read_sidecars(bundle: Path, backend: str, kind: type[AnySidecar]) -> list[tuple[Path, AnySidecar]]:
    """The folders of a back end's engines, and their sidecars. Raises as `read_sidecar`."""
    folders = sorted(path.parent for path in _sidecar_files(bundle, backend))
    return [(folder, read_sidecar(folder, kind)) for folder in folders]


def read_sidecar(folder: Path, kind: type[AnySidecar]) -> AnySidecar:
    """Reads the sidecar in `folder`.

    Raises:
        BackendError: it is missing, damaged, or of a newer edgeprune.
    """
    path = folder / SIDECAR_NAME
    try:
        raw = read_json(path)
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > SIDECAR_VERSION:
            raise BackendError(
                f"{path} has schema {shown(version)}, written by a newer edgeprune; this one reads up to "
                f"{SIDECAR_VERSION}: upgrade edgeprune, or build the engines again"
            )
        return kind.model_validate(raw)
    except (OSError, ValueError, InputError) as error:
        why = first_fault(error) if isinstance(error, ValidationError) else error
        raise BackendError(
            f"{path} cannot be read ({why}): remove the folder and build the engines again"
        ) from error


def check_source(root: Path, manifest: Manifest, wanted: int, progress: Progress) -> None:
    """Makes sure that engines can be built from a bundle, whose sums the sidecar will vouch by.

    Args:
        root: the bundle.
        manifest: of it.
        wanted: bytes that the engines need.
        progress: told the step.

    Raises:
        OutputError: the bundle's folder cannot be written to, or its disk is full.
        BundleError: a file is not the one that the manifest lists.
    """
    if not os.access(root, os.W_OK):
        raise OutputError(
            f"{root} cannot be written to, where the engines go: copy the bundle to another place"
        )
    need_space(root, wanted, ENGINE_FOLDER)
    progress.step("comparing files with their hashes", sum(entry.bytes for entry in manifest.files))
    check_files(root, manifest.files, everything=True, progress=progress.advance)
