"""Bundles that an evaluation exports: once, and anew for whatever an export depends on."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune.errors import InputError
from edgeprune.evaluation.exporting import UNPRUNED, Bundles, Pruning
from edgeprune.progress import Silent


def test_a_bundle_is_exported_once_and_anew_for_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []

    def export(model: Path, output: Path, **options: Any) -> Path:
        made.append(options)
        output.mkdir()
        return output

    monkeypatch.setattr("edgeprune.export", export)
    model, curve = tmp_path / "model", tmp_path / "curve.json"
    model.mkdir()
    (model / "config.json").write_text("{}")
    curve.write_text("1")
    bundles = Bundles(model, tmp_path / "cache", Silent())
    wanted = Pruning("fastv", 0.3, 1, str(curve))
    first = bundles.of(wanted)
    assert bundles.of(wanted) == first
    assert made == [{"verify": False, **asdict(wanted)}]
    assert first.name.startswith("fastv-0.3-")
    others = [replace(wanted, **change) for change in ({"layer": 2}, {"debias": "padding"}, {"keep": (0.3,)})]
    assert len({first, *map(bundles.of, others)}) == 4
    curve.write_text("2")
    assert bundles.of(wanted) != first
    (model / "config.json").write_text("{ }")
    assert bundles.of(wanted) != first
    assert len(made) == 6


def test_without_a_wish_nothing_is_pruned() -> None:
    assert Pruning().resolved() == UNPRUNED
    assert Pruning().given == []
    assert Pruning(keep=0.3).resolved() == Pruning("fastv", keep=0.3)
    assert Pruning("himap", curve="fastv").given == ["`method`", "`curve`"]


@pytest.mark.parametrize(
    ("pruning", "message"),
    [
        (Pruning("fastw"), "unknown pruning method 'fastw'"),
        (Pruning(debias="all"), "`debias` is 'all': expected position, padding"),
        (Pruning(debias="padding", curve="fastv"), "`debias` leaves positions as they are"),
    ],
)
def test_a_wish_that_no_model_can_fulfil(pruning: Pruning, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pruning.check()
