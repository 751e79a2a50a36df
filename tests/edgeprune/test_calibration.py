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
    State,
    digest,
    picture_numbers,
    plot,
    read_samples,
)
from edgeprune.curves import ExponentialCurve, FittedTo, load_curve, save_curve
from edgeprune.errors import InputError, OutputError
from edgeprune.fitting import Attention, fit
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
    with pytest.raises(InputError, match="--limit is 0"):
        read_samples(folder, limit=0)


SETTINGS = {"method": "fastv", "grid": [6, 6]}


def add(attention: Attention, count: int = 5) -> None:
    rng = np.random.default_rng(attention.samples)
    numbers = np.arange(attention.samples, attention.samples + count)
    valid = (rng.random((count, 36)) > 0.2).astype(np.float32)
    attention.add(rng.random((count, 36)).astype(np.float32), valid, numbers)


def test_an_unfinished_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    first = State(path, SETTINGS, 36)
    add(first.attention)
    first.save()
    again = State(path, SETTINGS, 36)
    assert again.attention.samples == again.attention.pictures == 5
    add(first.attention)
    add(again.attention)
    for name in ("sums", "counts", "padding_paid", "total_paid", "padded", "tokens"):
        assert np.array_equal(getattr(again.attention, name), getattr(first.attention, name)), name
    again.remove()
    assert State(path, SETTINGS, 36).attention.samples == 0


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    State(path, SETTINGS, 36).save()
    with pytest.raises(InputError, match=r"other settings \(method was fastv and is himap\).*--restart"):
        State(path, {**SETTINGS, "method": "himap"}, 36)
    with pytest.raises(InputError, match="another number of visual tokens"):
        State(path, SETTINGS, 35)
    assert State(path, {}, 36, restart=True).attention.samples == 0


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 no archive"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no unfinished calibration"):
        State(path, SETTINGS, 36)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    np.savez(path, settings=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="is no unfinished calibration"):
        State(path, SETTINGS, 36)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="what was measured so far cannot be written"):
        State(tmp_path / "nowhere" / "state.npz", SETTINGS, 36).save()


@pytest.fixture
def calibration() -> Calibration:
    attention = Attention.empty(36)
    valid = np.ones((60, 36), dtype=np.float32)
    valid[::2, :6] = 0
    paid = np.tile(np.exp(0.02 * np.arange(36)), (60, 1)) * np.random.default_rng(0).uniform(
        0.9, 1.1, (60, 36)
    )
    attention.add(paid.astype(np.float32), valid, np.arange(60))
    found = fit(attention, "exponential")
    return Calibration(ABOUT, attention, found, found.trend.curve.model_copy(update={"fitted_to": ABOUT}))


def test_the_report_has_every_figure(calibration: Calibration) -> None:
    report = json.loads(json.dumps(calibration.to_dict()))
    assert report["model"] == "tiny"
    assert report["chosen"] == "exponential"
    assert report["b"] == pytest.approx(0.02, rel=0.05)
    assert report["last_over_first"] == pytest.approx(np.exp(35 * report["b"]))
    assert report["significant"] is True
    assert report["spearman_before"] > 0.9 > abs(report["spearman_after"])
    assert set(report["trends"]) == {"exponential", "cubic", "smooth"}
    assert report["padding_share_of_tokens"] == pytest.approx(6 / 72)
    assert report["padding_share_of_attention"] < report["padding_share_of_tokens"]
    assert report["samples_per_token"] == [30] * 6 + [60] * 30
    assert report["advice"] is None


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
