"""The normalisations and extractions, on examples that follow from their definitions."""

from __future__ import annotations

import pytest

from edgeprune.evaluation.answers import (
    evalai_normalised,
    mme_label,
    option_letter,
    plain,
    pope_says_yes,
    scienceqa_letter,
    vqa_normalised,
)


@pytest.mark.parametrize(
    ("answer", "normalised"),
    [
        ("The Dog", "dog"),
        ("two", "2"),
        ("none", "0"),
        ("ten apples", "10 apples"),
        ("isnt", "isn't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("y'alld've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        ("black-white", "black white"),  # no space beside the mark: a space
        ("black - white", "black white"),  # a space beside it: nothing
        ("1,000", "1000"),  # a comma inside a number: marks vanish
        ("red,blue", "red blue"),
        ("3.5", "3.5"),
        ("a.b.", "ab"),
        ("v.2", "v.2"),
        ("on\nthe\ttable ", "on table"),
    ],
)
def test_vqa_normalisation(answer: str, normalised: str) -> None:
    assert vqa_normalised(answer) == normalised


def test_only_so_many_full_stops_are_removed() -> None:
    assert vqa_normalised("." * 40) == "." * 8


@pytest.mark.parametrize(
    ("answer", "normalised"),
    [("Dog's", "dog 's"), ("1,000?", "1000"), ("Yes, it is", "yes it is"), ("A  RED\nbus", "red bus")],
)
def test_evalai_normalisation(answer: str, normalised: str) -> None:
    assert evalai_normalised(answer) == normalised


def test_plain_answers() -> None:
    assert plain(" Left. ") == "left"


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no, there is none", False),
        ("There is not", False),
        ("Yes. There is no dog", True),  # the first sentence alone counts
        ("None", True),  # no word of the three
        ("", True),
    ],
)
def test_pope_reads_yes_unless_it_says_no(answer: str, yes: bool) -> None:
    assert pope_says_yes(answer) is yes


@pytest.mark.parametrize(
    ("answer", "label"), [("Yes", "yes"), ("NO.", "no"), ("Well, yes", "other"), ("unknown", "other")]
)
def test_mme_labels(answer: str, label: str) -> None:
    # "unknown" has "no" only after its first four letters.
    assert mme_label(answer) == label


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("C. a frog", "C"),
        ("The answer is D.", "D"),
        ("The answer is A. No: The answer is B.", None),
        ("B) a frog", None),
        ("F", None),
        ("", None),
    ],
)
def test_scienceqa_letters(answer: str, letter: str | None) -> None:
    assert scienceqa_letter(answer) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(c)", None),  # letters are capitals
        ("Answer: C", "C"),
        ("B. a red bus", "B"),
        ("A or B", None),
        ("A", "A"),
        ("A dog is on it", "C"),  # the article; the text of C
        ("it shows a cat", "B"),
        ("a cat and a dog", None),
        ("D", None),  # there are three options
    ],
)
def test_mmbench_letters(answer: str, letter: str | None) -> None:
    assert option_letter(answer, ("bus", "Cat", "dog")) == letter
