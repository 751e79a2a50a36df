"""The command `edgeprune`: puts the commands together, and turns errors into one message and an exit code.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | an input or a place is not usable: one line `error: ...` on stderr says how; a bug leaves a traceback |
| 2 | the command line itself is wrong: an unknown option, a missing one, a value of the wrong kind |
| 3 | a comparison failed: the result is not what it should be |
| 130, 143 | interrupted (Ctrl-C), told to end (SIGTERM) |
| 141 | whoever read the output went away |
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Annotated, cast

import typer

from edgeprune import __version__
from edgeprune.cli import bench, build, calibrate, doctor, export, inspect, run, verify
from edgeprune.cli import eval as eval_
from edgeprune.cli.text import open_missing_streams, print_what_cannot_be_encoded
from edgeprune.cli.words import options_of, with_options
from edgeprune.errors import EdgepruneError, VerificationError, printable
from edgeprune.log import LOGGER

USAGE, INPUT, DIFFERENT = 2, 1, 3

# What a shell that has edgeprune's completion sets to ask for suggestions.
_COMPLETION = "_EDGEPRUNE_COMPLETE"

app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich alone would double the time that --help takes
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, Callable[..., None]] = {
    "export": export.export,
    "build": build.build,
    "run": run.run,
    "inspect": inspect.inspect,
    "verify": verify.verify,
    "bench": bench.bench,
    "calibrate": calibrate.calibrate,
    "eval": eval_.evaluate,
    "doctor": doctor.doctor,
}
for _name, _function in COMMANDS.items():
    app.command(_name)(_function)


@app.command("help")
def help_(
    command: Annotated[
        str | None, typer.Argument(metavar="COMMAND", help="Of which; of all without.")
    ] = None,
) -> None:
    """Show the help of a command."""
    _run(["--help"] if command is None else [command, "--help"])


# What typer raises for a wrong option; it brings its own copy of click, or uses the package, by its version.
_UsageError = cast(
    type[Exception], next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
)

# The conditions of files and disks that a user can put right. Any other OSError is a bug.
_USERS_ERRNO = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.ENAMETOOLONG,
}


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"edgeprune {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def edgeprune(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", help="Print it.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Vision-language models with debiased visual-token pruning inside the graph.

    Start with `edgeprune export MODEL --keep 0.3 -o out`, then
    `edgeprune run out --image x.jpg --prompt "..."`.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: those of the command line; None for `sys.argv`.

    Returns:
        The exit code; see the module's description.
    """
    if arguments is None:
        arguments = sys.argv[1:]
        signal.signal(signal.SIGTERM, _terminate)
        open_missing_streams()
        print_what_cannot_be_encoded()
        if _COMPLETION in os.environ:
            app(prog_name="edgeprune")
    notes = _Notes()
    logging.getLogger(LOGGER).addHandler(notes)
    try:
        _run(arguments)
        sys.stdout.flush()
        notes.print(arguments)
    except _MisuseError as error:
        return _failed(str(error), arguments, USAGE)
    except VerificationError as error:
        return _failed(str(error), arguments, DIFFERENT)
    except EdgepruneError as error:
        return _failed(str(error), arguments)
    except BrokenPipeError:
        _discard_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in _USERS_ERRNO:
            raise
        place = f"{error.filename}: " if error.filename else ""
        return _failed(f"{place}{error.strerror}: check the place, its rights and its free space", arguments)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        logging.getLogger(LOGGER).removeHandler(notes)
    return 0


def _run(arguments: Sequence[str]) -> None:
    command = typer.main.get_command(app)
    named = next((name for name in arguments[:1] if name in COMMANDS), None)
    try:
        with command.make_context("edgeprune", list(arguments)) as context:
            command.invoke(context)
    except typer.Exit:
        pass
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    except _UsageError as error:
        path = "edgeprune" if named is None else f"edgeprune {named}"
        message = error.format_message().rstrip(".")  # type: ignore[attr-defined]
        raise _MisuseError(f"{message}; see {path} --help") from error


class _MisuseError(Exception):
    """The arguments are none that a command takes."""


class _Notes(logging.Handler):
    """Keeps notes until a command has succeeded: in front of an error they would lead astray."""

    def __init__(self) -> None:
        super().__init__()
        self._texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())

    def print(self, arguments: Sequence[str]) -> None:
        """On stderr, each once."""
        for text in dict.fromkeys(self._texts):
            print(f"note: {in_options(text, arguments)}", file=sys.stderr)


def in_options(message: str, arguments: Sequence[str] = ()) -> str:
    """In the words of the command line, and on one line, whatever names and foreign messages are in it."""
    command = next((name for name in arguments[:1] if name in COMMANDS), None)
    words = with_options(message, options_of(typer.main.get_command(app), command))
    return " ".join(printable(words).split())


def _failed(message: str, arguments: Sequence[str], code: int = INPUT) -> int:
    # Not through rich: it would wrap the line and read brackets as markup.
    print(f"error: {in_options(message, arguments)}", file=sys.stderr)
    return code


def _discard_output() -> None:
    """Sends what is still buffered nowhere; the interpreter would complain about it on its way out."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _terminate(number: int, frame: FrameType | None) -> None:
    # As an exception, so that what was written halfway is removed.
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
