"""Memory figures against the system's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeprune import memory
from edgeprune.memory import available_memory, host_peak_memory

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")


# In a process of its own, whose peak is not that of all tests before.
PEAK = """
import json, resource
from edgeprune.memory import host_peak_memory
before = host_peak_memory().bytes
block = b"x" * (before + (64 << 20))
del block
after = host_peak_memory()
system = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps([before, after.bytes, system, after.metric]))
"""


@needs_proc
def test_peak_memory_is_the_process_s_largest_resident_set() -> None:
    output = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True).stdout
    before, after, system, metric = json.loads(output)
    assert after >= 2 * before + (64 << 20) - (8 << 20)
    # The system's own figure counts the process that started this one, too, until the program was loaded.
    assert after <= 1.05 * system
    assert "VmHWM" in metric


@needs_proc
def test_available_memory_is_within_what_there_is() -> None:
    total = memory._kilobytes(Path("/proc/meminfo"), "MemTotal")
    available = available_memory()
    assert total is not None
    assert available is not None
    assert 0 < available < total * 1024


def test_a_system_without_proc_says_that_it_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_kilobytes", lambda path, field: None)
    assert host_peak_memory().bytes is None
    assert "not measured" in host_peak_memory().metric
    assert available_memory() is None
