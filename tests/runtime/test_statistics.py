"""Memory figures against the system's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeprune.runtime import statistics
from edgeprune.runtime.statistics import Statistics, available_memory, host_peak_memory

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")


# In a process of its own, whose peak is not that of all tests before.
PEAK = """
import json, resource
from edgeprune.runtime.statistics import host_peak_memory
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
    assert after == pytest.approx(system, rel=0.05)
    assert "VmHWM" in metric


@needs_proc
def test_available_memory_is_within_what_there_is() -> None:
    total = statistics._kilobytes(Path("/proc/meminfo"), "MemTotal")
    available = available_memory()
    assert total is not None
    assert available is not None
    assert 0 < available < total * 1024


def test_a_system_without_proc_says_that_it_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_kilobytes", lambda path, field: None)
    assert host_peak_memory().bytes is None
    assert "not measured" in host_peak_memory().metric
    assert available_memory() is None


def test_statistics_go_into_json() -> None:
    figures = Statistics(4, (2,), (0,), 9, 3, 1, 0.1, 0.2, 0.3, 0.7, 0.5, 4.0, 100, None, "none")
    back = json.loads(json.dumps(figures.to_dict()))
    assert back["kept"] == [2]
    assert back["peak_memory_bytes"] is None
    assert len(back) == 15
