"""What the commands print: results on stdout, everything on the way there on stderr."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeprune.cli.text import shows
from edgeprune.errors import InputError, OutputError
from edgeprune.files import write_bytes
from edgeprune.units import bytes_text as bytes_text
from edgeprune.units import digits as digits

if TYPE_CHECKING:
    from PIL import Image

    from edgeprune.progress import Progress

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder that `edgeprune export` wrote.")]
Backend = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Back end, or `auto` for the best one here; `edgeprune doctor` lists them."
    ),
]
Caches = Annotated[
    str | None,
    typer.Option(
        metavar="HOW",
        help="What ONNX Runtime does with its caches: `in-place`, `copied`, or `auto`, the default.",
    ),
]
Threads = Annotated[
    int | None, typer.Option(metavar="N", help="CPU threads; by default the back end's choice.")
]


def print_reason(what: str, reason: str, stderr: bool = True) -> None:
    """One line from the library, with the command line's options in the place of its parameters."""
    from edgeprune.cli.main import in_options

    print(f"{what}: {in_options(reason)}", file=sys.stderr if stderr else sys.stdout)


def print_json(kind: str, value: Mapping[str, object]) -> None:
    """One JSON object that says what it is: `format` changes when a key does."""
    whole = {"format": f"edgeprune.{kind}/1", **value}
    text = json.dumps(whole, indent=2, ensure_ascii=False)
    # Escaped where the terminal or a name's bytes would lose characters.
    print(text if shows(text) else json.dumps(whole, indent=2))


def print_fields(fields: Sequence[tuple[str, str]], stderr: bool = False) -> None:
    """Names and values in two columns."""
    width = max((len(name) for name, _ in fields), default=0)
    for name, value in fields:
        print(f"{name:<{width}}  {value}", file=sys.stderr if stderr else sys.stdout)


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, left: int = 1
) -> None:
    """A table; the first `left` columns are text, the others stand right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    # A terminal's width is the reader's; anywhere else no line shall be cut.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def seconds_text(seconds: float | None) -> str:
    """A duration in the unit that suits it, three digits."""
    if seconds is None:
        return "-"
    return f"{digits(seconds)} s" if seconds >= 0.9995 else f"{digits(seconds * 1000)} ms"


@contextmanager
def progress_on_stderr() -> Iterator[Progress]:
    """Bars where stderr is a terminal, otherwise a line for each step."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as shown:
        bars = _Bars(shown)
        yield bars
        bars.finish()


class _Lines:
    """Progress for logs and pipes."""

    def step(self, name: str, total: int | None = None) -> None:
        print(f"{name} ...", file=sys.stderr, flush=True)

    def advance(self, amount: int) -> None:
        pass


class _Bars:
    """Progress on a terminal: one bar a step, moving where the step's size is unknown."""

    def __init__(self, shown: Any) -> None:
        self._shown = shown
        self._task: Any = None

    def step(self, name: str, total: int | None = None) -> None:
        self.finish()
        self._task = self._shown.add_task(name, total=total)

    def advance(self, amount: int) -> None:
        if self._task is not None:
            self._shown.advance(self._task, amount)

    def finish(self) -> None:
        """The current step, if any, is over."""
        if self._task is not None:
            task = self._shown.tasks[self._task]
            self._shown.update(self._task, total=task.total or 1, completed=task.total or 1)
            self._task = None


def check_image_path(path: Path) -> None:
    """Refuses an image's path before any work is done for it.

    Raises:
        InputError: the name does not end as an image's.
        OutputError: the folder does not exist or cannot be written to; or what is there is no file.
    """
    from PIL import Image

    Image.init()
    writable = {ending for ending, kind in Image.EXTENSION.items() if kind in Image.SAVE}
    if path.suffix.lower() not in writable:
        raise InputError(f"{path} does not end as an image's name: expected .png, .jpg or the like")
    if (os.path.exists(path) and not os.path.isfile(path)) or not os.path.isdir(path.parent):
        raise OutputError(f"{path} cannot be written: expected a file's name in a folder that exists")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path.parent} cannot be written to: choose another place for the image")


def save_image(picture: Image.Image, path: Path) -> None:
    """Writes an image. The file is complete or as it was before, never half written.

    Raises:
        OutputError: it cannot be written.
    """
    from PIL import Image

    Image.init()
    content = io.BytesIO()
    picture.save(content, format=Image.EXTENSION[path.suffix.lower()])
    write_bytes(path, content.getvalue(), "the image")
