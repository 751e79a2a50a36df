"""Files to hand in, in the graders' own forms."""

from __future__ import annotations

import json
from pathlib import Path

from edgeprune.evaluation import submissions
from edgeprune.questions.question import Question


def question(id: str | int, **fields: str) -> Question:
    return Question(id=id, where="", prompt="what?", answers=("a dog",), fields=fields)


def test_vqav2(tmp_path: Path) -> None:
    submissions.vqav2([question(7), question(8)], ["The Dog.", "two"], tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text()) == [
        {"question_id": 7, "answer": "dog"},
        {"question_id": 8, "answer": "2"},
    ]


def test_vizwiz(tmp_path: Path) -> None:
    submissions.vizwiz([question(0, image="VizWiz_test_0.jpg")], ["Unanswerable"], tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text()) == [
        {"image": "VizWiz_test_0.jpg", "answer": "unanswerable"}
    ]


def test_mmvet_names_questions_by_version(tmp_path: Path) -> None:
    submissions.mmvet([question(3), question("v1_4")], ["A dog. It sits.", "é"], tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text(encoding="utf-8")) == {
        "v1_3": "A dog. It sits.",
        "v1_4": "é",
    }


def test_gqa(tmp_path: Path) -> None:
    submissions.gqa([question("0123")], ["Left."], tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text()) == [{"questionId": "0123", "prediction": "left"}]


def test_videos_come_with_the_reference_for_the_judge(tmp_path: Path) -> None:
    submissions.video([question("v_1")], ["dog"], tmp_path / "s.jsonl")
    assert json.loads((tmp_path / "s.jsonl").read_text()) == {
        "id": "v_1",
        "question": "what?",
        "answer": "a dog",
        "pred": "dog",
    }
