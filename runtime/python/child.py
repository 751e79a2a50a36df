"""Child processes of edgeprune's own: they have their parent's packages, answer on standard output, and end
with it.

`python -m edgeprune.runtime.child PARENT MODULE ARGUMENTS...` is how they start; `child_command` makes it.
`run_job` starts one that does a single job, which it reads from standard input, and waits for it.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from edgeprune.errors import EdgepruneError
from edgeprune.progress import Progress

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ended:
    """How a job's child ended.

    Attributes:
        last: the last that it said, {} for nothing: {"error": text} of a user's mistake, or {"done": result}.
        status: as `subprocess` has it: negative of a signal.
        printed: the last line on its standard error.
    """

    last: Mapping[str, Any]
    status: int
    printed: str

    @property
    def killed(self) -> bool:
        """Whether it was ended as the system ends what takes too much memory."""
        return self.status == -signal.SIGKILL

    def describe(self, doing: str) -> str:
        """For a message, where it said neither: "ended with ... while doing ..."."""
        how = f"signal {-self.status}" if self.status < 0 else f"status {self.status}"
        return f"ended with {how} while {doing}: {self.printed or 'it printed nothing'}"


def run_job(
    module: str, job: str, folder: Path, progress: Progress, environment: Mapping[str, str] | None = None
) -> Ended:
    """Runs a module that answers by `serve_job`, and passes its steps on.

    Args:
        module: by its full name.
        job: what it reads from standard input.
        folder: it runs in; no modules are in the way there.
        progress: told what the child's own is told.
        environment: in addition to `child_environment`.
    """
    last: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        child = subprocess.Popen(
            child_command(module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=folder,
            env={**child_environment(), **(environment or {})},
            encoding="utf-8",
        )
        try:
            if child.stdin is None or child.stdout is None:
                raise AssertionError("the child's pipes are open")
            try:
                child.stdin.write(job)
                child.stdin.close()
            except BrokenPipeError:
                pass  # it has ended already; its status says how
            for line in child.stdout:
                last = json.loads(line)
                if "step" in last:
                    progress.step(last["step"], last["total"])
                elif "advance" in last:
                    progress.advance(last["advance"])
            status = child.wait()
        finally:  # also when interrupted
            child.kill()
            child.wait()
        errors.seek(0)
        printed = errors.read().strip().splitlines()
    return Ended(last, status, printed[-1] if printed else "")


class _Reporter:
    """Progress as lines for the parent."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def step(self, name: str, total: int | None = None) -> None:
        self.send(step=name, total=total)

    def advance(self, amount: int) -> None:
        self.send(advance=amount)

    def send(self, **message: object) -> None:
        try:
            print(json.dumps(message), file=self._file, flush=True)
        except BrokenPipeError:
            os._exit(1)  # the parent is gone; an exception would be lost inside a library's own code


def serve_job(work: Callable[[str, Progress], object]) -> None:
    """In the child: does the job that stands on standard input.

    On standard output a JSON object a line: {"step", "total"}, {"advance"}, and last {"error"} or {"done"}.

    Args:
        work: from the job's text and a listener to a result that JSON can hold.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends this process
    reporter = _Reporter(take_stdout())
    try:
        result = work(sys.stdin.read(), reporter)
    except EdgepruneError as error:
        reporter.send(error=str(error))
        return
    reporter.send(done=result)


def child_command(module: str, *arguments: str) -> list[str]:
    """The command of a child that runs a module, and ends when the thread that starts it does."""
    return [sys.executable, "-m", "edgeprune.runtime.child", str(os.getpid()), module, *arguments]


def child_environment() -> dict[str, str]:
    """The environment in which a child's Python finds the same packages as this process, whatever its working
    directory.
    """
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}


def take_stdout() -> TextIO:
    """In the child: standard output, for answers alone; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def end_with(parent: int) -> None:
    """Lets this process be killed when its parent ends, however that ends. Linux alone can do it.

    A child whose caller was killed would go on for minutes, with all the memory it has.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # A parent that had ended before is not told of any more; this process has another one then.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Runs the module."""
    _, parent, module, *arguments = sys.argv
    end_with(int(parent))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
