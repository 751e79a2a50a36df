"""What this machine has, read from files and small tools; nothing here fails where something is missing."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgeprune import processor

_TOOL_SECONDS = 10


@dataclass(frozen=True)
class Gpu:
    """One GPU. What is None could not be found out."""

    name: str
    memory_bytes: int | None = None
    driver: str | None = None
    compute_capability: str | None = None


@dataclass(frozen=True)
class Jetson:
    """The board, and the releases of its software: L4T such as 36.4.3, JetPack such as 6.2."""

    board: str
    l4t: str | None = None
    jetpack: str | None = None


@dataclass(frozen=True)
class Machine:
    """The facts. `cuda` is the toolkit's version, which a driver does not need."""

    system: str
    architecture: str
    python: str
    cpu: str | None
    cores: int
    memory_bytes: int | None
    gpus: tuple[Gpu, ...]
    jetson: Jetson | None
    cuda: str | None

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Package:
    """A package that edgeprune can use.

    `extra` is None for what the base install brings, `version` for what is not installed.
    """

    name: str
    extra: str | None
    version: str | None


def read_machine(root: Path = Path("/")) -> Machine:
    """Looks at the machine whose files lie under `root`."""
    return Machine(
        system=_system(root),
        architecture=platform.machine(),
        python=platform.python_version(),
        cpu=processor.model(root),
        cores=processor.cores(),
        memory_bytes=_memory(root),
        gpus=_gpus_by_tool() or _gpus_by_driver(root),
        jetson=_jetson(root),
        cuda=_cuda(root),
    )


def packages() -> tuple[Package, ...]:
    """Every package that edgeprune's own requirements name, those for development left out."""
    try:
        requirements = metadata.requires("edgeprune") or []
    except metadata.PackageNotFoundError:  # a checkout that was never installed
        return ()
    found: dict[str, Package] = {}
    for requirement in requirements:
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        wanted = re.search(r"""extra == ['"]([^'"]+)['"]""", requirement)
        extra = wanted.group(1) if wanted else None
        if extra != "dev" and name not in found:
            found[name] = Package(name, extra, _version(name))
    return tuple(found.values())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _tool(*command: str) -> str | None:
    """What a tool prints; None where it is missing, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _system(root: Path) -> str:
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)"?$', _text(root / "etc/os-release") or "", re.MULTILINE)
    kernel = f"{platform.system()} {platform.release()}"
    return f"{match.group(1)} ({kernel})" if match else kernel


def _memory(root: Path) -> int | None:
    kilobytes = processor.colon_value(root / "proc/meminfo", "MemTotal")
    return int(kilobytes.split()[0]) * 1024 if kilobytes else None


def _gpus_by_tool() -> tuple[Gpu, ...]:
    fields = "name,memory.total,driver_version,compute_cap"
    printed = _tool("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    rows = [[value.strip() for value in line.split(",")] for line in (printed or "").splitlines()]
    return tuple(_gpu(*row) for row in rows if len(row) == 4)


def _gpu(name: str, mebibytes: str, driver: str, capability: str) -> Gpu:
    def known(value: str) -> str | None:
        return (
            None if value.startswith("[") or not value else value
        )  # "[N/A]", as on boards that share memory

    memory = int(mebibytes) << 20 if mebibytes.isdigit() else None
    return Gpu(name, memory, known(driver), known(capability))


def _gpus_by_driver(root: Path) -> tuple[Gpu, ...]:
    """The driver's own files, for where its tool is not installed."""
    version = re.search(r"Kernel Module\D*([\d.]+)", _text(root / "proc/driver/nvidia/version") or "")
    driver = version.group(1) if version else None
    infos = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    return tuple(Gpu(processor.colon_value(info, "Model") or "NVIDIA GPU", driver=driver) for info in infos)


def _jetson(root: Path) -> Jetson | None:
    release = _text(root / "etc/nv_tegra_release")
    board = (_text(root / "proc/device-tree/model") or "").strip("\0\n ")
    if release is None and "jetson" not in board.lower():
        return None
    numbers = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", release or "")
    packages = _text(root / "var/lib/dpkg/status") or ""
    jetpack = re.search(r"^Package: nvidia-jetpack\n(?:.+\n)*?Version: ([\d.]+)", packages, re.MULTILINE)
    return Jetson(
        board=board or "NVIDIA Tegra",
        l4t=f"{numbers.group(1)}.{numbers.group(2)}" if numbers else None,
        jetpack=jetpack.group(1) if jetpack else None,
    )


def _cuda(root: Path) -> str | None:
    try:
        return str(json.loads(_text(root / "usr/local/cuda/version.json") or "")["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        match = re.search(r"release ([\d.]+)", _tool("nvcc", "--version") or "")
        return match.group(1) if match else None
