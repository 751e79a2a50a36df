"""Asking a real bundle: the same answers as the runtime gives, resumed runs, imposed selections."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeprune.bundle import read_manifest, write_manifest
from edgeprune.errors import InputError
from edgeprune.evaluation import answering
from edgeprune.evaluation.answering import Asking, Bundle, Choice, ask, settings_of
from edgeprune.evaluation.predictions import Prediction, PredictionFile
from edgeprune.questions.question import EncodedImage, Question
from tests.edgeprune.evaluation.files import PICTURES, encoded

ASKING = Asking(max_new_tokens=4, batch=3, threads=1)


def sample_questions() -> list[Question]:
    listed = json.loads((PICTURES / "questions.json").read_text())
    return [
        Question(
            id=number,
            where=f"questions.json, entry {number}",
            prompt=entry["question"],
            images=(PICTURES / entry["picture"],),
            answers=(entry["answer"],),
        )
        for number, entry in enumerate(listed)
    ]


class Counting:
    """Stands for a bundle; answers each question with its number, and remembers what it was asked."""

    asked: list[int]

    def __init__(self, folder: Path, asking: Asking, choice: object = None) -> None:
        type(self).asked = []

    def answer(self, numbered: Sequence[tuple[int, Question]]) -> list[tuple[int, Prediction]]:
        type(self).asked += [number for number, _ in numbered]
        if 4 in type(self).asked:
            raise KeyboardInterrupt
        return [(number, Prediction(str(number), 9, (), 0, 1)) for number, _ in numbered]


def test_an_interrupted_run_asks_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "Bundle", Counting)
    questions = sample_questions()[:8]
    path = tmp_path / "answers.jsonl"
    for missing in ([0, 1, 2, 3, 4, 5, 6, 7], [3, 4, 5, 6, 7]):
        with PredictionFile(path, {}, questions) as file:
            assert file.missing == missing
            with pytest.raises(KeyboardInterrupt):
                ask(tmp_path, questions, file, ASKING)
    assert Counting.asked == [3, 4, 5]


def test_a_complete_run_loads_nothing(tmp_path: Path) -> None:
    questions = sample_questions()[:1]
    with PredictionFile(tmp_path / "answers.jsonl", {}, questions) as file:
        file.append([(0, Prediction("red", 9, (), 0, 1))])
        ask(tmp_path / "no bundle", questions, file, ASKING)


@pytest.mark.slow
def test_answers_are_those_of_generate(sample_bundle: Path) -> None:
    from edgeprune.runtime import load

    questions = sample_questions()[:6]
    model = load(sample_bundle, threads=1)
    replies = [model.generate(q.prompt, q.images, max_new_tokens=4) for q in questions]
    found = Bundle(sample_bundle, ASKING).answer(list(enumerate(questions)))
    assert [number for number, _ in found] == list(range(6))
    assert [prediction.text for _, prediction in found] == [reply.text.strip() for reply in replies]
    for (_, prediction), reply in zip(found, replies, strict=True):
        assert prediction.kept == reply.statistics.kept
        assert prediction.padded_kept == reply.statistics.padded_kept[0]


@pytest.mark.slow
def test_a_mask_decides_what_is_kept_and_padding_is_still_counted(sample_bundle: Path) -> None:
    """The wide banner is padding for the most part; a mask that picks only padding keeps only padding."""
    (question,) = [q for q in sample_questions() if q.images[0].name == "banner.png"][:1]
    ((_, own),) = Bundle(sample_bundle, ASKING).answer([(0, question)])

    def padding(valid: NDArray[np.float32], number: int) -> NDArray[np.float32]:
        chosen = np.zeros_like(valid)
        chosen[np.flatnonzero(valid == 0)[: own.kept[0]]] = 1
        return chosen

    ((_, imposed),) = Bundle(sample_bundle, ASKING, Choice(mask=padding)).answer([(0, question)])
    assert own.padded_kept < own.kept[0]
    assert imposed.padded_kept == imposed.kept[0] == own.kept[0]


@pytest.mark.slow
def test_a_bundle_without_chat_template_asks_for_a_template(sample_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sample_bundle, tmp_path / "bundle")
    manifest = read_manifest(copy)
    without = manifest.prompt.model_copy(update={"chat_template": None})
    write_manifest(copy, manifest.model_copy(update={"prompt": without}))
    with pytest.raises(InputError, match=r"has no chat template .*give the `template` .*\{images\}"):
        Bundle(copy, ASKING)
    Bundle(copy, Asking(4, "{images}{question}", threads=1))


def test_a_template_replaces_the_chat_template(sample_bundle: Path) -> None:
    """The model's own form, written out, gives its answers; another form gives others."""
    questions = list(enumerate(sample_questions()[:6]))

    def texts(template: str | None) -> list[str]:
        asking = Asking(4, template, batch=6, threads=1)
        return [prediction.text for _, prediction in Bundle(sample_bundle, asking).answer(questions)]

    assert texts("USER: {images}{question} ASSISTANT:") == texts(None)
    assert texts("{images}ASSISTANT: USER: {question}") != texts(None)


