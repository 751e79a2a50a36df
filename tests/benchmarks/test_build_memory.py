"""What building takes: the children's memory as it is watched, and the table."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import build_memory
from benchmarks.build_memory import ChildrenMemory, Taken

# 60 MB of its own, and 120 MB of a file.
CHILD = """
import mmap, sys
held = b"x" * 60_000_000
with open(sys.argv[1], "w+b") as file:
    file.truncate(120_000_000)
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
touched = sum(mapped[::4096])
print("now", flush=True)
input()
"""


def test_of_a_child_only_what_is_its_own_counts(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path / "weights")]
    with (
        ChildrenMemory() as memory,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child,
    ):
        assert child.stdout is not None
        assert child.stdout.readline() == "now\n"
        time.sleep(10 * build_memory._INTERVAL)
        child.communicate("\n")
    assert 60_000_000 < memory.peak < 120_000_000


def test_the_table_has_a_line_for_each_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def measure(shape: str, dtype: str, targets: list[str], work: Path) -> Taken:
        asked.append((shape, dtype, targets, work.is_dir()))
        return Taken(6, 900_000_000, 2_500_000_000, 1_500_000_000, 2_000_000_000, 890_000_000)

    monkeypatch.setattr(build_memory, "measure", measure)
    assert build_memory.main(["--shapes", "wide", "deep", "--dtypes", "fp16"]) == 0
    assert asked == [("wide", "fp16", ["sm89"], True), ("deep", "fp16", ["sm89"], True)]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[2] == "| wide | 6 | fp16 | 0.90 | 0.89 | 2.50 | 1.50 | 2.00 | 0.75 |"
