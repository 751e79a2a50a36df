"""Answers on disk: going on after an interruption, and refusing to mix runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeprune.errors import InputError
from edgeprune.evaluation.predictions import Prediction, PredictionFile
from edgeprune.evaluation.questions import Question

QUESTIONS = [Question(id=f"q{n}", where="", prompt=f"question {n}") for n in range(3)]
SETTINGS = {"model": "m", "batch": None, "shares": (0.5, 0.3)}


def answer(text: str) -> Prediction:
    return Prediction(text=text, visual_tokens=9, kept=(3, 2), padded_kept=1, new_tokens=2)


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    PredictionFile(path, SETTINGS, QUESTIONS).append([(0, answer("red")), (2, answer("blé"))])
    again = PredictionFile(path, SETTINGS, QUESTIONS)
    assert again.missing == [1]
    again.append([(1, answer("two"))])
    found = PredictionFile(path, SETTINGS, QUESTIONS)
    assert found.missing == []
    assert found.texts() == ["red", "two", "blé"]
    assert found.done[0] == answer("red")


def test_a_line_that_was_cut_off_is_answered_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    PredictionFile(path, SETTINGS, QUESTIONS).append([(0, answer("red")), (1, answer("blue"))])
    path.write_bytes(path.read_bytes()[:-9])
    again = PredictionFile(path, SETTINGS, QUESTIONS)
    assert again.missing == [1, 2]
    again.append([(1, answer("green"))])
    assert PredictionFile(path, SETTINGS, QUESTIONS).done[1].text == "green"


def test_lines_carry_what_other_tools_read(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    PredictionFile(path, SETTINGS, QUESTIONS).append([(1, answer("red"))])
    line = json.loads(path.read_text(encoding="utf-8").splitlines()[1])
    assert line["question_id"] == "q1"
    assert line["prompt"] == "question 1"
    assert line["text"] == "red"


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    PredictionFile(path, SETTINGS, QUESTIONS).append([(0, answer("red"))])
    before = path.read_bytes()
    with pytest.raises(
        InputError, match=r'begun with other settings \(model was "m" and is "n"\).*--restart'
    ):
        PredictionFile(path, {**SETTINGS, "model": "n"}, QUESTIONS)
    with pytest.raises(InputError, match="seed was null and is 1"):
        PredictionFile(path, {**SETTINGS, "seed": 1}, QUESTIONS)
    assert path.read_bytes() == before


def test_restart_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    PredictionFile(path, SETTINGS, QUESTIONS).append([(0, answer("red"))])
    assert PredictionFile(path, {"model": "n"}, QUESTIONS, restart=True).missing == [0, 1, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", "line 2 is no prediction"),
        ("[1]", "line 2 is no prediction"),
        ('{"number": 0, "question_id": "q1"}', "question q1 where q0 is expected"),
        ('{"number": 7, "question_id": "q7"}', "line 2 is no prediction"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "answers.jsonl"
    PredictionFile(path, SETTINGS, QUESTIONS)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=f"{message}.*--restart"):
        PredictionFile(path, SETTINGS, QUESTIONS)


@pytest.mark.parametrize("content", ["", "text\n", '{"question_id": 1}\n', "\x00\xff\n"])
def test_another_file_is_never_written_to(tmp_path: Path, content: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="no file of predictions"):
        PredictionFile(path, SETTINGS, QUESTIONS)
    assert path.read_text(encoding="utf-8") == content
