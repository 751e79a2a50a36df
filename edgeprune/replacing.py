"""Writing folders: a new one appears when it is complete, and takes an earlier one's place in one step.

It is written to a locked temporary sibling and flushed to the disk. Where the system can, it then changes
places with the earlier folder in one step; elsewhere the earlier one is set aside for a moment, and put back
by the next write if the process was killed in it. So at every moment, a power cut's included, what stands at
the output is whole.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from edgeprune import scratch
from edgeprune.errors import OutputError
from edgeprune.files import flush, flush_all, make_folder, only_writer
from edgeprune.log import note
from edgeprune.ownership import BUNDLE_FOLDER, ENGINES, Kind, engines_of, foreign_files, some_of
from edgeprune.units import bytes_text

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def writing_to(
    output: str | os.PathLike[str], force: bool = False, kind: Kind = BUNDLE_FOLDER
) -> Iterator[Path]:
    """A temporary folder beside `output` that becomes `output` when the block ends without an error.

    An earlier folder is replaced only with `force`, and only if it is empty or holds nothing but what its own
    list accounts for, and a bundle's engines, which go with it. A link to a folder stays, and that folder is
    replaced.

    Raises:
        OutputError: `output` exists and `force` is not set or something in it was not written by edgeprune;
            it cannot be written, another run is writing to it, or the disk is full.
    """
    named = Path(os.path.abspath(output))
    try:
        os.lstat(named)
    except ValueError as error:  # a null character, or half a character
        raise OutputError(f"{named} is no name of a folder ({error}): {kind.elsewhere}") from error
    except OSError:  # not there, above all
        pass
    scratch.sweep(named.parent)
    place = Path(os.path.realpath(named)) if os.path.isdir(named) else named
    if os.path.lexists(place):
        if not force:
            raise OutputError(f"{named} exists already: {kind.elsewhere}, or replace it with `force=True`")
        _check_replaceable(place, kind)
    make_folder(place.parent)
    with only_writer(place, kind.elsewhere) as partial:
        try:
            yield partial
            flush_all(partial)
        except OSError as error:
            if error.errno in _FULL:
                raise OutputError(
                    f"the disk of {place.parent} is full: free some space or {kind.elsewhere}"
                ) from error
            raise
        try:
            _put_in_place(partial, place, force, kind)
        except OSError as error:
            raise OutputError(
                f"{named} cannot be put in place ({error.strerror}): {kind.elsewhere}"
            ) from error


def _check_replaceable(place: Path, kind: Kind) -> None:
    """Refuses to replace what edgeprune did not write, and what is in use."""
    for folder in (place, place / ENGINES, *(place / ENGINES / name for name in engines_of(place))):
        scratch.sweep(folder)
    if os.path.ismount(place):
        raise OutputError(
            f"{place} is a mount point and cannot be replaced: name a new folder inside as `output`"
        )
    if place.is_dir() and not any(place.iterdir()):
        return
    foreign = foreign_files(place, kind)
    if foreign is None:
        raise OutputError(
            f"{place} exists and was not written by edgeprune (it {kind.lacking}): move it away, because "
            "only what edgeprune wrote is replaced"
        )
    busy = [name for name in foreign if scratch.is_scratch(name.rstrip("/").rpartition("/")[2])]
    if busy:
        raise OutputError(f"another run is writing to {place} ({some_of(busy)}): wait until it ends")
    if foreign:
        raise OutputError(
            f"{place} holds what edgeprune did not write ({some_of(foreign)}): move it elsewhere first, "
            "because it would be deleted with the folder"
        )


def _put_in_place(partial: Path, place: Path, force: bool, kind: Kind) -> None:
    if not os.path.lexists(place):
        partial.rename(place)
        flush(place.parent)
        return
    if not force:
        raise OutputError(f"{place} was made by something else meanwhile: {kind.elsewhere}")
    _check_replaceable(place, kind)  # again, for writing took its time
    built = engines_of(place) if kind is BUNDLE_FOLDER else []
    with ExitStack() as stack:
        # Until it is removed, so that no other run begins under its name.
        try:
            stack.callback(os.close, scratch.lock(place))
        except BlockingIOError as error:
            raise OutputError(f"another run uses {place}: wait until it ends") from error
        except OSError:  # no locks here
            pass
        replaced = os.stat(place)
        earlier = partial if _exchange(partial, place) else _set_aside(partial, place)
        flush(place.parent)
        scratch.discard(earlier)
    if built:
        note(
            f"the engines in {place / ENGINES} ({some_of(built)}) were built from the replaced bundle and "
            "went with it: build them again"
        )
    # By that name there may be another run's already.
    if earlier.exists() and os.path.samestat(os.stat(earlier), replaced):
        note(f"the replaced folder could not be removed as a whole; what is left of it lies in {earlier}")


def _exchange(one: Path, other: Path) -> bool:
    """Lets two folders change places in one step; False, and nothing done, where the system cannot."""
    rename = _renameat2()
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _renameat2() -> Callable[..., int] | None:
    """Linux's system call by way of the C library; None where there is none."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    function.restype = ctypes.c_int
    found: Callable[..., int] = function
    return found


def _set_aside(partial: Path, place: Path) -> Path:
    """Puts `partial` at `place` in two steps, between which nothing stands there. Returns the earlier one."""
    aside = place.with_name(f".{place.name}{scratch.SET_ASIDE}")
    place.rename(aside)
    try:
        partial.rename(place)
    except BaseException:  # also when interrupted
        aside.rename(place)
        raise
    return aside


def need_space(folder: Path, wanted: int, kind: Kind = BUNDLE_FOLDER) -> None:
    """Raises OutputError when the disk of `folder` has less than `wanted` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise OutputError(
            f"the disk of {folder} is full: {bytes_text(wanted)} are needed and {bytes_text(free)} are free, "
            f"{bytes_text(wanted - free)} too little: free some space or {kind.elsewhere}"
        )
