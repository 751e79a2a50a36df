"""The processor, by files as several systems have them."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from edgeprune import processor

X86 = """processor\t: 0
model name\t: Some CPU @ 3.2GHz
flags\t\t: fpu smep sse4_2 avx2 fma avx512_vnni

processor\t: 1
model name\t: Another
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp crc32 sve2 i8mm bf16\nCPU part\t: 0xd4f\n"


def system(folder: Path, text: str) -> Path:
    (folder / "proc").mkdir()
    (folder / "proc/cpuinfo").write_text(text)
    return folder


def test_x86(tmp_path: Path) -> None:
    root = system(tmp_path, X86)
    assert processor.model(root) == "Some CPU @ 3.2GHz"
    assert processor.features(root) == ("avx2", "avx512_vnni", "fma", "sse4_2")


def test_arm_tells_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "processor", lambda: "aarch64")
    root = system(tmp_path, ARM)
    assert processor.model(root) == "aarch64"
    assert processor.features(root) == ("asimd", "asimddp", "bf16", "i8mm", "sve2")


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert processor.model(tmp_path) is None
    assert processor.features(tmp_path) == ()
    assert processor.cores() >= 1
