"""Decode steps are timed in every form that a bundle has."""

from __future__ import annotations

import re

import pytest

from benchmarks import decoding
from tests.golden.make import GOLDEN


def test_every_form_takes_its_turns(capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(GOLDEN / "one-stage")
    decoding.main([bundle, "--context", "40", "60", "--steps", "2", "--turns", "2"])
    _, _, *rows = capsys.readouterr().out.splitlines()
    # Of 36 visual tokens, 11 are kept.
    assert [row.split("|")[1:3] for row in rows] == [
        [" 40 / 15 ", " copied "],
        [" 40 / 15 ", " in-place "],
        [" 60 / 35 ", " copied "],
        [" 60 / 35 ", " in-place "],
    ]
    for row in rows:
        median, least, greatest = map(float, re.findall(r"[\d.]+", row.split("|")[3]))
        assert 0 <= least <= median <= greatest
