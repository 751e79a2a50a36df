"""Readers of question files: LLaVA's JSON lines, and the benchmarks' own files.

Every reader takes the question file (or folder), the folder of pictures, the file (or folder) with reference
answers where that is another one, and gives the questions in order. Formats:
https://github.com/haotian-liu/LLaVA/blob/main/docs/Evaluation.md and the benchmarks' own pages.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune.errors import InputError
from edgeprune.evaluation.answers import LETTERS
from edgeprune.evaluation.questions import (
    EncodedPicture,
    Question,
    Record,
    entries,
    members,
    read_json,
    read_lines,
    read_text,
)

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
LETTER_CN = "请直接回答选项字母。"
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
YES_OR_NO = "Please answer yes or no."
PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class Files:
    """Where a benchmark lies.

    Attributes:
        data: the question file, for MME its folder.
        images: the folder of pictures; for videos, of a folder of frames per video.
        annotations: reference answers, where they are in another file.
        frames: of each video, how many to show.
    """

    data: Path
    images: Path | None = None
    annotations: Path | None = None
    frames: int = 8

    def picture(self, name: str) -> Path:
        """A picture's path.

        Raises:
            InputError: no folder was given.
        """
        return self.folder / name

    @property
    def folder(self) -> Path:
        """The folder of pictures; by default where the question file lies."""
        return self.images if self.images is not None else self.data.parent

    def answers(self, what: str) -> Path:
        """The path of the reference answers.

        Raises:
            InputError: it was not given.
        """
        if self.annotations is None:
            raise InputError(
                f"{self.data} holds no reference answers: give {what} with --annotations, or only predict "
                "where the benchmark is graded elsewhere"
            )
        return self.annotations


Reader = Callable[[Files], list[Question]]


def llava_lines(files: Files) -> list[Question]:
    """LLaVA's question file: question_id, text, image (one, a list, or none); a category groups."""
    return [_llava_line(files, record) for record in read_lines(files.data)]


def _llava_line(files: Files, record: Record) -> Question:
    image = record.values.get("image", [])
    names = [image] if isinstance(image, str) else image
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"{record.where}: image is {image!r:.60}: expected a file name, or a list of them")
    return Question(
        id=record.identity("question_id"),
        where=record.where,
        prompt=_without_image_token(record.text("text")),
        pictures=tuple(files.picture(name) for name in names),
        group=str(record.values.get("category", "")),
        fields={"image": names[0] if names else ""},
    )


def answered_lines(files: Files) -> list[Question]:
    """LLaVA's question file with the reference answer in every line, as `answer` or `answers`."""
    questions = []
    for record in read_lines(files.data):
        found = record.strings("answers") if "answers" in record.values else (record.text("answer"),)
        questions.append(replace(_llava_line(files, record), answers=found))
    return questions


