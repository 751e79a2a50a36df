"""This machine's processor, as Linux tells of it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

# What libraries choose their kernels by: of x86 sets of vector instructions, of Arm likewise.
_FEATURES = re.compile(r"sse4_[12]|avx\w*|fma|f16c|amx_\w+|asimd\w*|fphp|sve\w*|sme(?!p)\w*|i8mm|bf16")


def model(root: Path = Path("/")) -> str | None:
    """The processor's name; None where nothing tells it.

    Args:
        root: of the files of the system that is looked at.
    """
    return colon_value(root / "proc/cpuinfo", "model name") or platform.processor() or None


def features(root: Path = Path("/")) -> tuple[str, ...]:
    """The instructions that it has, of those that make libraries choose other kernels, in order."""
    path = root / "proc/cpuinfo"
    words = (colon_value(path, "flags") or colon_value(path, "Features") or "").split()
    return tuple(sorted({word for word in words if _FEATURES.fullmatch(word)}))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def colon_value(path: Path, key: str) -> str | None:
    """The value of the first line `key : value` of a file; None where there is no such line or file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(rf"^{re.escape(key)}\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else None
