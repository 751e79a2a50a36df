"""Fuzz targets: manifests, safetensors headers and graphs, altered at random, must be read or refused.

Each target takes a seed and a count and returns how often each outcome came: "accepted", "refused" (an error
for the user, on one printable line), or else the name of the exception, which is a bug. Print a table with

    python -m benchmarks.fuzz_manifests --count 20000
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Outcomes = dict[str, int]

_NUMBERS = [0, 1, -1, 2, 255, 256, 4097, 2**31, 2**40, 2**63, 10**30, 0.0, -0.0, 0.5, 1e-320, 1e300]
_WORDS = ["", "x", "\n", "\x1b[31m", "\ud800", "../x", "/etc/passwd", "a\0b", "\u202e", "x" * 2000, "NaN"]
_JSON = [None, True, False, [], {}, [[]], {"": 0}, *_NUMBERS, *_WORDS]
_TEXT = [b"NaN", b"Infinity", b"1e999", b"-", b"[" * 2000, b'{"a":' * 2000, b'"', b"\xff", b"\0", b"9" * 5000]


def manifests(seed: int, count: int) -> Outcomes:
    """A bundle whose manifest has values, keys, lists or bytes of another kind."""
    from edgeprune.bundle import read_manifest
    from edgeprune.manifest import MANIFEST_NAME
    from tests.manifests import write_bundle

    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = write_bundle(Path(scratch) / "bundle")
        path = bundle / MANIFEST_NAME
        whole = path.read_bytes()

        def once() -> None:
            if rng.random() < 0.3:
                path.write_bytes(_altered(rng, whole, _TEXT))
            else:
                changed = json.loads(whole)
                for _ in range(rng.choice([1, 1, 1, 2, 3])):
                    _change(rng, changed)
                path.write_text(json.dumps(changed), encoding="utf-8")
            read_manifest(bundle)

        return _counted(once, count)


def checkpoints(seed: int, count: int) -> Outcomes:
    """A safetensors file whose header has other values or bytes, or another length."""
    from edgeprune.export.weights import read_header

    rng = random.Random(seed)
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]},
        "c": {"dtype": "I64", "shape": [], "data_offsets": [24, 32]},
    }
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.safetensors"

        def once() -> None:
            changed = json.loads(json.dumps(header))
            for _ in range(rng.choice([0, 1, 1, 2])):
                _change(rng, changed)
            text = json.dumps(changed).encode()
            if rng.random() < 0.3:
                text = _altered(rng, text, _TEXT)
            length = (
                len(text) if rng.random() < 0.8 else rng.choice([0, len(text) + 40, 2**32, 2**63, 2**64 - 1])
            )
            content = struct.pack("<Q", length) + text + bytes(32)
            path.write_bytes(content[: rng.randrange(len(content))] if rng.random() < 0.1 else content)
            read_header(path)

        return _counted(once, count)


def graphs(seed: int, count: int) -> Outcomes:
    """A bundle whose language graph is altered, with a manifest that agrees with it."""
    from edgeprune.bundle import read_manifest
    from tests.manifests import FILES, graph_pointing_to, relist, write_bundle

    rng = random.Random(seed)
    places = [FILES["language.onnx"], graph_pointing_to("../secret"), graph_pointing_to("x\x1b[31m")]
    with tempfile.TemporaryDirectory() as scratch:
        bundle = write_bundle(Path(scratch) / "bundle")

        def once() -> None:
            content = _altered(rng, rng.choice(places), places + _TEXT)
            (bundle / "language.onnx").write_bytes(content)
            relist(bundle, "language.onnx")
            read_manifest(bundle)

        return _counted(once, count)


TARGETS: dict[str, Callable[[int, int], Outcomes]] = {
    "manifests": manifests,
    "checkpoints": checkpoints,
    "graphs": graphs,
}


def _counted(once: Callable[[], None], count: int) -> Outcomes:
    from edgeprune.errors import EdgepruneError

    found: Counter[str] = Counter()
    for _ in range(count):
        try:
            once()
        except EdgepruneError as error:
            found["refused" if str(error).isprintable() else "refused on several lines"] += 1
        except Exception as error:
            found[type(error).__name__] += 1
        else:
            found["accepted"] += 1
    return dict(found)


def _change(rng: random.Random, root: Any) -> None:
    """Puts something else in the place of a value, takes one away, adds or doubles one."""
    holders = list(_holders(root))
    if not holders:
        return
    holder, key = rng.choice(holders)
    value = copy.deepcopy(rng.choice([rng.choice(_JSON), rng.choice(_JSON), holder[key]]))
    kind = rng.random()
    if kind < 0.7:
        holder[key] = value
    elif kind < 0.8:
        del holder[key]
    elif isinstance(holder, dict):
        holder[rng.choice(_WORDS)] = value
    else:
        holder.insert(rng.randrange(len(holder) + 1), value)


def _holders(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every dict or list with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from _holders(value[key])


def _altered(rng: random.Random, content: bytes, pieces: list[bytes]) -> bytes:
    """Some bytes changed, removed, doubled, cut off, or put in."""
    found = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        place = rng.randrange(len(found) + 1)
        kind = rng.randrange(5)
        if kind == 0 and place < len(found):
            found[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del found[place : place + rng.randint(1, 8)]
        elif kind == 2:
            found[place:place] = found[place : place + rng.randint(1, 40)]
        elif kind == 3:
            found[place:place] = rng.choice(pieces)
        elif rng.random() < 0.2:
            del found[place:]
    return bytes(found)


def main() -> None:
    parser = argparse.ArgumentParser(description="Alter files of a bundle at random and read them.")
    parser.add_argument("targets", nargs="*", default=[], metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--count", type=int, default=1000, help="tries of each")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name in given.targets or TARGETS:
        print(name, TARGETS[name](given.seed, given.count), flush=True)


if __name__ == "__main__":
    main()
