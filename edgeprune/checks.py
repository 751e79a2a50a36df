"""Checks of numbers that a user hands in."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from edgeprune.errors import InputError


def check_count(name: str, value: object, least: int = 1, most: int | None = None) -> None:
    """Raises InputError unless the parameter `name` is a whole number from `least` to `most`."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or int(value) < least or (most is not None and int(value) > most):  # type: ignore[call-overload]
        wanted = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"`{name}` is {value!r:.60}: expected a whole number {wanted}")


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}
