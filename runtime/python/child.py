"""Child processes of edgeprune's own: they have their parent's packages and answer on standard output."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def child_environment() -> dict[str, str]:
    """The environment in which a child's Python finds the same packages as this process, whatever its working
    directory."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}


def take_stdout() -> TextIO:
    """In the child: standard output, for answers alone; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers
