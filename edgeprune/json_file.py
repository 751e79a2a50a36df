"""Reading JSON files that may be anybody's."""

from __future__ import annotations

import json
import math
import os
from typing import Any

from edgeprune.fields import shown
from edgeprune.files import open_regular

MOST_BYTES = 64 << 20


def read_json(path: str | os.PathLike[str], what: str = "the file") -> Any:
    """Reads a JSON file that may be anybody's: a regular one of at most 64 MB, every key once, all finite.

    Raises:
        InputError: it is no regular file.
        OSError: it cannot be read.
        ValueError: it is no such JSON; the message says why.
    """
    with open_regular(path, what) as file:
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES >> 20} MB")
    return parse_json(raw)


def parse_json(raw: bytes) -> Any:
    """The same of a file's content. Raises ValueError."""
    try:
        return json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"it has the key {shown(twice)!r} twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds {shown(text)}, which is beyond the range of numbers")
    return value
