"""Calibration without a model: which pictures, an unfinished run on disk, the report and the plot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeprune.calibration import (
    DEFAULT_PROMPT,
    Calibration,
    Sample,
    calibration_of,
    digest,
    picture_numbers,
    plot,
    read_samples,
)
from edgeprune.debias.curves import ExponentialCurve, FittedTo, load_curve, save_curve
from edgeprune.errors import InputError, OutputError
from edgeprune.fitting import Attention
from edgeprune.plans import PruningStage, ScoringRows
from tests.edgeprune.evaluation.files import lines, picture

ABOUT = FittedTo(model="tiny", weights="12ab", method="fastv", layer=2, grid=(6, 6), pictures=60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "c.jpeg"):
        picture(tmp_path / "pictures" / name)
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    return tmp_path / "pictures"


def test_a_folder_in_order_of_names(folder: Path) -> None:
    found = read_samples(folder)
    assert [sample.picture.name for sample in found] == ["a.JPG", "b.png", "c.jpeg"]
    assert {sample.prompt for sample in found} == {DEFAULT_PROMPT}
    assert len(read_samples(folder, limit=2)) == 2


def test_a_list_of_paths_beside_it(folder: Path) -> None:
    listed = folder / "list.txt"
    listed.write_text("c.jpeg\n\n  b.png\n")
    assert [sample.picture for sample in read_samples(listed)] == [folder / "c.jpeg", folder / "b.png"]


def test_a_question_file_brings_its_own_questions(folder: Path) -> None:
    data = lines(
        folder / "q.jsonl",
        {"question_id": 1, "image": "b.png", "text": "what?"},
        {"question_id": 2, "image": "a.JPG", "text": "where?"},
        {"question_id": 3, "image": "b.png", "text": "when?"},
    )
    found = read_samples(data)
    assert found[1] == Sample(folder / "a.JPG", "where?")
    assert picture_numbers(found).tolist() == [0, 1, 0]


def test_prompts_are_asked_in_turn(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("one?\n\ntwo?\n")
    found = read_samples(folder, tmp_path / "prompts.txt")
    assert [sample.prompt for sample in found] == ["one?", "two?", "one?"]


def test_the_digest_tells_pictures_prompts_and_order(folder: Path) -> None:
    found = read_samples(folder)
    others = [found[::-1], found[:2], [*found[:2], Sample(found[2].picture, "?")]]
    assert len({digest(samples) for samples in (found, *others)}) == 4


def test_what_has_no_pictures(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    lines(tmp_path / "q.jsonl", {"question_id": 1, "text": "no picture?"})
    lines(folder / "q.jsonl", {"question_id": 1, "image": ["a.JPG", "b.png"], "text": "two?"})
    (folder / "gone.txt").write_text("gone.png\n")
    for images, message in (
        (tmp_path / "empty", "has no pictures: expected .jpg"),
        (tmp_path / "empty.txt", "has no pictures"),
        (tmp_path / "nowhere", "there is no file .*nowhere"),
        (tmp_path / "q.jsonl", "line 1: 0 pictures: expected one"),
        (folder / "q.jsonl", "line 1: 2 pictures: expected one"),
        (folder / "gone.txt", "there is no picture .*gone.png, which .*gone.txt names"),
    ):
        with pytest.raises(InputError, match=message):
            read_samples(images)
    with pytest.raises(InputError, match=r"empty.txt is empty: expected a question"):
        read_samples(folder, tmp_path / "empty.txt")
    with pytest.raises(InputError, match="`limit` is 0"):
        read_samples(folder, limit=0)


def gathered(b: float, seed: int = 0) -> Attention:
    attention = Attention.empty(36)
    valid = np.ones((60, 36), dtype=np.float32)
    valid[::2, :6] = 0
    paid = np.exp(b * np.arange(36)) * np.random.default_rng(seed).uniform(0.9, 1.1, (60, 36))
    attention.add(paid.astype(np.float32), valid, np.arange(60))
    return attention


STAGES = (
    PruningStage(layer=2, score_layer=1, rows=ScoringRows.TEXT_AFTER_IMAGE, keep=5000),
    PruningStage(layer=4, score_layer=3, rows=ScoringRows.IMAGE, keep=5000),
)


@pytest.fixture
def calibration() -> Calibration:
    return calibration_of(ABOUT, STAGES, [gathered(0.02), gathered(0.05, 1)], "exponential")


def test_the_report_has_every_figure(calibration: Calibration) -> None:
    report = json.loads(json.dumps(calibration.to_dict()))
    assert (report["model"], report["layer"], report["advice"]) == ("tiny", 2, None)
    first, second = report["stages"]
    assert [first[name] for name in ("layer", "score_layer", "rows")] == [2, 1, "text_after_image"]
    assert [second[name] for name in ("layer", "score_layer", "rows")] == [4, 3, "image"]
    for stage, b in ((first, 0.02), (second, 0.05)):
        assert stage["chosen"] == "exponential"
        assert stage["b"] == pytest.approx(b, rel=0.05)
        assert stage["last_over_first"] == pytest.approx(np.exp(35 * stage["b"]))
        assert stage["significant"] is True
        assert stage["spearman_before"] > 0.9 > abs(stage["spearman_after"])
        assert set(stage["trends"]) == {"exponential", "cubic", "smooth"}
        assert stage["padding_share_of_tokens"] == pytest.approx(6 / 72)
        assert stage["padding_share_of_attention"] < stage["padding_share_of_tokens"]
        assert stage["samples_per_token"] == [30] * 6 + [60] * 30


def test_the_curve_is_the_first_stages(calibration: Calibration) -> None:
    assert isinstance(calibration.curve, ExponentialCurve)
    assert calibration.curve.b == calibration.fit.slope.b == pytest.approx(0.02, rel=0.05)
    assert calibration.curve.fitted_to == ABOUT
    assert calibration.curve.source == "measured on tiny, fastv before layer 2, 60 pictures"


def flat_but_for_a_few() -> Attention:
    """0 in the middle, which no trend goes through."""
    found = gathered(0.0)
    found.sums[:, 10:20] = 0
    return found


def test_a_later_stage_that_cannot_be_fitted_costs_no_curve(tmp_path: Path) -> None:
    found = calibration_of(ABOUT, STAGES, [gathered(0.02), flat_but_for_a_few()])
    report = json.loads(json.dumps(found.to_dict()))
    assert report["stages"][1]["fault"].startswith("of 36 visual tokens 36 ever show a picture")
    assert report["stages"][1]["padding_share_of_tokens"] > 0
    assert "b" not in report["stages"][1]
    plot(found, tmp_path / "curve.png")
    with pytest.raises(InputError, match="expected at least 8, all above 0"):
        calibration_of(ABOUT, STAGES, [flat_but_for_a_few(), gathered(0.02)])


def test_a_kind_that_only_the_first_stage_can_have() -> None:
    steep = Attention.empty(36)
    paid = np.tile(1e-4 + 5.0 * (np.arange(36) > 31), (60, 1)).astype(np.float32)
    steep.add(paid, np.ones_like(paid), np.arange(60))
    found = calibration_of(ABOUT, STAGES, [gathered(0.02), steep], "cubic")
    assert found.fit.chosen == "cubic"
    later = found.stages[1].fit
    assert later is not None
    assert "cubic" not in later.trends


def test_the_plot(calibration: Calibration, tmp_path: Path) -> None:
    plot(calibration, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    with pytest.raises(OutputError, match="the plot cannot be written"):
        plot(calibration, tmp_path / "nowhere" / "curve.png")


def test_a_curve_keeps_what_it_was_fitted_to(calibration: Calibration, tmp_path: Path) -> None:
    save_curve(calibration.curve, tmp_path / "curve.json")
    assert load_curve(tmp_path / "curve.json") == calibration.curve
    assert json.loads((tmp_path / "curve.json").read_text())["fitted_to"]["grid"] == [6, 6]
    save_curve(ExponentialCurve(b=0.1, num_tokens=4), tmp_path / "plain.json")
    assert "fitted_to" not in json.loads((tmp_path / "plain.json").read_text())


def test_a_curve_written_by_an_earlier_version_still_loads(tmp_path: Path) -> None:
    about = (
        '"model": "tiny", "weights": "12ab", "method": "fastv", "layer": 2, "grid": [6, 6], "pictures": 60'
    )
    text = '{"source": "measured", "fitted_to": {%s}, "kind": "exponential", "b": 0.02, "num_tokens": 36}'
    (tmp_path / "earlier.json").write_text(text % about)
    assert load_curve(tmp_path / "earlier.json").fitted_to == ABOUT
