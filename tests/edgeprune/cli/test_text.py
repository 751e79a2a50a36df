"""Text in and out of terminals of every encoding, and standard streams that a shell has closed."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeprune.cli.summary import curve_plot
from edgeprune.cli.text import from_stdin, shows, typed
from edgeprune.debias.curves import ExponentialCurve
from edgeprune.errors import InputError
from tests.manifests import write_bundle

SCRIPT = "import sys; from edgeprune.cli.main import main; sys.exit(main())"


def shell(command: str, *arguments: str | bytes, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs `edgeprune` as "$@" in a shell command."""
    run = [sys.executable, "-c", SCRIPT, *arguments]
    return subprocess.run(
        ["sh", "-c", command, "sh", *run], capture_output=True, env={**os.environ, **environment}, check=False
    )


# Closed streams


def test_a_closed_stdout_ends_nothing(tmp_path: Path) -> None:
    done = shell('"$@" >&-', "doctor")
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_belongs_on_stderr_never_gets_into_stdout(tmp_path: Path) -> None:
    done = shell('"$@" 2>&-', "inspect", "nowhere")
    assert (done.returncode, done.stdout) == (1, b"")


def test_a_file_never_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """What is opened first would get descriptor 1, and whatever a library prints then."""
    code = (
        "import os; from edgeprune.cli.text import open_missing_streams; open_missing_streams();"
        f"file = os.open({str(tmp_path / 'kept')!r}, os.O_CREAT | os.O_WRONLY); os.write(1, b'printed');"
        "assert file > 2"
    )
    subprocess.run(["sh", "-c", '"$@" >&- 2>&- <&-', "sh", sys.executable, "-c", code], check=True)
    assert (tmp_path / "kept").read_bytes() == b""


# Encodings


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_letters_ends_nothing(tmp_path: Path, encoding: str) -> None:
    bundle = write_bundle(tmp_path / "größe")
    done = shell('"$@"', "inspect", str(bundle), PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"#" in done.stdout  # the plot, in plain letters
    done.stdout.decode(encoding)


def test_the_posix_locale_reads_names_and_prints_errors(tmp_path: Path) -> None:
    posix = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    bundle = write_bundle(tmp_path / "größe")
    assert shell('"$@"', "inspect", str(bundle).encode(), **posix).returncode == 0
    done = shell('"$@"', "inspect", "größe/nowhere".encode(), **posix)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1


def test_a_path_that_is_not_utf_8_is_told_on_one_line() -> None:
    done = shell('"$@"', "inspect", b"caf\xe9")
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: caf\\udce9 is not a folder")


def test_bytes_that_the_locale_could_not_read_are_utf_8() -> None:
    assert typed("plain größe", "--prompt") == "plain größe"
    assert typed("größe".encode().decode("ascii", "surrogateescape"), "--prompt") == "größe"
    for broken in ("caf\udce9", "half \ud83d"):
        with pytest.raises(InputError, match="--prompt is not text: expected UTF-8"):
            typed(broken, "--prompt")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff", "is not text"), (b" \n", "is empty"), (b"x" * (1 << 24) + b"x", "is longer")],
)
def test_stdin_that_is_no_question(content: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="latin-1"))
    with pytest.raises(InputError, match=f"the prompt on stdin {message}"):
        from_stdin("the prompt")


def test_stdin_is_utf_8_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("größe?\n".encode()), encoding="latin-1"))
    assert from_stdin("the prompt") == "größe?"


def test_what_a_terminal_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding, plain in (("utf-8", False), ("latin-1", True)):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        assert shows("▁") != plain
        assert curve_plot(ExponentialCurve(b=0.1, num_tokens=20)).isascii() == plain


# Completion


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completion(name: str) -> None:
    # Else typer looks which shell it runs in.
    done = shell('"$@"', "--show-completion", name, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0
    assert b"_EDGEPRUNE_COMPLETE" in done.stdout


def test_commands_are_suggested() -> None:
    asked = {"_EDGEPRUNE_COMPLETE": "complete_bash", "COMP_WORDS": "edgeprune in", "COMP_CWORD": "1"}
    assert shell('"$@"', **asked).stdout.split() == [b"inspect"]


# Help


def test_help_of_a_command() -> None:
    assert shell('"$@"', "help", "run").stdout == shell('"$@"', "run", "--help").stdout
    assert shell('"$@"', "help").stdout == shell('"$@"', "--help").stdout
    wrong = shell('"$@"', "help", "ruin")
    assert (wrong.returncode, wrong.stdout) == (2, b"")
    assert b"No such command 'ruin'" in wrong.stderr
