"""Questions of yes or no: POPE, MME."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from edgeprune.errors import InputError
from edgeprune.evaluation.formats.common import SHORT, first_line
from edgeprune.questions.llava import IMAGE_ENDINGS, Files, llava_line, llava_lines
from edgeprune.questions.question import Question
from edgeprune.questions.records import Record, read_lines, read_text

YES_OR_NO = "Please answer yes or no."


def pope(files: Files) -> list[Question]:
    """POPE's JSON lines with a label each, or LLaVA's file with POPE's folder of `coco_pope_*.json`.

    LLaVA's file numbers its questions anew; those of a category are in the order of POPE's own file.
    """
    records = read_lines(files.data)
    if "label" in records[0].values:
        group = files.data.stem.rpartition("pope_")[2] if "pope_" in files.data.stem else ""
        questions = []
        for record in records:
            question = llava_line(files, record)
            prompt = question.prompt if "\n" in question.prompt else f"{question.prompt}\n{SHORT}"
            question = replace(question, prompt=prompt, group=question.group or group)
            questions.append(_pope_label(question, record))
        return questions
    path = files.answers("POPE's folder of coco_pope_*.json")
    waiting: dict[str, Iterator[Record]] = {}
    questions = []
    for question in llava_lines(files):
        own = path / f"coco_pope_{question.group}.json"
        if question.group not in waiting:
            waiting[question.group] = iter(read_lines(own))
        reference = next(waiting[question.group], None)
        if reference is None or reference.text("image") != question.fields["image"]:
            found = "ends" if reference is None else f"asks about {reference.text('image')}"
            raise InputError(
                f"{question.where}: {own} {found} where the question is about {question.fields['image']}: "
                "expected the same questions in the same order; check `annotations`"
            )
        questions.append(_pope_label(question, reference))
    return questions


def _pope_label(question: Question, record: Record) -> Question:
    label = record.text("label")
    if label not in ("yes", "no"):
        raise InputError(f"{record.where}: label is {label!r}: expected yes or no; correct the file")
    return replace(question, answers=(label,))


def mme(files: Files) -> list[Question]:
    """MME's folder: one folder per subtask, with a text file per image of lines "question<TAB>Yes|No".

    Images and text files lie side by side, or in `images` and `questions_answers_YN`. LLaVA's question
    file is taken with MME's folder as annotations.
    """
    if os.path.isdir(files.data):
        return list(_mme_folder(files.data))
    path = files.answers("MME's folder")
    known = {(question.unit, first_line(question.prompt)): question for question in _mme_folder(path)}
    questions = []
    for question in llava_lines(files):
        unit = f"{question.group}/{Path(str(question.fields['image'])).stem}"
        found = known.get((unit, first_line(question.prompt)))
        if found is None:
            raise InputError(
                f"{question.where}: {path} has no such question about {unit}: expected "
                "MME's folder; check `annotations`"
            )
        questions.append(replace(question, answers=found.answers, unit=unit))
    return questions


def _mme_folder(root: Path) -> Iterator[Question]:
    if not os.path.isdir(root):
        raise InputError(f"there is no folder {root}: expected MME's, with a folder per subtask")
    found = False
    for task in sorted(path for path in root.iterdir() if path.is_dir()):
        apart = (task / "questions_answers_YN").is_dir()
        texts = task / "questions_answers_YN" if apart else task
        images = task / "images" if apart else task
        for file in sorted(texts.glob("*.txt")):
            found = True
            possible = [images / f"{file.stem}{ending}" for ending in IMAGE_ENDINGS]
            image = next((path for path in possible if os.path.isfile(path)), possible[0])
            lines = [line.rstrip("\r") for line in read_text(file).split("\n")]
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _mme_line(line, f"{file}, line {number}", task.name, image)
    if not found:
        raise InputError(f"{root} has no folders with .txt files: expected MME's, with a folder per subtask")


def _mme_line(line: str, where: str, task: str, image: Path) -> Question:
    text, tab, answer = line.rpartition("\t")
    label = answer.strip().lower()
    if not tab or not text.strip() or label not in ("yes", "no"):
        raise InputError(
            f"{where}: {line!r:.60}: expected a question, a tab, and Yes or No; correct the file"
        )
    return Question(
        id=f"{task}/{image.name}",
        where=where,
        prompt=f"{text.strip().removesuffix(YES_OR_NO).strip()}\n{SHORT}",
        images=(image,),
        answers=(label,),
        group=task,
        unit=f"{task}/{image.stem}",
        fields={"image": image.name},
    )
