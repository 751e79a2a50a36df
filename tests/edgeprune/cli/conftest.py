"""Running the command line inside the test's own process, and judging how it failed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgeprune.cli.main import main
from tests.manifests import write_bundle


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one error message; fails unless the command ended as a user's mistake must end."""
        assert self.code in (1, 2, 3), self
        assert self.out == "", self
        lines = self.err.splitlines()
        errors = [line for line in lines if re.match("error: ", line)]
        assert errors == lines[-1:], self
        assert "Traceback" not in self.err, self
        return errors[0].removeprefix("error: ")


Cli = Callable[..., Result]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`cli("run", bundle, ...)` runs one command; what native libraries print is seen too."""
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: str | Path) -> Result:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with a sound manifest; its graphs are no graphs."""
    return write_bundle(tmp_path / "bundle")


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content, to see that nothing changed."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def options(**values: object) -> Sequence[str]:
    """Command line options from keywords: `max_new_tokens=3` is `--max-new-tokens 3`."""
    return [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", str(value))]
