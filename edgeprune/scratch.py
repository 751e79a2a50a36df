"""Files and folders that a write makes on its way, locked for as long as it runs.

A process that is killed cannot tidy up, but its locks end with it. So what carries one of the names below and
is locked by nobody was left behind, and the next write in the same folder removes it. No other program's
files are named like this.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a Unix: nothing is locked there, and nothing swept
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".edgeprune-partial"
"""The ending of what is being written, and of what was just replaced and is being removed."""
SET_ASIDE = ".edgeprune-old"
"""The ending of an earlier folder, renamed from `NAME` to `.NAME.edgeprune-old` while another takes its
place."""

_TRIES, _PAUSE = 10, 0.1
_FLAGS = (
    os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
)


def lock_descriptor(descriptor: int) -> None:
    """Locks an open file or folder for this descriptor alone, until it is closed or its process ends.

    Raises:
        BlockingIOError: another one holds it.
        OSError: this file system knows no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock(path: Path) -> int:
    """Opens and locks a file or folder; closing the descriptor that is returned unlocks it.

    Raises:
        BlockingIOError, OSError: as `lock_descriptor`; it is missing, or a link.
    """
    descriptor = os.open(path, _FLAGS)
    try:
        lock_descriptor(descriptor)
        _check_still_there(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_still_there(descriptor: int, path: Path) -> None:
    """FileNotFoundError where `path` was removed or renamed between opening and locking it."""
    if not os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def sweep(folder: Path) -> None:
    """Removes what killed writes left in a folder; a folder that one had set aside is put back."""
    try:
        names = list(filter(is_scratch, os.listdir(folder)))
    except OSError:  # missing, or not ours to look into: whoever writes there will say so
        return
    for name in names:
        path = folder / name
        with suppress(OSError):  # in use, above all
            descriptor = lock(path)
            try:
                earlier = folder / name[1 : -len(SET_ASIDE)]
                if name.endswith(SET_ASIDE) and not os.path.lexists(earlier):
                    path.rename(earlier)
                else:
                    discard(path)
            finally:
                os.close(descriptor)


def discard(path: Path) -> None:
    """Removes a file or a folder with all in it, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def is_scratch(name: str) -> bool:
    """Whether a file or folder of this name is, or was, on the way."""
    return name[:1] == "." and any(name[2:].endswith(ending) for ending in (PARTIAL, SET_ASIDE))


@contextmanager
def partial_folder(output: Path) -> Iterator[Path]:
    """A new empty folder beside `output`; removed at the end, unless it was renamed.

    For one `output` there is one name, so that a second write to it is noticed at once.

    Raises:
        BlockingIOError: another run is writing to `output`.
        OSError: the folder cannot be made.
    """
    path = output.with_name(f".{output.name}{PARTIAL}")
    descriptor = _made_and_locked(path)
    try:
        yield path
    finally:
        try:
            # The name may be another run's already.
            with suppress(OSError):
                _check_still_there(descriptor, path)
                discard(path)
        finally:
            os.close(descriptor)


def _made_and_locked(path: Path) -> int:
    for _ in range(_TRIES):
        sweep(path.parent)
        try:
            path.mkdir()
        except FileExistsError:
            time.sleep(_PAUSE)
            continue
        try:
            return lock(path)
        except (BlockingIOError, FileNotFoundError):  # swept by another run before it was locked
            continue
        except OSError:  # no locks here
            return os.open(path, _FLAGS)
    try:
        os.close(lock(path))
    except (BlockingIOError, FileNotFoundError):
        raise BlockingIOError(errno.EAGAIN, "another run writes to it") from None
    except OSError:  # a link, or no locks here
        pass
    raise FileExistsError(errno.EEXIST, f"{path.name} is in the way: remove it if no other run uses it")


@contextmanager
def partial_file(folder: Path) -> Iterator[tuple[Path, int]]:
    """A new file in `folder` and its descriptor, open for writing; removed at the end if it still goes by its
    name.

    Raises:
        OSError: it cannot be made.
    """
    sweep(folder)
    while True:
        path = folder / f".{secrets.token_hex(8)}{PARTIAL}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            lock_descriptor(descriptor)
            _check_still_there(descriptor, path)
        except (BlockingIOError, FileNotFoundError):  # as above
            os.close(descriptor)
            continue
        except OSError:  # no locks here
            pass
        break
    try:
        yield path, descriptor
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)
