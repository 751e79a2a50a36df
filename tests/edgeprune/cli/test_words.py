"""One word for one thing: help texts and documents keep to the glossary of CONTRIBUTING.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgeprune.cli.main import COMMANDS
from tests.edgeprune.cli.conftest import Cli

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# A word to avoid -> what it is called. Paths of sample files, and one study's measurements, are not prose.
AVOIDED = {
    r"\bpictures?\b": "image",
    r"\bselections behind\b": "stage",
    r"\bpreprocessing\b": "image program",
}
_PATHS = re.compile(r"samples/pictures\S*")
_STUDIES = {"recency.md"}


def avoided(text: str) -> list[str]:
    prose = _PATHS.sub("", text)
    return [found for word in AVOIDED for found in re.findall(word, prose, re.IGNORECASE)]


def test_the_glossary_is_in_contributing() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z][^|]*) \| [^|]+ \| [^|]*\|$", text.split("### Words")[1], re.MULTILINE)
    assert len(rows) >= 15
    assert {"image", "stage", "keep ratio", "back end"} <= set(rows)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_documents_keep_to_the_words(page: Path) -> None:
    if page.name in _STUDIES:
        pytest.skip("a study's own words")
    assert avoided(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_texts_keep_to_the_words(cli: Cli, command: str) -> None:
    assert avoided(cli(command, "--help").out) == []
