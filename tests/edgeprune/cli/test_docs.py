"""The commands in docs/ have options that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from edgeprune.cli.main import app

DOCS = Path(__file__).resolve().parents[3] / "docs"


def commands(name: str) -> list[list[str]]:
    """The arguments of every indented `edgeprune ...` line, continued lines put together."""
    text = (DOCS / name).read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^    edgeprune (.*)$", text, re.MULTILINE)]


@pytest.mark.parametrize("name", ["evaluation.md", "calibration.md", "methods-accuracy.md", "tensorrt.md"])
def test_every_command_can_be_parsed(name: str) -> None:
    found = commands(name)
    assert found
    group = typer.main.get_command(app)
    for arguments in found:
        with group.make_context("edgeprune", list(arguments)) as context:
            command = group.get_command(context, arguments[0])  # type: ignore[attr-defined]
            command.make_context(arguments[0], arguments[1:], parent=context)
