"""`optimum-cli export edgeprune` hands its arguments to `edgeprune export`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from edgeprune.cli import main as cli

optimum_cli = pytest.importorskip("optimum.commands.optimum_cli")
FILE = Path(__file__).resolve().parents[2] / "export" / "optimum_register" / "edgeprune.py"


def optimum(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Runs optimum-cli as if the file lay in its namespace; returns the exit status."""
    spec = importlib.util.spec_from_file_location("optimum_register_edgeprune", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    commands = module.REGISTER_COMMANDS
    monkeypatch.setattr(optimum_cli, "load_optimum_namespace_cli_commands", lambda: commands)
    monkeypatch.setattr(sys, "argv", ["optimum-cli", "export", "edgeprune", *arguments])
    with pytest.raises(SystemExit) as left:
        optimum_cli.main()
    return left.value.code


@pytest.mark.parametrize(
    "arguments",
    [
        ["MODEL", "--keep", "0.3", "-o", "out", "--force"],
        ["--keep", "0.3", "MODEL"],
        ["--help"],
        [],
    ],
    ids=" ".join,
)
def test_every_argument_is_handed_on(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def main(given: list[str]) -> int:
        seen.append(given)
        return 3

    monkeypatch.setattr(cli, "main", main)
    assert optimum(monkeypatch, *arguments) == 3
    assert seen == [["export", *arguments]]


def test_errors_are_the_commands_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert optimum(monkeypatch, "somewhere", "--keep", "3") == 1
    assert "keep ratio is 3" in capsys.readouterr().err


def test_the_namespace_stays_open_for_others() -> None:
    assert [path.name for path in FILE.parent.iterdir() if path.name != "__pycache__"] == ["edgeprune.py"]
