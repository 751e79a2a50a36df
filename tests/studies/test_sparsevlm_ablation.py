"""SparseVLM part by part, on two tuning images."""

from __future__ import annotations

import pytest

from edgeprune.plans import METHODS
from studies import sparsevlm_ablation


@pytest.mark.slow
def test_quick_run(capsys: pytest.CaptureFixture[str]) -> None:
    published = METHODS["sparsevlm"]
    # The variant that is exported fastest.
    assert sparsevlm_ablation.main(["--questions", "24", "--seeds", "tuning", "--variants", "8"]) == 0
    assert METHODS["sparsevlm"] is published
    title, words, figures = capsys.readouterr().out.strip().split("\n\n")
    assert title == "24 questions about 2 images"
    assert "| color | (the shape) |" in words
    (row,) = ([cell.strip() for cell in line.strip("|").split("|")] for line in figures.splitlines()[2:])
    assert row[:2] == ["one selection before layer 2, the last token rates", "72"]
    accuracy, masked = (float(cell.split(" ± ")[0]) for cell in row[2:4])
    kept = float(row[4].removesuffix(" %"))
    # What is not kept can only be guessed, one time in eight.
    assert 12.5 < accuracy <= kept + 12.5
    assert accuracy < masked
