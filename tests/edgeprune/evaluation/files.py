"""Small question files in exactly the benchmarks' formats, about the sample images."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

PICTURES = Path(__file__).resolve().parents[3] / "samples" / "pictures"
SQUARE, WIDE = PICTURES / "square.png", PICTURES / "wide.png"


def lines(path: Path, *records: dict[str, Any]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def dump(path: Path, value: object) -> Path:
    """JSON."""
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def picture(path: Path, source: Path = SQUARE) -> Path:
    """A copy of a sample image under the name that a benchmark gives it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, path)
    return path


def encoded(source: Path = SQUARE) -> str:
    """A sample image as base64 text."""
    return base64.b64encode(source.read_bytes()).decode("ascii")


def table(path: Path, *rows: dict[str, str]) -> Path:
    """A tab-separated table with a header, as MMBench's."""
    columns = list(rows[0])
    body = ["\t".join(columns), *("\t".join(row[name] for name in columns) for row in rows)]
    path.write_text("\n".join(body) + "\n", encoding="utf-8")
    return path
