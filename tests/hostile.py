"""JSON with one value changed to what cannot stand in its place, as hostile or damaged files have it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

Place = tuple[str | int, ...]
"""Where a value stands: keys and numbers from the root on."""


def places(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every leaf of JSON and where it stands; of long lists the first and the last one."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from places(part, (*place, key))
    elif isinstance(value, list):
        for number in sorted({0, len(value) - 1} if value else ()):
            yield from places(value[number], (*place, number))
    else:
        yield place, value


def with_value(raw: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(raw)
    part: Any = changed
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    return changed


def wrong_values(value: Any) -> list[Any]:
    """What cannot stand where a value of this type does."""
    if isinstance(value, bool):
        return [None, 1, "yes", []]
    if isinstance(value, int):
        return [-(10**30), -1, 2**40, 10**30, "1", 1.5, True, math.nan, []]
    if isinstance(value, float):
        return [math.nan, math.inf, -math.inf, 1e300, "0.5", []]
    if isinstance(value, str):
        return [f"a{char}b" for char in "\0\x1b\x7f\x9b\u202e\u2028\ud800"] + ["x" * 100_000, 7, []]
    return []
