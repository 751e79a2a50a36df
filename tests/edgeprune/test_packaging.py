"""The distribution holds every package and data file of the three rooms."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 brings the reader of pyproject.toml")

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {"edgeprune": "edgeprune", "export": "edgeprune.exporter", "runtime/python": "edgeprune.runtime"}
# A namespace that other distributions share, so it has no __init__.py: by its folder, and as it is installed.
OPTIMUM = ("edgeprune.exporter.optimum_register", "optimum.commands.register")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def folders_with(pattern: str) -> set[str]:
    """Packages, by their installed names, whose folder holds a file of that pattern."""
    found = set()
    for folder, package in ROOMS.items():
        for path in (ROOT / folder).rglob(pattern):
            below = path.parent.relative_to(ROOT / folder).parts
            if "__pycache__" not in below:
                found.add(".".join([package, *below]))
    return found


def test_every_package_is_listed() -> None:
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == {*folders_with("__init__.py"), OPTIMUM[1]}
    assert SETTINGS["tool"]["setuptools"]["package-dir"][OPTIMUM[1]] == "export/optimum_register"


def test_every_module_lies_in_a_package() -> None:
    assert folders_with("*.py") == {*folders_with("__init__.py"), OPTIMUM[0]}


def test_every_data_file_is_listed() -> None:
    data = SETTINGS["tool"]["setuptools"]["package-data"]
    assert {name for name, patterns in data.items() if "*.json" in patterns} == folders_with("*.json")
    assert data["edgeprune"] == ["py.typed"]


def test_the_version_has_one_source() -> None:
    """What was installed was told the same version as the package has."""
    import edgeprune

    assert SETTINGS["project"]["dynamic"] == ["version"]
    assert SETTINGS["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "edgeprune.__version__"}
    assert version("edgeprune") == edgeprune.__version__


def test_extras_name_what_the_messages_name() -> None:
    extras = SETTINGS["project"]["optional-dependencies"]
    assert {"export", "ort", "ort-gpu", "rtx", "trt", "video", "debug", "dev"} <= set(extras)


def test_the_map_of_contributing_and_the_tree_agree() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split("## Where things live")[1].split("\n\n")[1]
    named = {
        name.split("/")[0]
        for line in table.splitlines()
        for name in re.findall(r"`([a-z]+/)", line.split("|")[1])
    }
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    if not listed:
        pytest.skip("not a checkout")
    folders = {line.split("/")[0] for line in listed if "/" in line and not line.startswith(".")}
    assert folders <= named, folders - named
    rooms = {line.split("/")[1] for line in listed if line.startswith("edgeprune/") and line.count("/") > 1}
    assert all(f"{room}/" in table or room in ("cli",) for room in rooms), rooms
