"""The library's messages: in the words of Python callers, and never printed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprune.cli.words import with_options

ROOT = Path(__file__).resolve().parents[2]
# What only ever runs as a command of its own, or makes whole command lines for people to type.
COMMAND_LINES = {
    "runtime/python/backends/ort_engines.py",
    "runtime/python/backends/tensorrt/sidecar.py",
    "export/optimum_register/edgeprune.py",
}
LIBRARY = sorted(
    path
    for room in ("edgeprune", "export", "runtime/python")
    for path in (ROOT / room).rglob("*.py")
    if "cli" not in path.relative_to(ROOT).parts and str(path.relative_to(ROOT)) not in COMMAND_LINES
)
_OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*\b")
_COMMAND = re.compile(r"`edgeprune [^`]*`")


def strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every text but docstrings, with its line; of an f-string the fixed parts."""
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node.lineno, node.value


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_message_names_an_option_of_the_command_line(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [
        (line, text)
        for line, text in strings(tree)
        # A sentence, not a marker of a format or an argument of a compiler.
        if " " in text.strip() and _OPTION.search(_COMMAND.sub("", text))
    ]
    assert not found


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_library_code_prints(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    printing = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        # Children answer their parents in lines.
        and not any(keyword.arg == "file" for keyword in node.keywords)
    ]
    assert not printing


OPTIONS = {"keep": "--keep", "force": "--force", "max_new_tokens": "--max-new-tokens"}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("`max_new_tokens` is 0", "--max-new-tokens is 0"),
        ("add `force=True`", "add --force"),
        ("give `keep=0.3`", "give --keep 0.3"),
        ("give `keep='0.3'`", "give --keep 0.3"),
        ("take `verify=False`", "take --no-verify"),
        ("no `targets`", "no --target"),
        ("`unknown` and `unknown=1` stay", "`unknown` and `unknown=1` stay"),
        ("`edgeprune run out` stays", "`edgeprune run out` stays"),
    ],
)
def test_parameters_become_options(message: str, expected: str) -> None:
    assert with_options(message, OPTIONS) == expected
