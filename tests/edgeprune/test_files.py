"""Files that are read are regular ones; files that are written are whole, and none of the inputs."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from edgeprune.errors import InputError, OutputError
from edgeprune.files import (
    alone_in,
    is_utf8,
    link,
    only_writer,
    open_regular,
    read_regular,
    refuse_same,
    utf8_named,
    write_bytes,
    write_text,
)
from edgeprune.scratch import PARTIAL, partial_file


def test_a_regular_file_is_read_also_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"content"


@pytest.mark.parametrize("name", ["file", "leading"])
def test_a_link_is_another_name_of_the_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "leading").symlink_to("file")  # as in the cache of the Hugging Face hub
    link(tmp_path / name, tmp_path / "second")
    assert not (tmp_path / "second").is_symlink()
    assert (tmp_path / "second").samefile(tmp_path / "file")


def test_a_link_that_the_system_does_not_make_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "file").write_bytes(b"content")
    message = (
        r"file cannot be linked .*\(Invalid cross-device link\): expected both on one file system, .*`link`"
    )
    with pytest.raises(InputError, match=message):
        link(tmp_path / "file", tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_whatever_could_wait_for_ever_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    places = {"fifo": "a pipe", "link": "a pipe", "": "a folder", "/dev/zero": "a device"}
    for place, kind in places.items():
        with pytest.raises(InputError, match=f"the list .* is {kind}: expected a regular file"):
            open_regular(tmp_path / place, "the list")


def test_a_socket_is_no_regular_file(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        with pytest.raises((InputError, OSError)):
            open_regular(tmp_path / "s")


def test_a_missing_file_is_left_to_the_caller(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


def test_a_file_is_read_as_a_whole_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234")
    assert read_regular(tmp_path / "file", limit=4) == b"1234"
    with pytest.raises(InputError, match=r"the list .*file has 4 B: expected at most 3 B"):
        read_regular(tmp_path / "file", "the list", limit=3)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=r"has 1\.1 TB: expected at most 100 MB"):
        read_regular(tmp_path / "sparse")


# Writing


def test_a_file_is_written_whole_and_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("earlier")
    seen: list[tuple[int, str]] = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: seen.append((os.fstat(descriptor).st_ino, path.read_text()))
    )
    write_text(path, "half \ud83d")
    assert path.read_text() == "half \\ud83d"
    # The content before it is in place, the folder's list of names behind.
    assert seen == [(path.stat().st_ino, "earlier"), (tmp_path.stat().st_ino, "half \\ud83d")]
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300])
def test_a_name_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"the curve cannot be written to .*: choose a file"):
        write_bytes(tmp_path / name, b"", "the curve")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_stays_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").write_text("earlier")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"the curve cannot be written to .*No space left"):
        write_text(tmp_path / "file", "new", "the curve")
    assert (tmp_path / "file").read_text() == "earlier"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, kind in ((tmp_path / "fifo", "a pipe"), (tmp_path, "a folder")):
        with pytest.raises(OutputError, match=f"which is {kind}: choose a file"):
            write_bytes(path, b"")
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


def test_what_a_killed_write_left_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / f".0123{PARTIAL}").write_text("left")
    (tmp_path / ".0123.partial").write_text("another program's")
    write_text(tmp_path / "file", "x")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".0123.partial", "file"]


def test_a_write_that_still_runs_is_left_alone(tmp_path: Path) -> None:
    with partial_file(tmp_path) as (path, _):
        write_text(tmp_path / "file", "x")
        assert path.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    write_text(tmp_path / ("n" * 250), "x")
    assert (tmp_path / ("n" * 250)).read_text() == "x"


# Outputs beside inputs


def test_an_output_that_is_an_input_is_refused_by_whatever_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photo").write_text("x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("photo")
    (tmp_path / "away").symlink_to("sub")
    os.link(tmp_path / "photo", tmp_path / "hard")
    monkeypatch.chdir(tmp_path)
    names = ["photo", "./photo", "sub/../photo", "away/../photo", "link", "hard", str(tmp_path / "photo")]
    for output in names:
        for given in names:
            with pytest.raises(InputError, match="are one file"):
                refuse_same([Path("other"), Path(output)], [None, "missing", given])
    refuse_same([Path("other"), Path("sub")], [None, "photo", "\0"])
    refuse_same([], ["photo"])


def test_a_folder_is_held_by_one_run(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    with alone_in(tmp_path / "folder"):
        with (
            pytest.raises(OutputError, match=r"another run is writing to .*link"),
            alone_in(tmp_path / "link"),
        ):
            raise AssertionError("the block must not run")
        write_text(tmp_path / "folder" / "file", "x")
    with alone_in(tmp_path / "link"):
        pass


def test_an_output_has_one_writer(tmp_path: Path) -> None:
    with only_writer(tmp_path / "curve.json"):
        with pytest.raises(OutputError, match="another run"), only_writer(tmp_path / "curve.json"):
            raise AssertionError("the block must not run")
        with only_writer(tmp_path / "other.json"):
            pass
    assert not list(tmp_path.iterdir())


def test_a_folder_under_a_name_that_is_utf8(tmp_path: Path) -> None:
    with utf8_named(tmp_path) as named:
        assert named == tmp_path
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xe9en"))
    odd.mkdir()
    (odd / "x").write_text("there")
    assert is_utf8(tmp_path / "gr\xfcn")
    assert not is_utf8(odd)
    with utf8_named(odd) as named:
        assert is_utf8(named)
        assert (named / "x").read_text() == "there"
    assert not named.exists()
    assert (odd / "x").exists()
