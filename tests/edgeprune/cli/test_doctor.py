"""`edgeprune doctor`, and what it finds on machines made of files."""

from __future__ import annotations

import json
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from edgeprune.cli import machine as module
from edgeprune.cli.machine import Gpu, Jetson, packages, read_machine
from edgeprune.runtime.backends import available
from tests.edgeprune.cli.conftest import Cli


@pytest.fixture(autouse=True)
def no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own tools say nothing, so that the files alone count."""
    monkeypatch.setattr(module, "_tool", lambda *command: None)


def make_machine(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


ORIN = {
    "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit\0",
    "proc/meminfo": "MemTotal:        7802108 kB\nMemFree:  1 kB\n",
    "var/lib/dpkg/status": (
        "Package: nvidia-container\nStatus: install ok installed\nVersion: 9.9\n\n"
        "Package: nvidia-jetpack\nStatus: install ok installed\nArchitecture: arm64\nVersion: 6.2+b77\n\n"
        "Package: other\nVersion: 1.0\n"
    ),
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}',
}


def test_a_jetson_by_its_files(tmp_path: Path) -> None:
    found = read_machine(make_machine(tmp_path, ORIN))
    assert found.jetson == Jetson(
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit", "36.4.3", "6.2"
    )
    assert found.system.startswith("Ubuntu 22.04.5 LTS (")
    assert found.memory_bytes == 7802108 * 1024
    assert found.cuda == "12.6.11"


def test_a_jetson_whose_software_is_incomplete(tmp_path: Path) -> None:
    board = {"proc/device-tree/model": "NVIDIA Jetson AGX Thor\0", "etc/nv_tegra_release": "something new\n"}
    assert read_machine(make_machine(tmp_path, board)).jetson == Jetson("NVIDIA Jetson AGX Thor")


def test_another_board_is_no_jetson(tmp_path: Path) -> None:
    assert read_machine(make_machine(tmp_path, {"proc/device-tree/model": "Raspberry Pi 5\0"})).jetson is None


def test_a_gpu_by_the_drivers_files(tmp_path: Path) -> None:
    files = {
        "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  560.35.03  Fri\n",
        "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA RTX 4090\nIRQ:  1\n",
    }
    assert read_machine(make_machine(tmp_path, files)).gpus == (Gpu("NVIDIA RTX 4090", driver="560.35.03"),)


def test_gpus_by_the_drivers_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = "NVIDIA RTX 4090, 24564, 560.35.03, 8.9\nOrin (nvgpu), [N/A], N/A, [N/A]\n"
    monkeypatch.setattr(module, "_tool", lambda *command: printed if command[0] == "nvidia-smi" else None)
    assert read_machine(tmp_path).gpus == (
        Gpu("NVIDIA RTX 4090", 24564 << 20, "560.35.03", "8.9"),
        Gpu("Orin (nvgpu)", None, "N/A", None),
    )


def test_the_compilers_version_where_the_toolkit_has_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.48\n"
    monkeypatch.setattr(module, "_tool", lambda *command: printed if command[0] == "nvcc" else None)
    assert read_machine(tmp_path).cuda == "13.0"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"cuda": 1}'])
def test_a_broken_version_file_is_no_version(tmp_path: Path, content: str) -> None:
    assert read_machine(make_machine(tmp_path, {"usr/local/cuda/version.json": content})).cuda is None


def test_an_empty_machine_is_described_all_the_same(tmp_path: Path) -> None:
    found = read_machine(tmp_path)
    assert (found.gpus, found.jetson, found.cuda, found.memory_bytes) == ((), None, None, None)
    assert found.cores >= 1
    assert found.python


@pytest.mark.parametrize("error", [OSError("gone"), subprocess.TimeoutExpired("nvidia-smi", 10)])
def test_a_tool_that_fails_or_hangs_says_nothing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.undo()
    monkeypatch.setattr(module.subprocess, "run", fails)
    assert module._tool("sh", "-c", "echo x") is None


def test_a_tool_is_heard_only_where_it_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert module._tool("sh", "-c", "echo x") == "x\n"
    assert module._tool("sh", "-c", "echo x; exit 3") is None
    assert module._tool("no-such-tool-anywhere") is None


def test_packages_come_from_the_projects_own_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [
        "numpy>=1.26",
        'torch>=2.9; extra == "export"',
        'ruff>=0.9; extra == "dev"',
        'no-such>=1; extra == "x"',
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    assert [(found.name, found.extra) for found in packages()] == [
        ("numpy", None),
        ("torch", "export"),
        ("no-such", "x"),
    ]
    assert packages()[0].version == metadata.version("numpy")
    assert packages()[2].version is None


def test_a_checkout_that_was_never_installed_has_no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", unknown)
    assert packages() == ()


def test_the_command_says_what_runs_and_why_not(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orin = read_machine(make_machine(tmp_path, ORIN))
    monkeypatch.setattr(module, "read_machine", lambda: orin)
    result = cli("doctor")
    assert result.code == 0
    assert "L4T 36.4.3, JetPack 6.2" in result.out
    assert "none found" in result.out
    assert "tensorrt " in result.out
    for backend in available():
        verdict = "runs here" if backend.available else f"cannot run here: {backend.reason}"
        assert f"{backend.title}: {verdict}" in result.out


def test_json_has_machine_packages_and_backends(cli: Cli) -> None:
    found = json.loads(cli("doctor", "--json").out)
    assert found["machine"]["cores"] >= 1
    assert {"name": "numpy", "extra": None, "version": metadata.version("numpy")} in found["packages"]
    (here,) = [backend for backend in found["backends"] if backend["name"] == "onnxruntime"]
    assert here["available"]
    assert here["reason"] is None
    assert all(backend["available"] or backend["reason"] for backend in found["backends"])
