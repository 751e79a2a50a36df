"""Every command that the documents name has options that exist, with values that are accepted."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from edgeprune.cli.main import app
from edgeprune.cli.pruning import read_layers, read_shares
from edgeprune.evaluation.benchmarks import benchmark_by_name
from edgeprune.plans import METHODS, method_by_name, read_debias

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "samples" / "README.md",
    ROOT / "plugins" / "README.md",
    ROOT / "studies" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
# The options of programs that are not ours, where our documents speak of them.
FOREIGN = {
    "--show",
    "--dynamicPlugins",
    "--setPluginsToSerialize",
    "--staticPlugins",
    "--plugins",
    "--output-on-failure",
}


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8").replace("\\\n", " ")


def code_of(text: str) -> str:
    """The fenced blocks for a shell, and the indented lines."""
    fenced = re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    return "\n".join([*fenced, *re.findall(r"^    (.*)$", text, re.M)])


def lines_of(program: str) -> list[Any]:
    """The arguments of every line of code that calls a program, continued lines put together."""
    return [
        pytest.param(shlex.split(line, comments=True), id=f"{document.name}: {line}")
        for document in DOCUMENTS
        for line in re.findall(
            rf"^(?:.* \| |/usr/bin/time -v | *){program}(.*)$", code_of(text_of(document)), re.M
        )
    ]


@cache
def group() -> Any:
    return typer.main.get_command(app)


def options_of(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("arguments", lines_of("edgeprune "))
def test_every_command_line_can_be_run(arguments: list[str]) -> None:
    with group().make_context("edgeprune", list(arguments)) as context:
        command = group().get_command(context, arguments[0])
        given = command.make_context(arguments[0], arguments[1:], parent=context).params
    # A loop of the shell goes over methods.
    names = METHODS if given.get("method") == "$method" else [given.get("method") or "fastv"]
    assert all(method_by_name(name) for name in names)
    read_shares(given.get("keep"))
    read_layers(given.get("layer"))
    read_debias(given.get("debias"))
    if "metric" in given:
        benchmark_by_name(given["metric"])
    if given.get("compare"):
        assert not any(given[name] for name in ("method", "keep", "debias"))
        assert given["methods"] == "$method" or all(map(method_by_name, given["methods"].split(",")))
        assert read_shares(given["keeps"])


def test_there_are_command_lines_to_be_found() -> None:
    assert len(lines_of("edgeprune ")) > 25
    assert len(lines_of("python (?!-c)")) > 10


@pytest.mark.parametrize("arguments", lines_of("python (?!-c)"))
def test_every_script_has_its_options(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        arguments = [arguments[1].replace(".", "/") + ".py", *arguments[2:]]
    source = (ROOT / arguments[0]).read_text(encoding="utf-8")
    for option in arguments[1:]:
        assert not option.startswith("-") or f'"{option}"' in source, option


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_what_is_named_in_the_text_exists(document: Path) -> None:
    scripts = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("[bs]*/*.py"))
    commands = {name: options_of(command) for name, command in group().commands.items()}
    every = set.union(options_of(group()), *commands.values())
    for code in re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```$|^    [^\n]*$", "", text_of(document))):
        words = code.split()
        known = every
        if words[0] == "edgeprune" and len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in commands, code
            known = commands[words[1]]
        for option in re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", code):
            ours = option in known or (known is every and f'"{option}"' in scripts)
            assert (
                ours or option in FOREIGN or words[0] in ("cmake", "pip", "make", "ctest", "/usr/bin/time")
            ), (code, option)


def test_the_published_settings_keep_what_the_table_says() -> None:
    table = re.findall(
        r"^\| `(\w+)` \|[ \d]*\| `--layer (\S+) --keep (\S+)` \| ([\d, ]+) \|",
        text_of(ROOT / "docs/methods.md"),
        re.M,
    )
    assert len(table) == 14
    for method, layer, keep, tokens in table:
        for layers in (32, 40):
            plan = METHODS[method].plan(layers, read_shares(keep), read_layers(layer), visual_tokens=576)
            assert [found.kept for found in plan.counts(576)] == list(map(int, tokens.split(","))), (
                method,
                keep,
            )
            assert [stage.layer for stage in plan.stages] == list(map(int, layer.split(",")))
