"""Writing small files whole: complete, or as they were before."""

from __future__ import annotations

import os
from pathlib import Path

from edgeprune.errors import OutputError


def write_text(path: Path, text: str, what: str = "the file") -> None:
    """Writes a UTF-8 file; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"), what)


def write_bytes(path: Path, content: bytes, what: str = "the file") -> None:
    """Writes a file; `what` names it in messages.

    Raises:
        OutputError: it cannot be written.
    """
    # In the same folder, because only within one file system a rename replaces a file at once.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{what} cannot be written to {path} ({error.strerror}): choose a file in a folder that exists "
            "and can be written to"
        ) from error


def make_folder(path: Path) -> None:
    """Makes a folder, with those above it; an existing one is fine.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the folder {path} cannot be made ({error.strerror}): choose another place"
        ) from error
