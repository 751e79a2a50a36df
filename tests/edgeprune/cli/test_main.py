"""The frame of the command line: help, versions, exit codes, and what it costs."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import edgeprune
from edgeprune.cli import machine
from edgeprune.cli import main as module
from edgeprune.errors import BackendError, EdgepruneError, VerificationError
from edgeprune.log import note
from tests.edgeprune.cli.conftest import Cli

COMMANDS = list(module.COMMANDS)
SCRIPT = "import sys; from edgeprune.cli.main import main; sys.exit(main())"


def python(code: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def doing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Lets `edgeprune doctor` do something else in the middle of its work."""

    def replace(action: Callable[[], object]) -> None:
        monkeypatch.setattr("edgeprune.cli.machine.read_machine", action)

    return replace


def raising(error: BaseException) -> Callable[[], object]:
    def action() -> object:
        raise error

    return action


# Help and version


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_every_command(cli: Cli, arguments: tuple[str, ...]) -> None:
    result = cli(*arguments)
    assert result.code == 0
    assert result.err == ""
    assert result.out.startswith("Usage: edgeprune")
    listed = [line.split()[0] for line in result.out.split("Commands:\n")[1].splitlines()]
    assert listed == [*COMMANDS, "help"]
    assert {"export", "run", "inspect", "verify", "bench", "doctor"} <= set(listed)
    assert "..." not in result.out.split("Commands:\n")[1], "a summary is cut"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(cli: Cli, command: str) -> None:
    result = cli(command, "--help")
    assert result.code == 0
    assert f"Usage: edgeprune {command}" in result.out
    assert "--json" in result.out


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(cli: Cli, option: str) -> None:
    result = cli(option)
    assert (result.code, result.out, result.err) == (0, f"edgeprune {edgeprune.__version__}\n", "")


def test_help_loads_nothing_heavy_and_no_numpy() -> None:
    blocked = ["torch", "transformers", "onnx", "onnxruntime", "numpy", "PIL"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); {SCRIPT}"
    for arguments in ((), ("export", "--help"), ("run", "--help")):
        done = python(code, *arguments)
        assert done.returncode == 0, done.stderr
        assert "Usage:" in done.stdout


# Mistakes in the arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exprot"], "No such command 'exprot'"),
        (["--frobnicate"], "No such option: --frobnicate"),
        (["export", "model", "--kepe", "1"], "No such option: --kepe"),
        (["export"], "Missing argument 'MODEL'"),
        (["export", "model", "--keep"], "--keep"),
        (["run", "bundle", "--prompt", "x", "--top-p", "high"], "Invalid value for '--top-p'"),
        (["run", "bundle", "another", "--prompt", "x"], "unexpected extra argument"),
        (["bench", "bundle", "--runs", "1.5"], "Invalid value for '--runs'"),
    ],
)
def test_a_wrong_argument_is_one_message_that_says_where_help_is(
    cli: Cli, arguments: list[str], message: str
) -> None:
    found = cli(*arguments).message
    assert message in found
    command = ["edgeprune", *[name for name in arguments[:1] if name in COMMANDS]]
    assert found.endswith(f"; see {' '.join(command)} --help")


# What an error becomes


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["run", "--no-such-option"], 2), (["run", "no-bundle", "--prompt", "x"], 1)],
)
def test_a_wrong_command_line_and_a_wrong_input_have_codes_of_their_own(
    cli: Cli, arguments: list[str], code: int
) -> None:
    assert cli(*arguments).code == code


def test_a_comparison_that_fails_has_a_code_of_its_own(cli: Cli, doing: Callable[..., None]) -> None:
    doing(raising(VerificationError("apart")))
    assert cli("doctor").code == 3


def test_an_error_stays_on_one_line_whatever_is_in_it(cli: Cli, doing: Callable[..., None]) -> None:
    doing(raising(EdgepruneError("a file called\nerror: x\r\n is missing")))
    assert cli("doctor").message == "a file called error: x is missing"


def test_nothing_in_an_error_or_a_note_steers_the_terminal(cli: Cli, doing: Callable[..., None]) -> None:
    doing(raising(EdgepruneError("there is no image \x1b[2J\u202e.png")))
    assert cli("doctor").message == r"there is no image \x1b[2J\u202e.png"
    doing(raising(PermissionError(errno.EACCES, "denied", "\x1b[2J")))
    assert cli("doctor").message.startswith(r"\x1b[2J: denied")
    assert cli("doctor", "--\x1b[2J").message.startswith(r"No such option: --\x1b[2J")


