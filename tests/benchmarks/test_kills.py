"""The tool that kills writes at every file operation; what it finds is this test's point too."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import kills
from benchmarks.kills import BROKEN, NEW, NOTHING, OLD, Write, kill_everywhere, writes

WRITES = {write.name: write for write in writes()}
# Every operation of the short ones; of those that hash and move whole folders some are enough here.
EVERY = {"small file replaced": 1, "answers added": 2}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITES)
def test_nothing_is_broken_or_left_behind_wherever_a_write_is_killed(name: str, tmp_path: Path) -> None:
    found = kill_everywhere(WRITES[name], tmp_path, EVERY.get(name, 5))
    assert found.moments >= 5
    assert found.states[OLD]
    assert found.states[BROKEN] == found.left == 0
    assert not found.states[NOTHING] or name == "bundle replaced, two steps"


@pytest.mark.slow
def test_what_is_written_in_place_is_found_broken(tmp_path: Path) -> None:
    def in_place(folder: Path) -> None:
        (folder / ".left.edgeprune-partial").mkdir(exist_ok=True)
        (folder / "curve.json").unlink()
        (folder / "curve.json").write_text("new" * 1000)

    def state(folder: Path) -> str:
        path = folder / "curve.json"
        return BROKEN if not path.exists() or path.read_text() == "" else NEW

    def prepare(folder: Path) -> None:
        (folder / "curve.json").write_text("old" * 1000)

    found = kill_everywhere(Write("in place", prepare, in_place, state), tmp_path)
    assert found.states[BROKEN]
    assert found.left == found.moments


def test_the_table_has_a_row_for_each_write() -> None:
    found = kills.Found("a write", 5, {OLD: 2, NEW: 3, NOTHING: 0, BROKEN: 0}, 1)
    assert kills.table([found]).splitlines()[-1] == "| a write | 5 | 2 | 3 | 0 | 0 | 1 |"
