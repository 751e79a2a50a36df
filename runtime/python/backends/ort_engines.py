"""Engines of ONNX Runtime: a bundle's graphs as it optimised them for one kind of CPU.

Their weights lie in the order that the CPU's kernels read, so they are mapped from the file instead of
copied, and loading has little left to do. Where none fits here, the bundle's own graphs run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from edgeprune import processor
from edgeprune.bundle import check_files, read_manifest
from edgeprune.errors import BackendError, BundleError
from edgeprune.fields import Bytes, Flag, Line, Part, Seconds
from edgeprune.interface import IN_PLACE
from edgeprune.log import note
from edgeprune.manifest import FileEntry, Manifest
from edgeprune.onnx_files import read_graph
from edgeprune.runtime.backends.sidecars import BaseSidecar, has_engines, read_sidecars

if TYPE_CHECKING:
    from edgeprune.runtime.backends.ort import Options

BACKEND, TITLE = "onnxruntime", "ONNX Runtime"

_Threads = Annotated[int, Field(strict=True, ge=1, le=1 << 12)]


class Setting(Part):
    """How many threads a decode step had, whether they waited busily, and its median time."""

    threads: _Threads
    spinning: Flag
    seconds: Seconds


class Load(Part):
    """What loading both graphs took, in a process of its own.

    Attributes:
        seconds, cpu_seconds: of the wall clock, and of the process.
        resident_bytes: its resident set behind it, mapped files included.
        anonymous_bytes: the part of it that no file stands behind; None where the system does not tell.
        peak_bytes: its peak resident set so far.
    """

    seconds: Seconds
    cpu_seconds: Seconds
    resident_bytes: Bytes | None
    anonymous_bytes: Bytes | None
    peak_bytes: Bytes | None


class OrtSidecar(BaseSidecar):
    """The root of `engine.json`.

    Attributes:
        cpu: the processor's name.
        cpu_features: the instructions that kernels are chosen by.
        threads, spinning: what a decode step was fastest with.
        steps: all settings that were tried.
        load_of_bundle, load: what loading the bundle's own graphs took, and what loading the engines.
        engines: the files, graphs by the names of the bundle's.
    """

    cpu: Line
    cpu_features: Annotated[tuple[Line, ...], Field(max_length=1000)]
    threads: _Threads
    spinning: Flag
    steps: Annotated[tuple[Setting, ...], Field(max_length=1000)]
    load_of_bundle: Load
    load: Load
    engines: Annotated[dict[Line, FileEntry], Field(max_length=1000)]

    def misfits(self, manifest: Manifest, version: str) -> list[str]:
        """In words, everything that keeps the engines from running here; empty where they fit."""
        found = self.base_misfits(manifest, TITLE, version)
        if self.cpu != this_cpu():
            found.append(f"they were built on the CPU {self.cpu}, and this is {this_cpu()}")
        elif self.cpu_features != processor.features():
            found.append("they were built on a CPU with other instructions than this one")
        missing = [file for file in graphs_of(manifest) if file not in self.engines]
        if missing:
            found.append(f"they lack {missing[0]}")
        return found


@dataclass(frozen=True)
class Engines:
    """Engines to run.

    Attributes:
        folder: where they lie.
        files: of each of the bundle's graphs the file that is run instead, relative to it.
        threads, spinning: what they run with where nothing else is asked for; None for ONNX Runtime's choice.
    """

    folder: Path
    files: Mapping[str, str]
    threads: int | None = None
    spinning: bool | None = None

    def chosen(self, options: Options) -> Options:
        """The options with what they leave open filled in. Whether to spin was measured for one number of
        threads, so it goes with that.
        """
        if options.threads is not None:
            return options
        spinning = self.spinning if options.spinning is None else options.spinning
        return replace(options, threads=self.threads, spinning=spinning)


def graphs_of(manifest: Manifest) -> tuple[str, str]:
    """The graphs that the CPU runs and engines are made of: of the language graph's forms one, as each would
    have its own copy of the weights.
    """
    return (manifest.vision.file, (manifest.language_form(IN_PLACE) or manifest.language).file)


def this_cpu() -> str:
    return processor.model() or "unknown"


def device_name() -> str:
    """This CPU for the name of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", this_cpu().lower()).strip("-")[:60] or "cpu"


def find_engines(bundle: Path) -> Engines | None:
    """The bundle's engines that fit here; None where there are none. Where there are others, or they are
    damaged, a note says so, and how to build them again.
    """
    if not has_engines(bundle, BACKEND):
        return None
    import onnxruntime

    manifest = read_manifest(bundle)
    reasons = []
    try:
        for folder, sidecar in read_sidecars(bundle, BACKEND, OrtSidecar):
            wrong = sidecar.misfits(manifest, onnxruntime.__version__)
            if not wrong:
                _check(folder, sidecar, manifest)
                files = {file: sidecar.engines[file].path for file in graphs_of(manifest)}
                return Engines(folder, files, sidecar.threads, sidecar.spinning)
            reasons.append(f"the engines in {folder} do not fit: {'; '.join(wrong)}")
    except (BackendError, BundleError) as error:
        reasons.append(str(error))
    note(
        f"{reasons[-1]}; the bundle's own graphs run instead, until they are built again: `edgeprune build "
        f"{bundle} --backend {BACKEND}`"
    )
    return None


def _check(folder: Path, sidecar: OrtSidecar, manifest: Manifest) -> None:
    """Refuses what is not as the sidecar says, as `edgeprune.bundle` does of a bundle."""
    entries = list(sidecar.engines.values())
    check_files(folder, entries, everything=False)
    listed = {entry.path for entry in entries}
    for file in graphs_of(manifest):
        path = folder / sidecar.engines[file].path
        if read_graph(path).external_files - listed:
            raise BundleError(f"{path} keeps weights in a file that its sidecar does not list: do not use it")
