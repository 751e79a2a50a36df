"""The sidecar `engine.json` beside the engines: what they were built from, by what, for what.

TensorRT itself finds out late, or not at all, that an engine does not fit; the sidecar is compared before an
engine is loaded, so that the message can say what differs and which command builds it again.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from edgeprune.bundle import check_files, sha256_of
from edgeprune.errors import BackendError, BundleError, InputError
from edgeprune.fields import Bytes, Line, Part, Seconds, Sha256, first_fault, shown
from edgeprune.json_file import read_json
from edgeprune.manifest import FileEntry, Manifest
from edgeprune.ownership import ENGINES, SIDECAR_NAME
from edgeprune.runtime.backends.tensorrt.flavours import Flavour
from edgeprune.runtime.backends.tensorrt.limits import Limits

SIDECAR_VERSION = 1

FUNCTION_BODY, PLUGIN, NOTHING = "function body", "plugin", "no pruning"


class PluginLibrary(Part):
    """The library that the engine's pruning nodes run in."""

    file: Line
    sha256: Sha256


class EngineFile(FileEntry):
    """One engine, and what building it took; memory is the building process's peak, as
    `Sidecar.memory_metric` says, and None where it could not be measured.
    """

    build_seconds: Seconds
    peak_memory_bytes: Bytes | None


class Sidecar(Part):
    """The root of `engine.json`.

    Attributes:
        flavour, version: of TensorRT. An engine runs with exactly the version that built it.
        targets: GPU architectures it runs on, such as sm89.
        gpu: the name of the one GPU it runs on; None where it runs on every one of the targets.
        platform: operating system and processor, such as linux-x86_64.
        bundle_sha256: see `bundle_hash`.
        limits: the largest inputs.
        pruning: what executes the pruning nodes: "function body", "plugin" or, for an unpruned bundle, "no
            pruning".
        plugin: the library, where that is the plugin.
    """

    schema_version: Annotated[int, Field(strict=True, ge=1, le=SIDECAR_VERSION)] = SIDECAR_VERSION
    edgeprune_version: Line
    flavour: Line
    version: Line
    targets: Annotated[tuple[Line, ...], Field(min_length=1, max_length=100)]
    gpu: Line | None
    platform: Line
    bundle_sha256: Sha256
    limits: Limits
    pruning: Literal["function body", "plugin", "no pruning"]
    plugin: PluginLibrary | None = None
    workspace_bytes: Bytes | None = None
    memory_metric: Line
    engines: dict[Literal["language", "vision"], EngineFile] = Field(min_length=2)

    def build_command(
        self, bundle: Path, targets: tuple[str, ...] | None = None, limits: Limits | None = None
    ) -> str:
        """The command line that builds these engines again, with other targets or limits where given."""
        limits = limits or self.limits
        words = [f"edgeprune build {bundle} --flavour {self.flavour}"]
        words += [f"--target {target}" for target in targets or self.targets]
        words += [
            f"--max-batch {limits.batch} --max-prompt {limits.prompt} --max-images {limits.images} "
            f"--max-visual {limits.visual} --max-new-tokens {limits.new_tokens}"
        ]
        return " ".join(words)


def bundle_hash(manifest: Manifest) -> str:
    """SHA-256 over the sums of the bundle's files, in the order of their paths: of one content, one hash."""
    digest = hashlib.sha256()
    for entry in sorted(manifest.files, key=lambda entry: entry.path):
        digest.update(f"{entry.sha256}  {entry.path}\n".encode())
    return digest.hexdigest()


def this_platform() -> str:
    return f"{platform.system()}-{platform.machine()}".lower()


def engine_folder(bundle: Path, flavour: Flavour, version: str, targets: tuple[str, ...]) -> Path:
    """Where the engines of a flavour and version for some targets lie."""
    return bundle / ENGINES / f"{flavour.name}-{version}-{'-'.join(targets)}"


def read_sidecar(folder: Path) -> Sidecar:
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
        return Sidecar.model_validate(raw)
    except (OSError, ValueError, InputError) as error:
        why = first_fault(error) if isinstance(error, ValidationError) else error
        raise BackendError(
            f"{path} cannot be read ({why}): remove the folder and build the engines again"
        ) from error


@dataclass(frozen=True)
class Here:
    """What an engine has to fit: the flavour that is installed, its version, the GPU, and the plugin's
    library.
    """

    flavour: Flavour
    version: str
    target: str
    gpu: str
    plugin: Path | None = None


def misfits(sidecar: Sidecar, manifest: Manifest, here: Here) -> list[str]:
    """In words, everything that keeps the engines from running here; empty where they fit."""
    found = []
    if sidecar.version != here.version:
        found.append(
            f"they were built with {here.flavour.title} {sidecar.version}, and {here.version} is installed"
        )
    if here.target not in sidecar.targets:
        found.append(f"they were built for {' and '.join(sidecar.targets)}, and this GPU is {here.target}")
    elif sidecar.gpu is not None and sidecar.gpu != here.gpu:
        found.append(f"they were built for the GPU {sidecar.gpu}, and this one is {here.gpu}")
    if sidecar.platform != this_platform():
        found.append(f"they were built on {sidecar.platform}, and this is {this_platform()}")
    if sidecar.bundle_sha256 != bundle_hash(manifest):
        found.append("they were built from another state of the bundle")
    if sidecar.plugin is not None:
        if here.plugin is None:
            found.append(
                f"they need the plugin library {sidecar.plugin.file}, which was not found (build it from "
                "plugins/ and set EDGEPRUNE_PLUGINS to it)"
            )
        elif sha256_of(here.plugin) != sidecar.plugin.sha256:
            found.append(f"they were built with another {sidecar.plugin.file} than {here.plugin}")
    return found


def find_engines(bundle: Path, manifest: Manifest, here: Here) -> tuple[Path, Sidecar]:
    """The folder and sidecar of the bundle's engines that fit here.

    Raises:
        BackendError: there are none; the message says what does not fit, and which command builds them.
    """
    candidates = []
    for path in sorted((bundle / ENGINES).glob(f"[!.]*/{SIDECAR_NAME}")):  # hidden: still being written
        sidecar = read_sidecar(path.parent)
        if sidecar.flavour == here.flavour.name:
            candidates.append((path.parent, sidecar, misfits(sidecar, manifest, here)))
    if not candidates:
        raise BackendError(
            f"the bundle {bundle} has no engine for {here.flavour.title}: build one with `edgeprune build "
            f"{bundle} --flavour {here.flavour.name} --target {here.target}`"
        )
    folder, sidecar, wrong = min(candidates, key=lambda candidate: len(candidate[2]))
    if wrong:
        command = sidecar.build_command(bundle, (here.target,))
        raise BackendError(
            f"the engines in {folder} do not fit: {'; '.join(wrong)}; build them again: `{command}`"
        )
    _check_files(bundle, folder, sidecar)
    return folder, sidecar


def _check_files(bundle: Path, folder: Path, sidecar: Sidecar) -> None:
    try:
        check_files(folder, list(sidecar.engines.values()), everything=False)
    except BundleError as error:
        raise BackendError(
            f"{error}; or build the engines again: `{sidecar.build_command(bundle)}`"
        ) from error


def has_engines(bundle: Path, flavour: Flavour) -> bool:
    """Whether the bundle has engines of a flavour at all, fitting or not."""
    return any((bundle / ENGINES).glob(f"{flavour.name}-[0-9]*/{SIDECAR_NAME}"))
