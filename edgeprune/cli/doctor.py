"""`edgeprune doctor`: what this machine has, which back ends can run on it, and why not."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from edgeprune.cli.output import Json, bytes_text, print_fields, print_json

if TYPE_CHECKING:
    from edgeprune.cli.machine import Gpu, Machine, Package
    from edgeprune.runtime.backends import Availability


def doctor(as_json: Json = False) -> None:
    """Show which back ends can run here, and why not.

    With what there is of processor, memory, GPU, Jetson software, CUDA and packages.
    """
    from edgeprune.cli.machine import packages, read_machine
    from edgeprune.runtime.backends import available

    machine, installed, backends = read_machine(), packages(), available()
    if as_json:
        print_json(
            "doctor",
            {
                "machine": machine.to_dict(),
                "packages": [asdict(package) for package in installed],
                "backends": [asdict(backend) for backend in backends],
            },
        )
        return
    print_fields(_machine_fields(machine))
    print("\npackages")
    print_fields([(f"  {package.name}", _package_text(package)) for package in installed])
    print("\nback ends, the best first")
    print_fields([(f"  {backend.name}", _backend_text(backend)) for backend in backends])


def _machine_fields(machine: Machine) -> list[tuple[str, str]]:
    fields = [
        ("system", f"{machine.system}, {machine.architecture}"),
        ("python", machine.python),
        ("cpu", f"{machine.cpu or 'unknown'}, {machine.cores} cores for this process"),
        ("memory", bytes_text(machine.memory_bytes)),
    ]
    if machine.jetson:
        board = machine.jetson
        fields.append(
            (
                "jetson",
                f"{board.board}, L4T {board.l4t or 'unknown'}, JetPack {board.jetpack or 'not installed'}",
            )
        )
    fields += [("gpu", _gpu_text(gpu)) for gpu in machine.gpus] or [("gpu", "none found")]
    fields.append(("cuda toolkit", machine.cuda or "none found"))
    return fields


def _gpu_text(gpu: Gpu) -> str:
    facts = [
        gpu.name,
        bytes_text(gpu.memory_bytes) if gpu.memory_bytes else "",
        f"compute capability {gpu.compute_capability}" if gpu.compute_capability else "",
        f"driver {gpu.driver}" if gpu.driver else "",
    ]
    return ", ".join(filter(None, facts))


def _package_text(package: Package) -> str:
    if package.version:
        return package.version
    hint = f"pip install 'edgeprune[{package.extra}]'" if package.extra else "pip install edgeprune"
    return f"not installed ({hint})"


def _backend_text(backend: Availability) -> str:
    verdict = "runs here" if backend.available else f"cannot run here: {backend.reason}"
    return f"{backend.title}: {verdict}"
