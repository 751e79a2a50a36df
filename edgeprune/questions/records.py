"""Reading the entries of question files. Every fault is named with file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.errors import InputError
from edgeprune.files import read_regular

LARGEST = 2_000_000_000
"""Bytes of a question file at most, which is read as a whole; those with images inside have some 100 MB."""


@dataclass(frozen=True)
class Record:
    """A JSON object of a file, with its place in it."""

    values: Mapping[str, Any]
    where: str

    def text(self, name: str, default: str | None = None) -> str:
        """A string.

        Raises:
            InputError: there is no such field and no default, or it is no string.
        """
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return value

    def identity(self, name: str) -> str | int:
        """A string or a whole number."""
        value = self._get(name, None)
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise self._wrong(name, value, "a string or a whole number")
        return value

    def number(self, name: str) -> int:
        """A whole number."""
        value = self._get(name, None)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(name, value, "a whole number")
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        """A list of strings, or of objects whose `answer` is one; at least one."""
        value = self._get(name, None)
        listed = value if isinstance(value, list) else []
        items = [item.get("answer") if isinstance(item, dict) else item for item in listed]
        texts = tuple(item for item in items if isinstance(item, str))
        if not texts or len(texts) < len(items):
            raise self._wrong(name, value, "a list of texts")
        return texts

    def _get(self, name: str, default: str | None) -> Any:
        if name not in self.values and default is None:
            have = ", ".join(map(str, self.values)) or "none"
            raise InputError(
                f"{self.where}: the field {name} is missing (found: {have}): expected a question file of "
                "this benchmark; check `metric` and the file"
            )
        return self.values.get(name, default)

    def _wrong(self, name: str, value: object, expected: str) -> InputError:
        return InputError(f"{self.where}: {name} is {value!r:.60}: expected {expected}; correct the file")


def read_lines(path: Path) -> list[Record]:
    """The objects of a JSON-lines file; empty lines are passed over.

    Raises:
        InputError: the file is missing or empty, or a line is not a JSON object; names the line.
    """
    records = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON ({error}): expected one object per line; mend it") from error
        if not isinstance(values, dict):
            raise InputError(f"{where}: a JSON {type(values).__name__}: expected an object; mend the line")
        records.append(Record(values, where))
    if not records:
        raise InputError(f"{path} is empty: expected one JSON object per line")
    return records


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        InputError: it is missing or not JSON; names the line.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{path}{line}: not JSON ({error}): use an undamaged file") from error


def entries(value: object, path: Path) -> Iterator[Record]:
    """The objects of a JSON list, with their number counted from 1.

    Raises:
        InputError: no list, or an entry is no object.
    """
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else f"a JSON {type(value).__name__}"
        raise InputError(f"{path} holds {found}: expected a list of questions; check `metric` and the file")
    for number, item in enumerate(value, start=1):
        where = f"{path}, entry {number}"
        if not isinstance(item, dict):
            raise InputError(f"{where}: a JSON {type(item).__name__}: expected an object; correct the file")
        yield Record(item, where)


def members(value: object, path: Path) -> Iterator[tuple[str, Record]]:
    """The objects of a JSON object by their names.

    Raises:
        InputError: no object, or a member is none.
    """
    if not isinstance(value, dict) or not value:
        raise InputError(
            f"{path} holds a JSON {type(value).__name__}: expected an object with a member per question; "
            "check `metric` and the file"
        )
    for name, item in value.items():
        if not isinstance(item, dict):
            raise InputError(f"{path}, {name}: a JSON {type(item).__name__}: expected an object")
        yield name, Record(item, f"{path}, {name}")


def read_text(path: Path) -> str:
    """A UTF-8 file's text, of at most `LARGEST` bytes.

    Raises:
        InputError: it is missing, no regular file, too large, unreadable or no text.
    """
    try:
        # Without universal newlines: a carriage return inside a field must not start a line.
        return read_regular(path, limit=LARGEST).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}: check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}): expected a question file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): check the path and its rights") from error
