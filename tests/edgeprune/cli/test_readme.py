"""The README's examples run as they stand; `test_docs` looks at its other commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("edgeprune ")]


QUICK_START = blocks("sh")[0]


@pytest.mark.slow
def test_the_quick_start_runs(tmp_path: Path) -> None:
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    assert len(QUICK_START.splitlines()) == 6
    printed = []
    for arguments in commands(QUICK_START):
        done = subprocess.run(
            [sys.executable, "-m", "edgeprune.cli.main", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (arguments, done.stderr)
        printed.append(done.stdout)
    exported, answered, inspected, otherwise, measured = printed
    assert "compared with the original model" in exported
    assert re.fullmatch(r"[a-z]+\n", answered)
    assert "43 of 144 tokens" in inspected
    assert re.fullmatch(r"[a-z]+\n", otherwise)
    assert "speed-up over unpruned" in measured
    with Image.open(tmp_path / "kept.png") as picture:
        assert picture.format == "PNG"


# The example's export, which the quick start has done for real, is a copy here.
COPYING_EXPORT = """
import shutil, edgeprune
def export(model, *, keep, output):
    assert (model, keep) == ("samples/tiny-llava", 0.3)
    return shutil.copytree({bundle!r}, output)
edgeprune.export = export
"""


def test_the_python_example_runs(tmp_path: Path, sample_bundle: Path) -> None:
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    (example,) = blocks("python")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COPYING_EXPORT.format(bundle=str(sample_bundle)) + example],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"[a-z]+ \(43,\) of 144\n", done.stdout)
