"""Notes reach whoever listens, and by default stderr."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgeprune.log import LOGGER, note


def test_a_note_is_a_warning_of_the_library_s_logger(caplog: pytest.LogCaptureFixture) -> None:
    note("100 % of it")
    note("of \x1b[2J")
    assert caplog.record_tuples == [(LOGGER, 30, "100 % of it"), (LOGGER, 30, r"of \x1b[2J")]


def test_a_note_is_seen_where_logging_was_never_set_up() -> None:
    code = "from edgeprune.log import note; note('resampled')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "resampled\n")
