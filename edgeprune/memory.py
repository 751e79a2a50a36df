"""Memory of this machine and of this process, as Linux tells it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HOST_METRIC = "process peak resident set (VmHWM)"
_NO_METRIC = "not measured: this system has no /proc/self/status"


@dataclass(frozen=True)
class PeakMemory:
    """The most memory that a process has held so far, and what that means.

    Attributes:
        bytes: None where it cannot be measured.
        metric: what is counted.
        shared: whether memory that other processes take counts too.
    """

    bytes: int | None
    metric: str
    shared: bool = False


def host_peak_memory() -> PeakMemory:
    """This process's peak resident set since it started. Pages of mapped weight files count once read."""
    found = _bytes_of_process("VmHWM")
    return PeakMemory(found, _NO_METRIC if found is None else HOST_METRIC)


def resident_memory() -> int | None:
    """This process's resident set in bytes, mapped files included; None where the system does not tell."""
    return _bytes_of_process("VmRSS")


def anonymous_memory() -> int | None:
    """The part of the resident set that no file stands behind; None where the system does not tell."""
    return _bytes_of_process("RssAnon")


def _bytes_of_process(field: str) -> int | None:
    kilobytes = _kilobytes(Path("/proc/self/status"), field)
    return None if kilobytes is None else kilobytes * 1024


def available_memory() -> int | None:
    """Bytes that can be had without swapping, or None where the system does not tell."""
    kilobytes = _kilobytes(Path("/proc/meminfo"), "MemAvailable")
    return None if kilobytes is None else kilobytes * 1024


def _kilobytes(path: Path, field: str) -> int | None:
    """A field of one of Linux's tables of memory sizes."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)
