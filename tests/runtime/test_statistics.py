"""Memory figures against the system's own."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import numpy as np
import pytest

from edgeprune.runtime import statistics
from edgeprune.runtime.statistics import Statistics, available_memory, host_peak_memory

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")


@needs_proc
def test_peak_memory_is_the_process_s_largest_resident_set() -> None:
    before = host_peak_memory()
    assert before.bytes is not None
    size = before.bytes + (64 << 20)
    block = np.ones(size, dtype=np.uint8)
    del block
    after = host_peak_memory()
    assert after.bytes is not None
    assert after.bytes >= size
    assert after.bytes == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, rel=0.05)
    assert "VmHWM" in after.metric


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
