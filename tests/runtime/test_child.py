"""Children end with their parent, at whatever moment it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeprune.runtime.child import child_command, child_environment

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="Linux alone tells a child of its parent's end"
)

PARENT = """
import subprocess, sys
from edgeprune.runtime.child import child_command, child_environment
child = subprocess.Popen(child_command("slow_child"), env=child_environment())
print(child.pid, flush=True)
child.wait()
"""


def running(pid: int) -> bool:
    """Whether the process is there and no zombie, which an orphan may be for long in a container."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_child_runs_its_module_with_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "told.py").write_text("import sys; print(__name__, sys.argv[1:])")
    monkeypatch.syspath_prepend(tmp_path)
    command = child_command("told", "one", "two words")
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "__main__ ['one', 'two words']\n"


def test_a_child_whose_parent_is_another_than_the_one_that_made_its_command_ends(tmp_path: Path) -> None:
    """As after the parent's end, which came before the child could ask to be told of it."""
    command = ["1" if part == str(os.getpid()) else part for part in child_command("this")]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.1, 0.3, "at work"])
def test_a_killed_parent_takes_its_child_along(tmp_path: Path, delay: float | str) -> None:
    at_work = tmp_path / "at_work"
    (tmp_path / "slow_child.py").write_text(
        f"import pathlib, time; pathlib.Path({str(at_work)!r}).touch(); time.sleep(60)"
    )
    environment = child_environment()
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}"
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        deadline = time.monotonic() + 30
        if isinstance(delay, float):
            time.sleep(delay)
        else:
            while not at_work.exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
        parent.kill()
    while running(child):
        assert time.monotonic() < deadline, "the child goes on"
        time.sleep(0.01)
