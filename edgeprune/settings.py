"""The settings that a run's results depend on: one that was stopped goes on only with the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_LONGEST = 40


def changes(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The settings that differ, as part of a message; empty where all are the same.

    Args:
        found: of the earlier run, JSON values of a file that may be anybody's.
        wanted: of this one.
    """
    return "; ".join(
        f"{_name(name)} was {short(found.get(name))} and is {short(wanted.get(name))}"
        for name in {**found, **wanted}
        if found.get(name) != wanted.get(name)
    )


def short(value: object) -> str:
    """A JSON value in at most 40 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]}..."


def _name(name: str) -> str:
    return name if name.isprintable() and len(name) <= _LONGEST else short(name)
