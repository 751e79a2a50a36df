"""The examples run as their READMEs say, one after the other in one folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgeprune.bundle import read_manifest
from edgeprune.plans import Debias

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if path.is_dir())


def command_of(example: Path) -> list[str]:
    """The one command of an example's README."""
    text = (example / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    return shlex.split(code)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository's root, to write into."""
    folder = tmp_path_factory.mktemp("examples")
    for name in ("examples", "samples", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(example: str, place: Path) -> str:
    """Runs an example; returns what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = command_of(ROOT / "examples" / example)
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def exported(place: Path) -> str:
    return run("01_export_and_run", place)


@pytest.mark.slow
def test_export_and_run(exported: str, place: Path) -> None:
    assert "compared with the original model" in exported
    assert re.search(r"^triangle$", exported, re.M)
    assert (place / "demo/examples/kept.png").is_file()


@pytest.mark.slow
def test_python(exported: str, place: Path) -> None:
    printed = run("02_python", place)
    kept = re.findall(r"^(.*): \w+; (\d+) of 144 kept, (\d+) padding$", printed, re.M)
    assert [(choice, int(count)) for choice, count, _ in kept] == [
        ("as exported", 43),
        ("{'keep': 0.1}", 14),
        ("{'keep': 1}", 144),
        ("{'debias': 'none'}", 43),
        ("{'keep': 0.1, 'debias': 'none'}", 14),
    ]
    padding = [int(count) for _, _, count in kept]
    assert padding[:2] == [0, 0]
    assert min(padding[2:]) > 0


@pytest.mark.slow
def test_several_images_and_chat(exported: str, place: Path) -> None:
    printed = run("03_several_images_and_chat", place).splitlines()
    assert printed[:3] == [
        "what color is the star: red (a batch of 3)",
        "what shape is red: ring (a batch of 3)",
        "what shape is green: triangle (a batch of 3)",
    ]
    assert re.fullmatch(r"two images: \w+, \(86,\) of 288 visual tokens", printed[3])
    assert printed[4] == "what color is the star: red"
    assert re.fullmatch(r"what shape is yellow: \w+", printed[5])


@pytest.mark.slow
def test_own_curve(place: Path) -> None:
    printed = run("04_own_curve", place)
    folder = place / "demo/examples/own-curve"
    assert (folder / "curve.json").is_file()
    assert read_manifest(folder / "bundle").plan.debias == (Debias.POSITION, Debias.PADDING)
    assert len(re.findall(r"^triangle$", printed, re.M)) == 2


@pytest.mark.slow
@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs TensorRT for RTX")
def test_build_for_a_gpu(exported: str, place: Path) -> None:
    printed = run("05_build_for_a_gpu", place)
    assert "on the device:\n  edgeprune run BUNDLE --backend tensorrt-rtx" in printed
    (folder,) = (place / "demo/examples/bundle/engines").iterdir()
    assert folder.name.endswith("-sm86-sm89")
    assert {"engine.json", "language.engine", "vision.engine"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_a_script_and_a_readme(example: Path) -> None:
    kind, script = command_of(example)
    assert {path.name for path in example.iterdir() if path.is_file()} == {"README.md", Path(script).name}
    assert kind == ("sh" if script.endswith(".sh") else "python")
    assert (ROOT / script).parent == example
    test = f"def test_{example.name.split('_', 1)[1]}("
    assert test in Path(__file__).read_text(encoding="utf-8")
    index = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert f"({example.name}/README.md)" in index
    assert "(examples/README.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