@pytest.mark.slow
def test_a_picture_that_cannot_be_used_is_named_with_its_question(
    sample_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    question = Question(id=1, where="q.jsonl, line 7", prompt="?", images=(tmp_path / "a.png",))
    with pytest.raises(InputError, match=r"q.jsonl, line 7: .*a.png is not an image"):
        Bundle(sample_bundle, ASKING).answer([(0, question)])


@pytest.mark.slow
def test_whether_the_asked_token_stays(sample_bundle: Path) -> None:
    from edgeprune.runtime import load

    (question,) = sample_questions()[:1]
    (stage,) = (
        load(sample_bundle, threads=1).generate(question.prompt, question.images, max_new_tokens=1).stages
    )
    dropped = next(token for token in range(144) if token not in stage.kept_visual)
    asked = [replace(question, asked_token=token) for token in (int(stage.kept_visual[0]), dropped, None)]
    found = Bundle(sample_bundle, ASKING).answer(list(enumerate(asked)))
    assert [prediction.asked_kept for _, prediction in found] == [(True,), (False,), None]
    with pytest.raises(InputError, match="entry 0: asked_token is 144: expected a number from 0 to 143"):
        Bundle(sample_bundle, ASKING).answer([(0, replace(question, asked_token=144))])


@pytest.mark.slow
def test_a_picture_inside_the_question_file(sample_bundle: Path) -> None:
    inside = Question(id=0, where="", prompt="what shape is yellow", images=(EncodedImage(encoded()),))
    beside = Question(id=0, where="", prompt="what shape is yellow", images=(PICTURES / "square.png",))
    bundle = Bundle(sample_bundle, ASKING)
    assert bundle.answer([(0, inside)]) == bundle.answer([(0, beside)])


@pytest.mark.slow
def test_settings_change_with_everything_an_answer_depends_on(
    sample_bundle: Path, unpruned_bundle: Path
) -> None:
    questions = sample_questions()
    base = settings_of(sample_bundle, questions, ASKING)
    assert settings_of(sample_bundle, questions, ASKING) == base
    assert settings_of(unpruned_bundle, questions, ASKING) != base
    assert settings_of(sample_bundle, questions[::-1], ASKING) != base
    named = [replace(questions[0], asked_token=7), *questions[1:]]
    assert settings_of(sample_bundle, named, ASKING) != base
    assert settings_of(sample_bundle, questions, Asking(5)) != base
    assert settings_of(sample_bundle, questions, Asking(4, "{images}{question}")) != base
    plan = read_manifest(sample_bundle).plan
    assert settings_of(sample_bundle, questions, ASKING, plan) == base
    assert settings_of(sample_bundle, questions, ASKING, plan.debiased(())) != base
    assert settings_of(sample_bundle, questions, ASKING, plan, "all, seed 0") != base
    # Answers do not depend on how many run together.
    assert settings_of(sample_bundle, questions, Asking(4, batch=1)) == base


@pytest.mark.parametrize(
    ("asking", "message"),
    [
        (Asking(0), "`max_new_tokens` is 0"),
        (Asking(1, batch=0), "`batch` is 0"),
        (Asking(1, threads=-1), "`threads` is -1"),
        (Asking(1, "{question}"), r"expected one with \{images\}"),
        (Asking(1, "{images}"), r"and \{question\} where the question goes"),
    ],
)
def test_what_cannot_be_asked(asking: Asking, message: str) -> None:
    with pytest.raises(InputError, match=message):
        asking.check()
