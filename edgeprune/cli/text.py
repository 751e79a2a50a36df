"""Text on its way in and out of the terminal, whatever encoding and streams a shell hands over."""

from __future__ import annotations

import os
import sys

from edgeprune.errors import InputError

# The largest prompt that is read from a pipe; no model reads a thousandth of it.
_LONGEST = 1 << 24


def open_missing_streams() -> None:
    """Opens what a shell closed (`>&-`), so that no file takes the place of a standard stream.

    Where descriptor 1 is free the next file to be opened gets it, and then what a library prints.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one: those below are open by now.
            os.open(os.devnull, os.O_RDWR)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - as long as the process


def print_what_cannot_be_encoded() -> None:
    """Lets a terminal that is not UTF-8 show a replacement for a character instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def shows(text: str) -> bool:
    """Whether standard output can show every character of a text."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def typed(text: str, option: str) -> str:
    """An argument as text. Where the locale could not read its bytes, they are read as UTF-8.

    Raises:
        InputError: they are not UTF-8.
    """
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        pass
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError as error:
        raise InputError(f"{option} is not text: expected UTF-8; check the terminal's encoding") from error


def from_stdin(what: str) -> str:
    """All of standard input as text, without space around it.

    Raises:
        InputError: it is not UTF-8, too long, or empty.
    """
    binary = getattr(sys.stdin, "buffer", None)
    content: bytes = (
        sys.stdin.read(_LONGEST + 1).encode("utf-8", "surrogateescape")
        if binary is None
        else binary.read(_LONGEST + 1)
    )
    if len(content) > _LONGEST:
        raise InputError(f"{what} on stdin is longer than {_LONGEST} bytes: expected a question")
    try:
        text = content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{what} on stdin is not text ({error}): expected UTF-8") from error
    if not text:
        raise InputError(f"{what} on stdin is empty: expected a question; write it there, or as an option")
    return text
