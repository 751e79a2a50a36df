"""Comparisons: which ways there are, what is imposed, what is pointless; one real run on the sample model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprune.debias.masks import PaddingMask
from edgeprune.errors import InputError
from edgeprune.evaluation import answering, report
from edgeprune.evaluation.answering import Asking, Choice
from edgeprune.evaluation.benchmarks import benchmark_by_name
from edgeprune.evaluation.comparison import Comparison, Grid, Way, _mask, comparison_of, needs_of, ways
from edgeprune.evaluation.exporting import Bundles, Pruning
from edgeprune.evaluation.predictions import Prediction
from edgeprune.questions.question import Question
from tests.edgeprune.evaluation.test_answering import sample_questions
from tests.manifests import write_bundle

ASKING = Asking(max_new_tokens=4, batch=8, threads=1)
VALID = np.array([0, 0, 1, 1, 1, 1, 1, 1, 0, 0], dtype=np.float32)
QUESTIONS = [replace(question, answers=("right",)) for question in sample_questions()[:8]]


def names(grid: Grid) -> list[tuple[str, float | None]]:
    return [(way.name, way.keep) for way in ways(grid)]


def test_baselines_come_before_what_is_compared_with_them() -> None:
    assert names(Grid(keeps=(0.3,), debias=("both", "none"))) == [
        ("unpruned", None),
        ("resize", 0.3),
        ("random", 0.3),
        ("random among content", 0.3),
        ("fastv", 0.3),
        ("fastv + both", 0.3),
    ]


def test_what_each_way_debiases() -> None:
    assert {way.name: way.debias for way in ways(Grid(keeps=(0.3,), random=False))} == {
        "unpruned": "none",
        "resize": "none",
        "fastv": "none",
        "fastv + position": "position",
        "fastv + padding": "padding",
        "fastv + both": "both",
    }


def test_every_method_at_every_keep_ratio() -> None:
    grid = Grid(methods=("fastv", "himap"), keeps=(0.5, 0.1), random=False)
    assert len(names(grid)) == 1 + 2 * (1 + 2 * 4)


def test_what_position_adds_to_padding_needs_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = pretended(tmp_path, monkeypatch, replace(GRID, debias=("none", "both")))
    assert [outcome.added for outcome in found.outcomes] == [None] * 5


def test_without_the_plain_method_nothing_is_compared_with_it() -> None:
    assert all(way.baseline is None for way in ways(Grid(debias=("both",))))


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (Grid(methods=("fastw",)), "unknown pruning method 'fastw'"),
        (Grid(methods=("fastv", "random")), "random is no method to compare"),
        (Grid(keeps=(1.5,)), "keep ratio is 1.5"),
        (Grid(keeps=(1.0,)), "keep ratio of 1 prunes nothing"),
        (Grid(debias=("all",)), "unknown debias 'all': choose among none, position, padding, both"),
        (Grid(methods=()), "nothing to compare"),
    ],
)
def test_what_cannot_be_compared(grid: Grid, message: str) -> None:
    with pytest.raises(InputError, match=message):
        grid.check()


def test_what_a_way_needs() -> None:
    grid = Grid(keeps=(0.3,), layer=1, curve="fastv")
    found = {way.name: needs_of(way, grid) for way in ways(grid)}
    # One bundle for all of them: what is kept, and by what it is debiased, is chosen in each run.
    assert {needs.pruning for needs in found.values()} == {Pruning("fastv", None, 1, "fastv")}
    chosen = {name: (needs.choice.keep, needs.choice.debias) for name, needs in found.items()}
    assert chosen == {
        "unpruned": (1, "none"),
        "resize": (1, "none"),
        "random": (0.3, "none"),
        "random among content": (0.3, "none"),
        "fastv": (0.3, "none"),
        "fastv + position": (0.3, "position"),
        "fastv + padding": (0.3, "padding"),
        "fastv + both": (0.3, "position,padding"),
    }
    assert [name for name, needs in found.items() if needs.choice.resize == 3000] == ["resize"]
    masked = [name for name, needs in found.items() if needs.choice.mask is not None]
    assert masked == ["random", "random among content"]


def test_what_a_vision_tower_merges_is_exported_for_every_keep_ratio() -> None:
    found = [needs_of(way, Grid()) for way in ways(Grid(methods=("illava",), keeps=(0.5, 0.3), random=False))]
    merging = [needs for needs in found if needs.pruning != Pruning("fastv")]
    assert len(found) - len(merging) == 3  # unpruned, and resized at each keep ratio
    assert {needs.pruning for needs in merging} == {Pruning("illava", 0.5), Pruning("illava", 0.3)}
    assert {needs.choice.keep for needs in merging} == {None}


def imposed(drawn: str, number: int = 0, seed: int = 0, valid: Any = VALID) -> Any:
    found = _mask(Way("", "fastv", 0.4, drawn=drawn), seed)
    assert found is not None
    return found(valid, number)


def test_a_random_selection_marks_exactly_as_many_as_are_kept() -> None:
    chosen = [imposed("all", number) for number in range(200)]
    assert {mask.sum() for mask in chosen} == {4}
    # Every token has its turn, padding too.
    assert (np.sum(chosen, axis=0) > 40).all()


def test_a_random_selection_among_content_leaves_padding_out() -> None:
    chosen = [imposed("content", number) for number in range(200)]
    assert {mask.sum() for mask in chosen} == {4}
    assert (np.sum(chosen, axis=0)[VALID == 0] == 0).all()


def test_random_selections_are_repeatable_and_differ_by_question_and_seed() -> None:
    assert (imposed("all", 3) == imposed("all", 3)).all()
    assert (imposed("all", 3) != imposed("all", 4)).any()
    assert (imposed("all", 3) != imposed("all", 3, seed=1)).any()


def test_what_is_not_drawn_is_not_imposed() -> None:
    assert _mask(Way("", "fastv", 0.4), 0) is None
    assert len(imposed("all", valid=VALID[:0])) == 0


class Pretended(Bundles):
    """Handmade bundles in the place of exported ones."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.root, self.changes = root, changes

    def of(self, pruning: Pruning) -> Path:
        folder = self.root / pruning.name()
        if not folder.exists():
            write_bundle(folder, method=pruning.method, **self.changes)
        return folder


class Answering:
    """Right for every second question; for all of them unpruned, with padding debiased, or by the plan."""

    def __init__(self, folder: Path, asking: Asking, choice: Choice) -> None:
        self.whole = choice.keep == 1
        self.good = choice.keep is None or self.whole or "padding" in (choice.debias or "")

    def answer(self, numbered: Sequence[tuple[int, Question]]) -> list[tuple[int, Prediction]]:
        kept = (16,) if self.whole else (5,)
        return [
            (
                n,
                Prediction(
                    "right" if self.good or n % 2 else "wrong",
                    16,
                    kept,
                    2,
                    1,
                    None if question.asked_token is None else (n < question.asked_token,) * len(kept),
                ),
            )
            for n, question in numbered
        ]


def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grid: Grid, **changes: Any) -> Comparison:
    monkeypatch.setattr(answering, "Bundle", Answering)
    bundles = Pretended(tmp_path / "bundles", **changes)
    return comparison_of(bundles, benchmark_by_name("exact"), QUESTIONS, ASKING, grid, tmp_path)


GRID = Grid(keeps=(0.3,), resamples=200)


def test_outcomes_with_paired_differences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = pretended(tmp_path, monkeypatch, GRID)
    by_name = {outcome.way.name: outcome for outcome in found.outcomes}
    assert by_name["unpruned"].main.value == 100
    assert by_name["fastv"].main.value == 50
    assert by_name["fastv"].difference is None
    both = by_name["fastv + both"].difference
    assert both is not None
    assert both.value == 50
    added = by_name["fastv + both"].added
    assert added is not None
    assert added.value == 0
    assert by_name["fastv + padding"].added is None
    assert by_name["fastv"].kept == (5,)
    assert by_name["fastv"].padding == pytest.approx(0.4)
    assert (found.questions, found.images, found.visual_tokens) == (8, 2, 16)


def test_a_comparison_goes_on_and_refuses_another_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pretended(tmp_path, monkeypatch, GRID)
    monkeypatch.undo()  # a bundle that was asked anything now would fail to load
    bundles = Pretended(tmp_path / "bundles")
    again = comparison_of(bundles, benchmark_by_name("exact"), QUESTIONS, ASKING, GRID, tmp_path)
    assert again == first
    other = replace(GRID, seed=1)
    with pytest.raises(InputError, match="begun with other settings"):
        comparison_of(bundles, benchmark_by_name("exact"), QUESTIONS, ASKING, other, tmp_path)


def test_what_would_repeat_another_way_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = pretended(tmp_path, monkeypatch, GRID, padding_mask=PaddingMask(kind="none"), debias="")
    assert [outcome.way.name for outcome in found.outcomes] == ["unpruned", "random", "fastv"]
    assert len(found.left_out) == 3
    assert "images of every size have as many visual tokens" in found.left_out[0]
    assert "no bias curve of fastv is fitted to this model" in " ".join(found.left_out)


def test_only_what_can_be_scored_is_compared(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="MM-Vet cannot be scored here"):
        comparison_of(Pretended(tmp_path), benchmark_by_name("mmvet"), QUESTIONS, ASKING, GRID, tmp_path)
    without = [replace(QUESTIONS[0], answers=())]
    with pytest.raises(InputError, match="`annotations`"):
        comparison_of(Pretended(tmp_path), benchmark_by_name("vqav2"), without, ASKING, GRID, tmp_path)


def test_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = pretended(tmp_path, monkeypatch, Grid(keeps=(0.3, 0.1), resamples=200))
    report.write(found, tmp_path)
    report.plot(found, tmp_path / "comparison.png")
    table = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "8 questions about 2 images" in table
    assert "| keep | 0.3 | 0.1 |" in table
    assert "| fastv + both | **+50.0 (+50.0 to +50.0)** |" in table
    assert "| fastv + both | +0.0 (+0.0 to +0.0) |" in table
    assert "| fastv | 5 / 40 | 5 / 40 |" in table
    assert "asked token" not in table
    read = json.loads((tmp_path / "comparison.json").read_text())
    assert read["outcomes"][0]["way"]["name"] == "unpruned"
    assert (tmp_path / "comparison.png").stat().st_size > 5000


def test_the_share_of_asked_tokens_that_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column for questions that say which token it is; the others do not count."""
    named = [replace(question, asked_token=2 if n < 4 else None) for n, question in enumerate(QUESTIONS)]
    monkeypatch.setattr(answering, "Bundle", Answering)
    bundles, grid = Pretended(tmp_path / "bundles"), Grid(keeps=(0.3,), resamples=50)
    found = comparison_of(bundles, benchmark_by_name("exact"), named, ASKING, grid, tmp_path)
    by_name = {outcome.way.name: outcome.asked for outcome in found.outcomes}
    assert by_name["fastv"] == (0.5,)
    assert by_name["unpruned"] == (0.5,)
    report.write(found, tmp_path)
    table = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "| fastv | 50 |" in table.split("asked token is still there")[1]


def test_a_debias_looks_alike_in_every_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another method lacks some, so that the one legend is right for all."""
    found = pretended(tmp_path, monkeypatch, Grid(keeps=(0.3,), resamples=50))
    fewer = [
        replace(
            outcome, way=replace(outcome.way, name=outcome.way.name.replace("fastv", "himap"), method="himap")
        )
        for outcome in found.outcomes
        if outcome.way.name in ("fastv", "fastv + padding")
    ]
    drawn: list[Any] = []
    monkeypatch.setattr(report, "save_figure", lambda figure, path: drawn.append(figure))
    report.plot(replace(found, outcomes=(*found.outcomes, *fewer)), tmp_path / "p.png")
    first, second, *_ = (
        {line.get_color() for line in panel.get_lines() if line.get_marker() == "v"}
        for panel in drawn[0].axes
    )
    assert first == second != set()
