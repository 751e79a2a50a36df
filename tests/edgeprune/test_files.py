"""Files that are read are regular ones."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from edgeprune.errors import InputError
from edgeprune.files import open_regular


def test_a_regular_file_is_read_also_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"content"


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
