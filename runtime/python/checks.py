"""Checks of numbers that a user hands in."""

from __future__ import annotations

import numpy as np

from edgeprune.errors import InputError


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raises InputError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"`{name}` is {value!r}: expected a whole number of at least {least}")
