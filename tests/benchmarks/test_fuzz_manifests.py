"""Altered manifests, checkpoints and graphs are read or refused, and nothing else happens."""

from __future__ import annotations

import pytest

from benchmarks import fuzz_manifests as module
from edgeprune.errors import InputError


@pytest.mark.parametrize("name", module.TARGETS)
def test_a_target_sees_both_outcomes_and_no_other(name: str) -> None:
    found = module.TARGETS[name](7, 200)
    assert set(found) == {"accepted", "refused"}
    assert sum(found.values()) == 200
    assert found == module.TARGETS[name](7, 200), "a seed gives the same tries again"


def test_what_is_no_refusal_is_counted_by_its_name() -> None:
    tries = iter([ValueError("a bug"), InputError("two\nlines"), InputError("one line"), None])

    def once() -> None:
        if error := next(tries):
            raise error

    assert module._counted(once, 4) == {
        "ValueError": 1,
        "refused on several lines": 1,
        "refused": 1,
        "accepted": 1,
    }
