"""The accuracy measurement, in a size that takes under a minute."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import sample_accuracy
from benchmarks.sample_accuracy import CURVE_SEEDS, QUICK, SAMPLE, Extent
from samples.evaluate import measure
from samples.scenes import HELD_OUT_SEEDS, TUNING_SEEDS


@pytest.mark.slow
def test_quick_run(tmp_path, capsys):
    assert sample_accuracy.main(["-o", str(tmp_path), "--quick"]) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "sample-accuracy.json").read_text())
    figures = {figure["name"]: figure for figure in report["figures"]}
    assert list(figures) == [variant.name for variant in QUICK.variants]
    # Without pruning the bundle answers as transformers does.
    right, asked = measure(SAMPLE, QUICK.questions, QUICK.seeds)
    assert report["questions"] == asked == QUICK.questions
    assert report["unpruned"]["accuracy"] == pytest.approx(right / asked)
    # The pictures leave enough content tokens to keep no padding where the mask says so.
    for name in ("random among content", "FastV + padding", "FastV + both"):
        assert figures[name]["padding"] == 0
    assert figures["random"]["padding"] > 0
    assert figures["FastV"]["accuracy"] > figures["random"]["accuracy"]
    assert (report["trends"][0]["layer"], report["trends"][0]["pictures"]) == (2, QUICK.curve_pictures)
    assert (tmp_path / "sample-accuracy.md").is_file()
    assert (tmp_path / "sample-accuracy.png").is_file()


def test_pictures_are_apart_from_training_tuning_and_earlier_looks():
    seeds = Extent().seeds
    assert seeds[0] - HELD_OUT_SEEDS[0] >= 60_000
    assert seeds[-1] in HELD_OUT_SEEDS
    assert all(one[0] in TUNING_SEEDS and one[-1] in TUNING_SEEDS for one in (CURVE_SEEDS, QUICK.seeds))


def test_a_picture_is_seen_once_and_every_question_gets_its_own():
    class Graph:
        inputs = outputs = ()
        seen = 0

        def run(self, feeds, outputs):
            Graph.seen += len(feeds["pixel_values"])
            return {"visual_embeds": SimpleNamespace(numpy=lambda: feeds["pixel_values"] * 2)}

    remembering = sample_accuracy._Remembering(Graph())
    pictures = np.array([[1.0], [2.0], [1.0]])
    for _ in range(2):
        found = remembering.run({"pixel_values": pictures}, ["visual_embeds"])
        assert found["visual_embeds"].tolist() == [[2.0], [4.0], [2.0]]
    assert Graph.seen == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--questions", "12"], "--questions is 12: expected 13 to 480000; choose a number in this range"),
        (["--threads", "0"], "--threads is 0: expected 1 to 64; choose a number in this range"),
    ],
)
def test_wrong_numbers_are_refused_in_one_sentence(tmp_path, capsys, arguments, message):
    assert sample_accuracy.main(["-o", str(tmp_path), *arguments]) == 1
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_missing_folder_is_refused(tmp_path, capsys):
    assert sample_accuracy.main(["-o", str(tmp_path / "missing")]) == 1
    assert "missing is not a folder: expected an existing one; create it first" in capsys.readouterr().err


def test_a_missing_model_is_refused(tmp_path, capsys):
    assert sample_accuracy.main(["-o", str(tmp_path), "--model", str(tmp_path / "missing")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.iterdir())