def gqa(files: Files) -> list[Question]:
    """LLaVA's question file with GQA's own as annotations, or GQA's own alone (an object by question id)."""
    if _is_lines(files):
        path = files.answers("GQA's questions file, such as testdev_balanced_questions.json,")
        known = dict(members(read_json(path), path))
        questions = []
        for question in llava_lines(files):
            reference = _known(known, str(question.id), question.where, path)
            questions.append(_gqa_answer(question, reference))
        return questions
    return [
        _gqa_answer(
            Question(
                id=name,
                where=record.where,
                prompt=f"{record.text('question')}\n{SHORT}",
                pictures=(files.picture(f"{record.identity('imageId')}.jpg"),),
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
        listed = _member(read_json(files.annotations), "annotations", files.annotations)
        known = {str(record.identity("question_id")): record for record in entries(listed, files.annotations)}
    questions = llava_lines(files) if _is_lines(files) else list(_vqa_questions(files))
    if files.annotations is None:
        return questions
    found = []
    for question in questions:
        record = _known(known, str(question.id), question.where, files.annotations)
        kind = str(record.values.get("answer_type", ""))
        found.append(replace(question, answers=record.strings("answers"), group=kind))
    return found


def _vqa_questions(files: Files) -> Iterator[Question]:
    content = read_json(files.data)
    split = str(content.get("data_subtype", "")) if isinstance(content, dict) else ""
    if split.startswith("test"):  # test-dev is a part of the test split, with its pictures
        split = "test2015"
    for record in entries(_member(content, "questions", files.data), files.data):
        picture = record.number("image_id")
        yield Question(
            id=record.identity("question_id"),
            where=record.where,
            prompt=f"{record.text('question')}\n{SHORT}",
            pictures=(files.picture(f"COCO_{split}_{picture:012d}.jpg"),),
        )


def vizwiz(files: Files) -> list[Question]:
    """VizWiz' own list (image, question, answers where the split has them), or LLaVA's file for it."""
    if _is_lines(files):
        known: dict[str, Record] = {}
        if files.annotations is not None:
            listed = entries(read_json(files.annotations), files.annotations)
            known = {record.text("image"): record for record in listed}
        questions = llava_lines(files)
        if files.annotations is None:
            return questions
        return [
            _vizwiz_answers(q, _known(known, q.fields["image"], q.where, files.annotations))
            for q in questions
        ]
    return [
        _vizwiz_answers(
            Question(
                id=number,
                where=record.where,
                prompt=f"{record.text('question')}\n{UNANSWERABLE}\n{SHORT}",
                pictures=(files.picture(record.text("image")),),
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

    LLaVA's question_id is the picture's, so picture and question together name the reference.
    """
    if not _is_lines(files):
        return [
            Question(
                id=record.identity("question_id"),
                where=record.where,
                prompt=f"{_capital(record.text('question'))}\n{SHORT}",
                pictures=(files.picture(f"{record.text('image_id')}.jpg"),),
                answers=record.strings("answers"),
            )
            for record in entries(_member(read_json(files.data), "data", files.data), files.data)
        ]
    path = files.answers("TextVQA's file, such as TextVQA_0.5.1_val.json,")
    known = {
        (record.text("image_id"), record.text("question").lower()): record
        for record in entries(_member(read_json(path), "data", path), path)
    }
    questions = []
    for question in llava_lines(files):
        lines = question.prompt.lower().split("\n")
        keys = ((str(question.id), line) for line in lines)
        found = next((known[key] for key in keys if key in known), None)
        if found is None:
            raise InputError(
                f"{question.where}: {path} has no question {lines[0]!r} about picture {question.id}: "
                "expected the annotations of these questions; check --annotations"
            )
        questions.append(replace(question, answers=found.strings("answers")))
    return questions


def pope(files: Files) -> list[Question]:
    """POPE's JSON lines with a label each, or LLaVA's file with POPE's folder of `coco_pope_*.json`.

    LLaVA's file numbers its questions anew; those of a category are in the order of POPE's own file.
    """
    records = read_lines(files.data)
    if "label" in records[0].values:
        group = files.data.stem.rpartition("pope_")[2] if "pope_" in files.data.stem else ""
        questions = []
        for record in records:
            question = _llava_line(files, record)
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
                "expected the same questions in the same order; check --annotations"
            )
        questions.append(_pope_label(question, reference))
    return questions


def _pope_label(question: Question, record: Record) -> Question:
    label = record.text("label")
    if label not in ("yes", "no"):
        raise InputError(f"{record.where}: label is {label!r}: expected yes or no; correct the file")
    return replace(question, answers=(label,))


def mme(files: Files) -> list[Question]:
    """MME's folder: one folder per subtask, with a text file per picture of lines "question<TAB>Yes|No".

    Pictures and text files lie side by side, or in `images` and `questions_answers_YN`. LLaVA's question
    file is taken with MME's folder as annotations.
    """
    if files.data.is_dir():
        return list(_mme_folder(files.data))
    path = files.answers("MME's folder")
    known = {(question.unit, _first_line(question.prompt)): question for question in _mme_folder(path)}
    questions = []
    for question in llava_lines(files):
        unit = f"{question.group}/{Path(str(question.fields['image'])).stem}"
        found = known.get((unit, _first_line(question.prompt)))
        if found is None:
            raise InputError(
                f"{question.where}: {path} has no such question about {unit}: expected "
                "MME's folder; check --annotations"
            )
        questions.append(replace(question, answers=found.answers, unit=unit))
    return questions


def _mme_folder(root: Path) -> Iterator[Question]:
    if not root.is_dir():
        raise InputError(f"there is no folder {root}: expected MME's, with a folder per subtask")
    found = False
    for task in sorted(path for path in root.iterdir() if path.is_dir()):
        apart = (task / "questions_answers_YN").is_dir()
        texts = task / "questions_answers_YN" if apart else task
        pictures = task / "images" if apart else task
        for file in sorted(texts.glob("*.txt")):
            found = True
            possible = [pictures / f"{file.stem}{ending}" for ending in PICTURE_ENDINGS]
            picture = next((path for path in possible if path.is_file()), possible[0])
            lines = [line.rstrip("\r") for line in read_text(file).split("\n")]
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _mme_line(line, f"{file}, line {number}", task.name, picture)
    if not found:
        raise InputError(f"{root} has no folders with .txt files: expected MME's, with a folder per subtask")


def _mme_line(line: str, where: str, task: str, picture: Path) -> Question:
    text, tab, answer = line.rpartition("\t")
    label = answer.strip().lower()
    if not tab or not text.strip() or label not in ("yes", "no"):
        raise InputError(
            f"{where}: {line!r:.60}: expected a question, a tab, and Yes or No; correct the file"
        )
    return Question(
        id=f"{task}/{picture.name}",
        where=where,
        prompt=f"{text.strip().removesuffix(YES_OR_NO).strip()}\n{SHORT}",
        pictures=(picture,),
        answers=(label,),
        group=task,
        unit=f"{task}/{picture.stem}",
        fields={"image": picture.name},
    )


def mmbench(files: Files) -> list[Question]:
    """MMBench's table (tab separated, pictures as base64), each question once per rotation of its options."""
    return list(_mmbench(files, LETTER))


def mmbench_cn(files: Files) -> list[Question]:
    """As `mmbench`, with the Chinese instruction."""
    return list(_mmbench(files, LETTER_CN))


def _mmbench(files: Files, instruction: str) -> Iterator[Question]:
    csv.field_size_limit(1 << 30)  # a picture is one field
    # Universal newlines are csv's own work here: a quoted field may hold some.
    table = csv.DictReader(io.StringIO(read_text(files.data), newline=""), delimiter="\t")
    columns = table.fieldnames or []
    lacking = [name for name in ("index", "question", "A", "B", "image") if name not in columns]
    if lacking:
        raise InputError(
            f"{files.data}, line 1: the columns {', '.join(lacking)} are missing (found: "
            f"{', '.join(columns)}): expected MMBench's table; check --metric and the file"
        )
    pictures: dict[str, str] = {}
    for row in table:
        where = f"{files.data}, line {table.line_num}"
        if None in row or None in row.values():
            raise InputError(f"{where}: another number of fields than the first line's: mend the line")
        text = row["image"]
        # A picture that was there before is named by its row's index.
        pictures[row["index"]] = pictures.get(text, text)
        yield from _rotations(row, where, EncodedPicture(pictures[row["index"]]), instruction)


def _rotations(
    row: Mapping[str, str], where: str, picture: EncodedPicture, instruction: str
) -> Iterator[Question]:
    options = []
    for letter in LETTERS[:4]:
        if _is_none(row.get(letter)):
            break
        options.append(row[letter])
    answer = row.get("answer", "")
    if len(options) < 2:
        raise InputError(f"{where}: {len(options)} options: expected at least A and B; correct the file")
    if not _is_none(answer) and answer not in LETTERS[: len(options)]:
        raise InputError(f"{where}: answer is {answer!r}: expected a letter of an option; correct the file")
    stem = row["question"] if _is_none(row.get("hint")) else f"{row['hint']}\n{row['question']}"
    for turn in range(len(options)):
        turned = options[turn:] + options[:turn]
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, turned, strict=False))
        right = () if _is_none(answer) else (LETTERS[(LETTERS.index(answer) - turn) % len(options)],)
        yield Question(
            id=f"{row['index']}/{turn}",
            where=where,
            prompt=f"{stem}\n{listed}\n{instruction}",
            pictures=(picture,),
            answers=right,
            group=row.get("category", ""),
            unit=row["index"],
            choices=tuple(turned),
        )


def _is_none(cell: str | None) -> bool:
    return cell is None or cell.strip().lower() in ("", "nan", "none")


def mmvet(files: Files) -> list[Question]:
    """MM-Vet's own file (an object by v1_N: imagename, question), or LLaVA's. Graded elsewhere."""
    if _is_lines(files):
        return llava_lines(files)
    return [
        Question(
            id=name,
            where=record.where,
            prompt=record.text("question"),
            pictures=(files.picture(record.text("imagename")),),
        )
        for name, record in members(read_json(files.data), files.data)
    ]


def scienceqa(files: Files) -> list[Question]:
    """LLaVA's list of conversations (`llava_test_CQM-A.json`), with ScienceQA's problems.json as annotations.

    Without annotations the second turn of each conversation is the reference.
    """
    known: dict[str, Record] | None = None
    if files.annotations is not None:
        known = dict(members(read_json(files.annotations), files.annotations))
    questions = []
    for record in entries(read_json(files.data), files.data):
        texts = _turns(record)
        name = record.identity("id")
        if known is not None and files.annotations is not None:
            problem = _known(known, str(name), record.where, files.annotations)
            choices, number = problem.strings("choices"), problem.number("answer")
            if not 0 <= number < min(len(choices), 5):
                raise InputError(f"{problem.where}: answer is {number!r}: expected the number of a choice")
            right = LETTERS[number]
        else:
            choices = ()
            right = _scienceqa_turn(texts, record.where)
        image = record.values.get("image")
        questions.append(
            Question(
                id=name,
                where=record.where,
                prompt=f"{_without_image_token(texts[0])}\n{LETTER}",
                pictures=(files.picture(str(image)),) if image else (),
                answers=(right,),
                group="picture" if image else "text",
                choices=choices,
            )
        )
    return questions


def _turns(record: Record) -> list[str]:
    """The texts of a conversation."""
    turns = record.values.get("conversations")
    texts = [
        turn["value"]
        for turn in (turns if isinstance(turns, list) else [])
        if isinstance(turn, dict) and isinstance(turn.get("value"), str)
    ]
    if not texts or not isinstance(turns, list) or len(texts) < len(turns):
        raise InputError(
            f"{record.where}: conversations is {turns!r:.60}: expected a list of turns with a value each"
        )
    return texts


def _scienceqa_turn(texts: list[str], where: str) -> str:
    said = texts[1].removeprefix("The answer is ").rstrip(". ") if len(texts) > 1 else ""
    if len(said) != 1 or said not in LETTERS[:5]:
        raise InputError(
            f"{where}: the second turn is {said!r:.40}: expected an option's letter as the answer; give "
            "ScienceQA's problems.json with --annotations"
        )
    return said


def video(files: Files) -> list[Question]:
    """Video questions (video_name, question, question_id) and answers (question_id, answer) in two files.

    Of each video, `--images` has a folder of its frames, named after it and sorted by name; as many of them
    as asked for are shown, evenly spaced. Format: https://github.com/PKU-YuanGroup/Video-LLaVA.
    """
    path = files.answers("the answers file, such as test_a.json,")
    known = {str(record.identity("question_id")): record for record in entries(read_json(path), path)}
    frames: dict[str, tuple[Path, ...]] = {}
    questions = []
    for record in entries(read_json(files.data), files.data):
        name, number = record.text("video_name"), record.identity("question_id")
        if name not in frames:
            frames[name] = _frames(files, name, record.where)
        reference = _known(known, str(number), record.where, path)
        questions.append(
            Question(
                id=number,
                where=record.where,
                prompt=record.text("question"),
                pictures=frames[name],
                answers=(reference.text("answer"),),
                group=str(reference.values.get("type", "")),
            )
        )
    return questions


def _frames(files: Files, name: str, where: str) -> tuple[Path, ...]:
    folder = files.picture(name)
    listed = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [path for path in listed if path.suffix.lower() in PICTURE_ENDINGS]
    if not found:
        raise InputError(
            f"{where}: there are no frames of the video in {folder}: expected a folder of pictures; extract "
            "the frames and give the folder above with --images"
        )
    count = min(files.frames, len(found))
    # The middles of equal parts of the video.
    return tuple(found[(2 * part + 1) * len(found) // (2 * count)] for part in range(count))


def _is_lines(files: Files) -> bool:
    return files.data.suffix == ".jsonl"


def _known(known: Mapping[str, Record], name: str, where: str, path: Path) -> Record:
    if name not in known:
        raise InputError(
            f"{where}: {path} has no answer to question {name}: expected the annotations of these questions; "
            "check --annotations"
        )
    return known[name]


def _member(content: Any, name: str, path: Path) -> Any:
    if not isinstance(content, dict) or name not in content:
        raise InputError(
            f"{path} has no member {name}: expected a file of this benchmark; check --metric and the file"
        )
    return content[name]


def _without_image_token(text: str) -> str:
    return text.replace("<image>", "").strip()


def _first_line(text: str) -> str:
    return text.split("\n")[0].strip()


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
