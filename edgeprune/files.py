"""Files: they are written whole, complete or as they were before; only regular ones are read."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # not a Unix: what is shared there is copied
    fcntl = None  # type: ignore[assignment]

from edgeprune import scratch
from edgeprune.errors import InputError, OutputError
from edgeprune.units import bytes_text

MAX_READ = 100_000_000
"""Bytes of a file that is read as a whole: more than any configuration, index or header has."""

_FICLONE = 0x40049409  # Linux's request to share a file's content, ioctl_ficlone(2)
_ELSEWHERE = "choose another `output`"
_NO_FLUSHING = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link",
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


def shares_content(source: BinaryIO, target: BinaryIO) -> bool:
    """Makes an empty file a copy of another that takes no place of its own on the disk until one of them
    is changed (a reflink); False, and the file empty, where the file system cannot.
    """
    if fcntl is None:
        return False
    try:
        fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
    except OSError:  # of one kind or another, by file system; copying tells what is wrong with the files
        target.truncate(0)
        return False
    return True


def link(source: Path, target: Path) -> None:
    """Gives a regular file a second name, a hard link; where `source` is a symbolic link, what it leads to.

    Raises:
        InputError: the system links no such file there.
    """
    with open_regular(source):  # refuses what is none
        pass
    try:
        os.link(os.path.realpath(source), target)
    except OSError as error:
        raise InputError(
            f"{source} cannot be linked into the bundle ({error.strerror}): expected both on one file "
            f"system, one that has hard links; {_ELSEWHERE}, or leave out `link`, which copies"
        ) from error


def read_regular(path: str | os.PathLike[str], what: str = "the file", limit: int = MAX_READ) -> bytes:
    """All of a regular file; see `open_regular`.

    Raises:
        InputError: also where it has more than `limit` bytes.
        OSError, ValueError: as `open_regular`.
    """
    with open_regular(path, what) as file:
        if (size := os.fstat(file.fileno()).st_size) > limit:
            raise InputError(
                f"{what} {os.fspath(path)} has {bytes_text(size)}: expected at most {bytes_text(limit)}; "
                "check that it is the right file"
            )
        return file.read()


def is_utf8(path: str | os.PathLike[str]) -> bool:
    """Whether a path's name can be written as UTF-8, which libraries outside Python demand."""
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def need_utf8(path: str | os.PathLike[str], what: str) -> None:
    """Refuses a path that other libraries and processes could not take.

    Raises:
        InputError: it is not UTF-8.
    """
    if not is_utf8(path):
        raise InputError(
            f"the name of {what}, {os.fsencode(path)!r}, is not UTF-8: expected one that is, for the "
            "libraries that open its files; rename it, or link to it under another name"
        )


@contextmanager
def utf8_named(folder: Path) -> Iterator[Path]:
    """The folder itself, or where its name is not UTF-8, a link to it for as long as the context lasts."""
    if is_utf8(folder):
        yield folder
        return
    with TemporaryDirectory(prefix="edgeprune-") as place:
        link = Path(place) / "folder"
        link.symlink_to(folder.resolve(), target_is_directory=True)
        yield link


def write_text(path: Path, text: str, what: str = "the file") -> None:
    """Writes a UTF-8 file; see `write_bytes`. Half a surrogate pair becomes an escape, as in JSON."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), what)


def write_bytes(path: Path, content: bytes, what: str = "the file") -> None:
    """Writes a file; `what` names it in messages. It is on the disk before this returns.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        if not stat.S_ISREG(kind := _kind(path)) and not stat.S_ISLNK(kind):
            raise OutputError(
                f"{what} cannot be written to {path}, which is {_KINDS.get(stat.S_IFMT(kind), 'no file')}: "
                "choose a file"
            )
        # In the same folder, because only within one file system a rename replaces a file at once.
        with scratch.partial_file(path.parent) as (temporary, descriptor):
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(content)
            os.fsync(descriptor)
            temporary.replace(path)
            flush(path.parent)
    except (OSError, ValueError) as error:  # the latter for a null character in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise OutputError(
            f"{what} cannot be written to {path} ({reason}): choose a file in a folder that exists "
            "and can be written to"
        ) from error


def _kind(path: Path) -> int:
    """The mode of what is there, that of a regular file where nothing is."""
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return stat.S_IFREG


def flush(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk: a power cut spares it then.

    Raises:
        OSError: the disk failed or is full.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Some file systems flush no folders, and one that may be written to need not be readable.
        if not path.is_dir() or error.errno not in _NO_FLUSHING:
            raise


def flush_all(folder: Path) -> None:
    """Flushes a folder and every file and folder in it; see `flush`."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            if stat.S_ISREG(_kind(path := Path(root, name))):
                flush(path)
        flush(Path(root))


def make_folder(path: Path) -> None:
    """Makes a folder, with those above it; an existing one is fine.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        _make(path)
    except OSError as error:
        raise OutputError(
            f"the folder {path} cannot be made ({error.strerror}): choose another place"
        ) from error


def _make(path: Path) -> None:
    if path.is_dir():
        return
    if path.parent != path:
        _make(path.parent)
    path.mkdir(exist_ok=True)
    flush(path.parent)


def refuse_same(outputs: Iterable[Path], inputs: Iterable[str | os.PathLike[str] | None]) -> None:
    """Refuses outputs that are one of the inputs, by whatever names and links: writing would destroy it.

    Args:
        outputs: what will be written; need not be there.
        inputs: what is read; None and what is not there are passed over.

    Raises:
        InputError: names both.
    """
    written = {found: path for path in outputs if (found := _identity(path)) is not None}
    if not written:
        return
    for path in inputs:
        if path is not None and (found := _identity(path)) in written:
            kind = "folder" if os.path.isdir(path) else "file"
            raise InputError(
                f"the output {written[found]} and the input {os.fspath(path)} are one {kind}: expected the "
                "output to be another; choose another name or folder for it"
            )


def _identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


@contextmanager
def only_writer(output: Path, elsewhere: str = _ELSEWHERE) -> Iterator[Path]:
    """A new empty folder beside `output`, there for as long as this run alone may write to `output`.

    Args:
        output: what will be written.
        elsewhere: what to do, in messages, where that cannot be.

    Raises:
        OutputError: another run is writing to it, or its folder cannot be written to.
    """
    with ExitStack() as stack:
        try:
            partial = stack.enter_context(scratch.partial_folder(output))
        except BlockingIOError as error:
            raise OutputError(_another_run(output, elsewhere)) from error
        except OSError as error:
            raise OutputError(
                f"{output.parent} cannot be written to ({error.strerror}): {elsewhere}"
            ) from error
        yield partial


def _another_run(output: Path, elsewhere: str) -> str:
    return f"another run is writing to {output}: wait until it ends, or {elsewhere}"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Holds a folder that exists against a second run that writes to it, until the block ends.

    Raises:
        OutputError: another run holds it.
    """
    descriptor = None
    try:
        descriptor = scratch.lock(Path(os.path.realpath(folder)))
    except BlockingIOError as error:
        raise OutputError(_another_run(folder, _ELSEWHERE)) from error
    except OSError:  # no locks here
        pass
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
