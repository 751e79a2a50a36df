"""Fields of files from elsewhere: numbers with bounds, text that can be shown, paths that stay inside.

A manifest may have been written by anybody. What its schema lets through is used as it is: sizes ask for
memory, names reach the terminal. So every number ends somewhere far above anything sensible, and text that
is shown holds nothing but printable characters, on one line.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from edgeprune.errors import printable

_SHOWN = 200


class Part(BaseModel):
    """A part of such a file: unchangeable, and no field that the schema does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def shown(text: object) -> str:
    """Text from elsewhere for a message: one line of at most 200 characters, the unprintable ones escaped."""
    whole = printable(str(text)[: _SHOWN + 1], keep="")
    return whole if len(whole) <= _SHOWN else f"{whole[:_SHOWN]}..."


def first_fault(error: ValidationError) -> str:
    """The first thing that pydantic found, behind the field where it stands."""
    fault = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    return shown(f"{field}: {message}" if field else message)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{shown(text)} holds characters that cannot be printed")
    return text


def _clean(text: str) -> str:
    if not text.replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        raise ValueError(f"{shown(text)} holds characters that cannot be printed")
    return text


def leaves(path: str) -> bool:
    """Whether a path, by its text alone, is none of a file below the folder that it is relative to."""
    pure = PurePosixPath(path)
    return pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path or not pure.parts


def _inside(path: str) -> str:
    if leaves(path):
        raise ValueError(f"{shown(path)!r} leads out of the folder: do not use it")
    return path


Line = Annotated[str, Field(max_length=1000), AfterValidator(_printable)]
"""Text for people, on one line."""

TokenText = Annotated[str, Field(max_length=1000), AfterValidator(_clean)]
"""The text of a token; line breaks and tabs are tokens, too."""

FilePath = Annotated[str, Field(max_length=500), AfterValidator(_printable), AfterValidator(_inside)]
"""A file's path, relative to the folder that the file with this field lies in."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

Bytes = Annotated[int, Field(strict=True, ge=0, lt=1 << 40)]
Size = Annotated[int, Field(strict=True, ge=1, le=1 << 20)]
"""Widths of layers, heads, and the like."""
Layers = Annotated[int, Field(strict=True, ge=1, le=1 << 10)]
Layer = Annotated[int, Field(strict=True, ge=0, lt=1 << 10)]
Pixels = Annotated[int, Field(strict=True, ge=1, le=1 << 12)]
Tokens = Annotated[int, Field(strict=True, ge=1, le=1 << 24)]
"""Vocabularies, positions, visual tokens of a prompt."""
TokenId = Annotated[int, Field(strict=True, ge=0, lt=1 << 24)]
MOST_COUNT = 1 << 30
Count = Annotated[int, Field(strict=True, ge=0, le=MOST_COUNT)]
Flag = Annotated[bool, Field(strict=True)]
Number = Annotated[float, Field(strict=True, ge=-1e6, le=1e6)]
"""A number as images are normalised with; finite."""
Seconds = Annotated[float, Field(strict=True, ge=0, le=1e9)]
