"""Files: small ones are written whole, complete or as they were before; only regular ones are read."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from edgeprune.errors import InputError, OutputError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | os.PathLike[str], what: str = "the file") -> BinaryIO:
    """Opens a regular file for reading. A pipe or a device is refused: reading one may wait for ever.

    Args:
        path: the file; a link to one is fine.
        what: names it in messages.

    Raises:
        InputError: it is something else than a regular file.
        OSError: it cannot be opened; of a missing file FileNotFoundError.
        ValueError: the path holds a null character.
    """
    # Without blocking, because opening a pipe waits for its other end already.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise InputError(
            f"{what} {os.fspath(path)} is {_KINDS.get(kind, 'no file')}: expected a regular file"
        )
    return os.fdopen(descriptor, "rb")


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
