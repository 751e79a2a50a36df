"""Open questions about images: GQA, VQAv2, VizWiz, TextVQA, MM-Vet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from edgeprune.errors import InputError
from edgeprune.evaluation.formats.common import SHORT, answer_to, is_lines, member
from edgeprune.questions.llava import Files, llava_lines
from edgeprune.questions.question import Question
from edgeprune.questions.records import Record, entries, members, read_json

UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


def gqa(files: Files) -> list[Question]:
    """LLaVA's question file with GQA's own as annotations, or GQA's own alone (an object by question id)."""
    if is_lines(files):
        path = files.answers("GQA's questions file, such as testdev_balanced_questions.json,")
        known = dict(members(read_json(path), path))
        questions = []
        for question in llava_lines(files):
            reference = answer_to(known, str(question.id), question.where, path)
            questions.append(_gqa_answer(question, reference))
        return questions
    return [
        _gqa_answer(
            Question(
                id=name,
                where=record.where,
                prompt=f"{record.text('question')}\n{SHORT}",
                images=(files.image(f"{record.identity('imageId')}.jpg"),),
            ),
            record,
        )
        for name, record in members(read_json(files.data), files.data)
        if record.values.get("isBalanced", True)
    ]


def _gqa_answer(question: Question, record: Record) -> Question:
    types = record.values.get("types")
    structure = types.get("structural") if isinstance(types, dict) else None
    group = "" if structure is None else "open" if structure == "query" else "binary"
    return replace(question, answers=(record.text("answer"),), group=group)


def vqav2(files: Files) -> list[Question]:
    """VQA's questions, or LLaVA's file; annotations are VQA's, and may be left out (test splits)."""
    known: dict[str, Record] = {}
    if files.annotations is not None:
        listed = member(read_json(files.annotations), "annotations", files.annotations)
        known = {str(record.identity("question_id")): record for record in entries(listed, files.annotations)}
    questions = llava_lines(files) if is_lines(files) else list(_vqa_questions(files))
    if files.annotations is None:
        return questions
    found = []
    for question in questions:
        record = answer_to(known, str(question.id), question.where, files.annotations)
        kind = str(record.values.get("answer_type", ""))
        found.append(replace(question, answers=record.strings("answers"), group=kind))
    return found


def _vqa_questions(files: Files) -> Iterator[Question]:
    content = read_json(files.data)
    split = str(content.get("data_subtype", "")) if isinstance(content, dict) else ""
    if split.startswith("test"):  # test-dev is a part of the test split, with its images
        split = "test2015"
    for record in entries(member(content, "questions", files.data), files.data):
        image = record.number("image_id")
        yield Question(
            id=record.identity("question_id"),
            where=record.where,
            prompt=f"{record.text('question')}\n{SHORT}",
            images=(files.image(f"COCO_{split}_{image:012d}.jpg"),),
        )


def vizwiz(files: Files) -> list[Question]:
    """VizWiz' own list (image, question, answers where the split has them), or LLaVA's file for it."""
    if is_lines(files):
        known: dict[str, Record] = {}
        if files.annotations is not None:
            listed = entries(read_json(files.annotations), files.annotations)
            known = {record.text("image"): record for record in listed}
        questions = llava_lines(files)
        if files.annotations is None:
            return questions
        return [
            _vizwiz_answers(q, answer_to(known, q.fields["image"], q.where, files.annotations))
            for q in questions
        ]
    return [
        _vizwiz_answers(
            Question(
                id=number,
                where=record.where,
                prompt=f"{record.text('question')}\n{UNANSWERABLE}\n{SHORT}",
                images=(files.image(record.text("image")),),
                fields={"image": record.text("image")},
            ),
            record,
        )
        for number, record in enumerate(entries(read_json(files.data), files.data))
    ]


def _vizwiz_answers(question: Question, record: Record) -> Question:
    if "answers" not in record.values:
        return question
    kind = str(record.values.get("answer_type", ""))
    return replace(question, answers=record.strings("answers"), group=kind)


def textvqa(files: Files) -> list[Question]:
    """TextVQA's own file, or LLaVA's with TextVQA's as annotations.

    LLaVA's question_id is the image's, so image and question together name the reference.
    """
    if not is_lines(files):
        return [
            Question(
                id=record.identity("question_id"),
                where=record.where,
                prompt=f"{_capital(record.text('question'))}\n{SHORT}",
                images=(files.image(f"{record.text('image_id')}.jpg"),),
                answers=record.strings("answers"),
            )
            for record in entries(member(read_json(files.data), "data", files.data), files.data)
        ]
    path = files.answers("TextVQA's file, such as TextVQA_0.5.1_val.json,")
    known = {
        (record.text("image_id"), record.text("question").lower()): record
        for record in entries(member(read_json(path), "data", path), path)
    }
    questions = []
    for question in llava_lines(files):
        lines = question.prompt.lower().split("\n")
        keys = ((str(question.id), line) for line in lines)
        found = next((known[key] for key in keys if key in known), None)
        if found is None:
            raise InputError(
                f"{question.where}: {path} has no question {lines[0]!r} about image {question.id}: "
                "expected the annotations of these questions; check `annotations`"
            )
        questions.append(replace(question, answers=found.strings("answers")))
    return questions


def mmvet(files: Files) -> list[Question]:
    """MM-Vet's own file (an object by v1_N: imagename, question), or LLaVA's. Graded elsewhere."""
    if is_lines(files):
        return llava_lines(files)
    return [
        Question(
            id=name,
            where=record.where,
            prompt=record.text("question"),
            images=(files.image(record.text("imagename")),),
        )
        for name, record in members(read_json(files.data), files.data)
    ]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
