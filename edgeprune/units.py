"""Figures with their unit, as messages and tables show them."""

from __future__ import annotations


def digits(value: float) -> str:
    """Three digits, or all before the point where there are more."""
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def bytes_text(count: int | None) -> str:
    """A size in decimal units, three digits."""
    if count is None:
        return "unknown"
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{digits(value)} {unit}"
        value /= 1000
    return f"{digits(value)} TB"