def test_an_error_names_options_where_the_library_names_parameters(
    cli: Cli, doing: Callable[..., None]
) -> None:
    doing(raising(EdgepruneError("`max_new_tokens` is 0, `method='none'` and `force=True`; `edgeprune run`")))
    assert cli("doctor").message == "--max-new-tokens is 0, --method none and --force; `edgeprune run`"


# Notes


def test_a_note_follows_the_results_and_is_told_once(cli: Cli, doing: Callable[..., None]) -> None:
    def action() -> object:
        note("give `keep`")
        note("give `keep`")
        return read_machine()

    read_machine = machine.read_machine
    doing(action)
    result = cli("doctor")
    assert (result.code, result.err) == (0, "note: give --keep\n")


def test_no_note_stands_before_an_error(cli: Cli, doing: Callable[..., None]) -> None:
    def action() -> object:
        note("something else")
        raise EdgepruneError("wrong")

    doing(action)
    assert cli("doctor").err == "error: wrong\n"


@pytest.mark.parametrize("error", [EdgepruneError("wrong [keep]"), BackendError("wrong [keep]")])
def test_an_error_of_the_user_is_its_message(
    cli: Cli, doing: Callable[..., None], error: EdgepruneError
) -> None:
    doing(raising(error))
    assert cli("doctor").message == "wrong [keep]"


def test_a_bug_keeps_its_traceback(cli: Cli, doing: Callable[..., None]) -> None:
    doing(raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        cli("doctor")


def test_a_bug_ends_the_script_with_a_plain_traceback() -> None:
    code = f"from edgeprune.cli import machine; machine.read_machine = lambda: 1 / 0; {SCRIPT}"
    done = python(code, "doctor")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last)")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize(
    "code",
    [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG],
)
def test_what_is_wrong_with_the_disk_is_the_users(cli: Cli, doing: Callable[..., None], code: int) -> None:
    doing(raising(OSError(code, os.strerror(code), "/some/file")))
    assert cli("doctor").message.startswith(f"/some/file: {os.strerror(code)}: check the place")


def test_an_error_without_a_files_name_has_none(cli: Cli, doing: Callable[..., None]) -> None:
    doing(raising(OSError(errno.ENOSPC, "No space left on device")))
    assert cli("doctor").message.startswith("No space left on device: ")


def test_any_other_error_of_a_file_is_a_bug(cli: Cli, doing: Callable[..., None]) -> None:
    doing(raising(FileNotFoundError(errno.ENOENT, "No such file", "/bug")))
    with pytest.raises(FileNotFoundError):
        cli("doctor")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), module.typer.Abort()])
def test_an_interrupt_is_quiet(cli: Cli, doing: Callable[..., None], error: BaseException) -> None:
    doing(raising(error))
    result = cli("doctor")
    assert (result.code, result.out, result.err) == (130, "", "")


# Signals and pipes, with a process of its own


def send(number: int, tmp_path: Path) -> subprocess.Popen[str]:
    """Starts a command that is at work on a bundle, and sends it a signal there."""
    code = f"""
import time
from edgeprune.cli import machine
from edgeprune.replacing import writing_to
def work():
    with writing_to({str(tmp_path / "bundle")!r}) as scratch:
        (scratch / "half").write_text("x")
        print("working", flush=True)
        time.sleep(60)
machine.read_machine = work
{SCRIPT}
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(number)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_quietly_and_leaves_nothing_half_done(tmp_path: Path, number: int) -> None:
    out, err = (process := send(number, tmp_path)).communicate(timeout=30)
    assert (process.returncode, out, err) == (128 + number, "", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_goes_away_is_no_error(lines: int) -> None:
    code = f"""
import os, sys
from edgeprune.cli import machine
def read_machine():
    sys.stdin.read()
    sys.stdout.write("line\\n" * {lines})
    return original()
original = machine.read_machine
machine.read_machine = read_machine
{SCRIPT}
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, "doctor"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=30) == 128 + signal.SIGPIPE
    process.stderr.close()
