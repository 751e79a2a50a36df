"""Child processes of edgeprune's own: they have their parent's packages, answer on standard output, and end
with it.

`python -m edgeprune.runtime.child PARENT MODULE ARGUMENTS...` is how they start; `child_command` makes it.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
from typing import TextIO

_PR_SET_PDEATHSIG = 1


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
