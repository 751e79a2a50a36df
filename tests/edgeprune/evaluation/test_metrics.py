"""The metrics, against figures worked out by hand from their definitions."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.evaluation.metrics import (
    exact_match,
    leave_one_out,
    mmbench_accuracy,
    mme_score,
    pope_f1,
    scienceqa_accuracy,
    textvqa_accuracy,
    vqa_accuracy,
)
from edgeprune.questions.question import Question


def question(
    answers: str | tuple[str, ...],
    group: str = "",
    picture: str = "a",
    unit: str = "",
    choices: tuple[str, ...] = (),
) -> Question:
    return Question(
        id=0,
        where="here",
        prompt="?",
        images=(Path(picture),),
        answers=(answers,) if isinstance(answers, str) else answers,
        group=group,
        unit=unit,
        choices=choices,
    )


@pytest.mark.parametrize(
    ("matches", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_ten_people_as_in_the_vqa_paper(matches: int, accuracy: float) -> None:
    """Averaged over the ten ways to leave one person out, 3 matches are worth 0.9, not 1."""
    references = ["red"] * matches + [f"other {number}" for number in range(10 - matches)]
    assert leave_one_out("red", references) == pytest.approx(accuracy)


def test_vqa_normalises_only_where_people_differ() -> None:
    same, differing = question(("a dog",) * 10), question(("a dog",) * 9 + ("cat",))
    assert vqa_accuracy([same], ["dog"]).result()["accuracy"] == 0
    assert vqa_accuracy([same], [" a\ndog "]).result()["accuracy"] == 100
    assert vqa_accuracy([differing], ["dog"]).result()["accuracy"] == 100


def test_textvqa_always_normalises() -> None:
    assert textvqa_accuracy([question(("a dog",) * 10)], ["Dog"]).result()["accuracy"] == 100


def test_accuracy_by_answer_type() -> None:
    asked = [question(("yes",) * 10, "yes/no"), question(("two",) * 10, "number", "b")]
    found = vqa_accuracy(asked, ["yes", "three"]).result()
    assert found == {"accuracy": 50, "accuracy (yes/no)": 100, "accuracy (number)": 0}


def test_gqa_by_structure() -> None:
    asked = [question("left", "binary"), question("car", "open"), question("bus", "open", "b")]
    found = exact_match(asked, ["Left.", "cars", "bus"]).result()
    assert found["accuracy"] == pytest.approx(200 / 3)
    assert found["accuracy (open)"] == 50
    assert found["accuracy (binary)"] == 100


def test_pope_counts_per_category_and_averages() -> None:
    asked = [question(label, "random") for label in ("yes", "yes", "no", "no")]
    asked += [question(label, "popular") for label in ("yes", "no")]
    found = pope_f1(asked, ["yes", "no", "yes", "no", "yes", "no"]).result()
    # random: one of each kind. popular: all right.
    assert found["precision (random)"] == found["recall (random)"] == found["F1 (random)"] == 50
    assert found["F1 (popular)"] == 100
    assert found["F1"] == 75
    assert found["accuracy"] == 75
    assert found["yes ratio"] == 50


def test_pope_without_any_yes_is_zero_not_a_failure() -> None:
    assert pope_f1([question("no")], ["no"]).result()["F1"] == 0


def test_mme_adds_accuracy_and_accuracy_plus() -> None:
    asked = [question(label, "color", "a", "color/a") for label in ("yes", "no")]
    asked += [question(label, "color", "b", "color/b") for label in ("yes", "no")]
    asked += [question(label, "code_reasoning", "c", "code_reasoning/c") for label in ("yes", "no")]
    found = mme_score(asked, ["yes", "no", "yes", "yes", "no", "other"]).result()
    # color: 3 of 4 questions, 1 of 2 images.
    assert found["score (color)"] == found["perception"] == 125
    assert found["cognition"] == 0
    assert found["total"] == 125
    assert found["accuracy"] == 50
    assert found["accuracy+"] == pytest.approx(100 / 3)


def test_mmbench_counts_a_question_only_when_every_rotation_is_right() -> None:
    choices = ("bus", "cat")
    asked = [
        question("A", unit="1", choices=choices),
        question("B", unit="1", choices=choices[::-1]),
        question("B", unit="2", choices=choices),
        question("A", unit="2", choices=choices[::-1]),
        question("A", unit="3", choices=choices),
        question("B", unit="3", choices=choices[::-1]),
    ]
    found = mmbench_accuracy(asked, ["A", "B", "B", "B", "B", "B"]).result()
    assert found["circular accuracy"] == pytest.approx(100 / 3)
    assert found["accuracy"] == pytest.approx(200 / 3)


def test_scienceqa_by_picture() -> None:
    asked = [question("A", "image"), question("B", "text", "b")]
    found = scienceqa_accuracy(asked, ["A", "A. because"]).result()
    assert found == {"accuracy": 50, "accuracy (image)": 100, "accuracy (text)": 0}


def test_questions_about_one_picture_are_one_unit() -> None:
    asked = [question("x", picture="a"), question("x", picture="b"), question("x", picture="a")]
    tally = exact_match(asked, ["x", "x", "y"])
    assert tally.counts.tolist() == [[1, 2], [1, 1]]


def test_questions_without_pictures_are_units_of_their_own() -> None:
    asked = [Question(id=n, where="", prompt="", answers=("x",)) for n in range(3)]
    assert len(exact_match(asked, ["x"] * 3).counts) == 3
