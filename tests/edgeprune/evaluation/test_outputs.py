"""What an evaluation would write over is seen before it begins."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeprune.errors import InputError
from edgeprune.evaluation.comparison import Grid, comparison_outputs
from edgeprune.evaluation.outputs import Outputs, inputs_of
from edgeprune.evaluation.predictions import PredictionFile
from edgeprune.questions.llava import Files
from edgeprune.questions.question import EncodedImage, Question


def outputs(folder: Path) -> Outputs:
    return Outputs((folder / "predictions.jsonl",), (folder / "result.json",))


def test_a_new_folder_and_an_earlier_evaluation_are_fine(tmp_path: Path) -> None:
    outputs(tmp_path / "none").check([])
    PredictionFile(tmp_path / "predictions.jsonl", {}, []).close()
    (tmp_path / "result.json").write_text("earlier")
    outputs(tmp_path).check([])


def test_a_result_without_answers_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("mine")
    with pytest.raises(InputError, match=r"result\.json exists.*move it away"):
        outputs(tmp_path).check([])


def test_a_foreign_file_of_answers_is_seen_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "predictions.jsonl").write_text('{"mine": 1}')
    with pytest.raises(InputError, match="no file of predictions"):
        outputs(tmp_path).check([])


@pytest.mark.parametrize("way", ["same", "link", "hard link"])
def test_the_question_file_is_never_written_over(tmp_path: Path, way: str) -> None:
    data = tmp_path / "predictions.jsonl"
    if way == "same":
        data.write_text("x")
    else:
        data = tmp_path / "questions.jsonl"
        data.write_text("x")
        place = tmp_path / "predictions.jsonl"
        place.symlink_to(data) if way == "link" else os.link(data, place)
    with pytest.raises(InputError, match=r"the output .* and the input .* are one file"):
        outputs(tmp_path).check([data])


def test_every_file_of_the_questions_counts_as_input(tmp_path: Path) -> None:
    questions = [
        Question(id=1, where="", prompt="", images=(tmp_path / "a.png", EncodedImage("eA=="))),
        Question(id=2, where="", prompt="", images=(tmp_path / "a.png",)),
    ]
    files = Files(tmp_path / "q.jsonl", annotations=tmp_path / "a.json")
    assert inputs_of(files, questions) == [tmp_path / "q.jsonl", tmp_path / "a.json", tmp_path / "a.png"]


def test_a_comparison_names_all_its_files(tmp_path: Path) -> None:
    found = comparison_outputs(Grid(keeps=(0.3,), debias=("none", "both")), tmp_path)
    assert [path.name for path in found.predictions] == [
        "unpruned.jsonl",
        "resize-0.3.jsonl",
        "random-0.3.jsonl",
        "random-among-content-0.3.jsonl",
        "fastv-0.3.jsonl",
        "fastv-+-both-0.3.jsonl",
    ]
    assert [path.name for path in found.results] == ["comparison.md", "comparison.json", "comparison.png"]
