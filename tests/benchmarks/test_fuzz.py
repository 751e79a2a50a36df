"""A few rounds of every target of the fuzzer, and that it finds what it looks for."""

from __future__ import annotations

import random

import pytest

from benchmarks import fuzz
from edgeprune.errors import InputError


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_nothing_but_our_own_errors(target: str) -> None:
    counts, faults = fuzz.run(target, 150, seed=1)
    assert not faults, faults[0]
    # Both happen: the inputs are neither all whole nor all beyond repair.
    assert counts["accepted"] > 5
    assert counts["refused"] > 5


class Panic(BaseException):
    """As Rust's libraries raise it."""


@pytest.mark.parametrize("error", [ValueError("none of ours"), RecursionError(), Panic()])
def test_a_fault_is_found_and_can_be_repeated(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def target(draw: random.Random) -> None:
        if draw.randrange(10) == 0:
            raise error

    monkeypatch.setitem(fuzz.TARGETS, "mine", target)
    assert fuzz.main(["mine", "--runs", "50"]) == 1
    assert type(error).__name__ in capsys.readouterr().out
    counts, faults = fuzz.run("mine", 50)
    assert 0 < counts["fault"] == len(faults)
    assert fuzz.run("mine", 50)[0] == counts


def test_a_refusal_that_steers_the_terminal_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = iter(["two\nlines", "\x1b[2J", "one line"])

    def target(draw: random.Random) -> None:
        error = InputError("")
        error.args = (next(messages),)  # past the place where it is made printable
        raise error

    monkeypatch.setitem(fuzz.TARGETS, "mine", target)
    counts, faults = fuzz.run("mine", 3)
    assert counts == {"accepted": 0, "refused": 2, "fault": 1}
    assert "run 1: unprintable" in faults[0]


def test_an_unknown_target(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fuzz.main(["nothing"])
    assert "unknown target nothing: choose of images" in capsys.readouterr().err
