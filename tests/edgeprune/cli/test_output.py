"""Numbers, tables, progress and images as the commands print and write them."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgeprune.cli.output import (
    bytes_text,
    check_image_path,
    digits,
    print_fields,
    print_json,
    print_table,
    progress_on_stderr,
    save_image,
    seconds_text,
)
from edgeprune.errors import InputError, OutputError


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.12345, "0.123"), (99.94, "99.9"), (99.96, "100"), (1234.5, "1234")]
)
def test_three_digits_and_never_an_exponent(value: float, text: str) -> None:
    assert digits(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "unknown"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (13_500_000_000, "13.5 GB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_sizes_have_the_unit_that_suits_them(count: int | None, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.00042, "0.42 ms"), (0.9994, "999 ms"), (0.9996, "1 s"), (123.4, "123 s")],
)
def test_durations_have_the_unit_that_suits_them(seconds: float | None, text: str) -> None:
    assert seconds_text(seconds) == text


def test_json_is_one_object_with_plain_letters(capsys: pytest.CaptureFixture[str]) -> None:
    print_json("run", {"text": "grün", "kept": [1, 2]})
    out = capsys.readouterr().out
    assert json.loads(out) == {"format": "edgeprune.run/1", "text": "grün", "kept": [1, 2]}
    assert "grün" in out


def test_json_is_whole_where_the_terminal_lacks_letters_or_a_name_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for encoding, text in (("latin-1", "grün ▁"), ("ascii", "grün"), ("utf-8", "caf\udce9")):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
        print_json("run", {"text": text})
        sys.stdout.flush()
        assert json.loads(written.getvalue().decode("ascii"))["text"] == text


def test_fields_stand_in_two_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields([("a", "1"), ("longer", "[2]")])
    print_fields([("b", "3")], stderr=True)
    assert capsys.readouterr() == ("a       1\nlonger  [2]\n", "b  3\n")


def test_a_table_shows_brackets_and_wide_rows_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "figure"], [["[bold]x[/bold]", "1"], ["y" * 100, "22"]], "title [x]")
    out = capsys.readouterr().out
    assert "[bold]x[/bold]" in out
    assert "y" * 100 in out


def test_progress_in_a_log_is_a_line_for_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_on_stderr() as progress:
        progress.step("writing [weights]", 100)
        progress.advance(50)
    assert capsys.readouterr() == ("", "writing [weights] ...\n")


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def test_progress_on_a_terminal_is_bars_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_terminal(monkeypatch)
    with progress_on_stderr() as progress:
        progress.advance(1)
        progress.step("tracing")
        progress.step("writing [weights]", 100)
        progress.advance(50)
    out, err = capsys.readouterr()
    assert out == ""
    done = [line for line in err.splitlines() if "100%" in line][-2:]
    assert "tracing" in done[0]
    assert "writing [weights]" in done[1]


def test_an_error_does_not_show_its_step_as_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_terminal(monkeypatch)

    def fail() -> None:
        with progress_on_stderr() as progress:
            progress.step("writing", 100)
            progress.advance(50)
            raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        fail()
    err = capsys.readouterr().err
    assert "50%" in err
    assert "100%" not in err


@pytest.mark.parametrize("name", ["kept", "kept.txt", "kept.onnx"])
def test_a_picture_needs_a_pictures_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="does not end as an image's name"):
        check_image_path(tmp_path / name)


def test_a_picture_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="in a folder that exists"):
        check_image_path(tmp_path / "none" / "kept.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match="expected a file's name"):
        check_image_path(tmp_path / "folder.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(OutputError, match="expected a file's name"):
        check_image_path(tmp_path / "pipe.png")


def test_a_picture_needs_a_folder_that_can_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(OutputError, match="cannot be written to"):
        check_image_path(tmp_path / "kept.png")


@pytest.mark.parametrize("name", ["kept.png", "kept.JPG"])
def test_a_picture_is_written_in_the_format_of_its_name(tmp_path: Path, name: str) -> None:
    check_image_path(tmp_path / name)
    save_image(Image.new("RGB", (3, 2)), tmp_path / name)
    with Image.open(tmp_path / name) as picture:
        assert (picture.size, picture.format) == ((3, 2), "PNG" if name.endswith("png") else "JPEG")


def test_a_picture_that_fails_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept.png"
    path.write_bytes(b"earlier")

    def fails(self: Image.Image, target: Any, format: str) -> None:
        target.write(b"half")
        raise OSError("disk")

    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(OSError, match="disk"):
        save_image(Image.new("RGB", (3, 2)), path)
    assert [(item.name, item.read_bytes()) for item in tmp_path.iterdir()] == [("kept.png", b"earlier")]
