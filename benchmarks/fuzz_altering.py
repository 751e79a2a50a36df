"""How the fuzzer alters bytes and JSON values, and where it keeps files."""

from __future__ import annotations

import atexit
import copy
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

_NUMBERS = (0, 1, -1, 2, 255, 256, 4097, 2**31, 2**40, 2**63, 10**30, 0.0, -0.0, 0.5, 1e-320, 1e300)
_WORDS = ("", "x", "\n", "\x1b[31m", "\ud800", "../x", "/etc/passwd", "a\0b", "\u202e", "x" * 2000, "NaN")
_JSON = (None, True, False, [], {}, [[]], {"": 0}, *_NUMBERS, *_WORDS, float("nan"), float("-inf"))
JSON_PIECES = (
    *(b"NaN", b"Infinity", b"1e999", b"-", b"[" * 2000, b'{"a":' * 2000, b'"', b"\xff", b"\0", b"\n"),
    b"9" * 5000,
)
"""What puts a text of JSON out of order."""


def altered(data: bytes, draw: random.Random, pieces: Sequence[bytes] = ()) -> bytes:
    """Bytes with one to eight of them changed, a stretch cut out, doubled or put in, or the end missing."""
    result = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        if not result:
            break
        start = draw.randrange(len(result))
        stretch = slice(start, start + draw.choice((1, 2, 4, 8, 64, 1000)))
        match draw.randrange(7 if pieces else 6):
            case 0:
                result[start] ^= 1 << draw.randrange(8)
            case 1:
                result[start] = draw.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                result[stretch] = draw.randbytes(len(result[stretch]))
            case 3:
                del result[stretch]
            case 4:
                result[start:start] = result[stretch]
            case 5:
                del result[max(start, 12) :]
            case _:
                result[start:start] = draw.choice(pieces)
    return bytes(result)


def changed(root: Any, draw: random.Random, values: Sequence[Any] = _JSON) -> Any:
    """A copy of a JSON value with one of those in it replaced, taken away, added or doubled."""
    root = copy.deepcopy(root)
    places = list(_places(root))
    if not places:
        return root
    holder, key = draw.choice(places)
    other, other_key = draw.choice(places)
    value = copy.deepcopy(draw.choice((draw.choice(values), draw.choice(values), other[other_key])))
    kind = draw.random()
    if kind < 0.7:
        holder[key] = value
    elif kind < 0.8:
        del holder[key]
    elif isinstance(holder, dict):
        holder[draw.choice(_WORDS)] = value
    else:
        holder.insert(draw.randrange(len(holder) + 1), value)
    return root


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every dict or list with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


@cache
def scratch(name: str) -> Path:
    """A folder of that name for as long as the process runs."""
    folder = _root() / name
    folder.mkdir()
    return folder


@cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="edgeprune-fuzz-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root
