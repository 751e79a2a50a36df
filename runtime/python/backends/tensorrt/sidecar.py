"""The sidecar of engines of TensorRT, and the command that builds them again where they do not fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from edgeprune.bundle import check_files, sha256_of
from edgeprune.errors import BackendError, BundleError
from edgeprune.fields import Bytes, Line, Part, Seconds, Sha256
from edgeprune.manifest import FileEntry, Manifest
from edgeprune.runtime.backends import sidecars
from edgeprune.runtime.backends.tensorrt.flavours import Flavour
from edgeprune.runtime.backends.tensorrt.limits import Limits

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


class Sidecar(sidecars.BaseSidecar):
    """The root of `engine.json`.

    Attributes:
        targets: GPU architectures it runs on, such as sm89.
        gpu: the name of the one GPU it runs on; None where it runs on every one of the targets.
        limits: the largest inputs.
        pruning: what executes the pruning nodes: "function body", "plugin" or, for an unpruned bundle, "no
            pruning".
        plugin: the library, where that is the plugin.
    """

    targets: Annotated[tuple[Line, ...], Field(min_length=1, max_length=100)]
    gpu: Line | None
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
        words = [f"edgeprune build {bundle} --backend {self.backend}"]
        words += [f"--target {target}" for target in targets or self.targets]
        words += [
            f"--max-batch {limits.batch} --max-prompt {limits.prompt} --max-images {limits.images} "
            f"--max-visual {limits.visual} --max-new-tokens {limits.new_tokens}"
        ]
        return " ".join(words)


def read_sidecar(folder: Path) -> Sidecar:
    """Reads the sidecar in `folder`. Raises as `sidecars.read_sidecar`."""
    return sidecars.read_sidecar(folder, Sidecar)


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
    found = sidecar.base_misfits(manifest, here.flavour.title, here.version)
    if here.target not in sidecar.targets:
        found.append(f"they were built for {' and '.join(sidecar.targets)}, and this GPU is {here.target}")
    elif sidecar.gpu is not None and sidecar.gpu != here.gpu:
        found.append(f"they were built for the GPU {sidecar.gpu}, and this one is {here.gpu}")
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
    candidates = [
        (folder, sidecar, misfits(sidecar, manifest, here))
        for folder, sidecar in sidecars.read_sidecars(bundle, here.flavour.name, Sidecar)
    ]
    if not candidates:
        raise BackendError(
            f"the bundle {bundle} has no engine for {here.flavour.title}: build one with `edgeprune build "
            f"{bundle} --backend {here.flavour.name} --target {here.target}`"
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
