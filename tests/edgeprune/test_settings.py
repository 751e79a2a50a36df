"""What differs between the settings of two runs, in words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgeprune.settings import changes, short


def test_equal_settings_differ_in_nothing() -> None:
    assert changes({"model": "m", "layers": [1, 2]}, {"layers": [1, 2], "model": "m"}) == ""


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        ({"batch": 1}, {"batch": 2}, "batch was 1 and is 2"),
        ({"old": "x"}, {}, 'old was "x" and is null'),
        ({}, {"new": [1, 2]}, "new was null and is [1, 2]"),
        ({"a": 1, "b": 1}, {"a": 2, "b": 2}, "a was 1 and is 2; b was 1 and is 2"),
        ({"\x1b[31m": 1}, {}, '"\\u001b[31m" was 1 and is null'),
    ],
)
def test_each_difference_is_named(found: dict[str, Any], wanted: dict[str, Any], expected: str) -> None:
    assert changes(found, wanted) == expected


def test_long_names_and_values_are_cut() -> None:
    message = changes({"n" * 5000: "v" * 5000}, {})
    assert len(message) < 120
    assert short("v" * 5000) == json.dumps("v" * 5000)[:36] + "..."
