"""Questions with options: MMBench, ScienceQA."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping

from edgeprune.errors import InputError
from edgeprune.evaluation.answers import LETTERS
from edgeprune.evaluation.formats.common import answer_to
from edgeprune.questions.llava import Files, without_image_token
from edgeprune.questions.question import EncodedImage, Question
from edgeprune.questions.records import Record, entries, members, read_json, read_text

LETTER = "Answer with the option's letter from the given choices directly."
LETTER_CN = "请直接回答选项字母。"


def mmbench(files: Files) -> list[Question]:
    """MMBench's table (tab separated, images as base64), each question once per rotation of its options."""
    return list(_mmbench(files, LETTER))


def mmbench_cn(files: Files) -> list[Question]:
    """As `mmbench`, with the Chinese instruction."""
    return list(_mmbench(files, LETTER_CN))


def _mmbench(files: Files, instruction: str) -> Iterator[Question]:
    csv.field_size_limit(1 << 30)  # an image is one field
    # Universal newlines are csv's own work here: a quoted field may hold some.
    table = csv.DictReader(io.StringIO(read_text(files.data), newline=""), delimiter="\t")
    columns = table.fieldnames or []
    lacking = [name for name in ("index", "question", "A", "B", "image") if name not in columns]
    if lacking:
        raise InputError(
            f"{files.data}, line 1: the columns {', '.join(lacking)} are missing (found: "
            f"{', '.join(columns)}): expected MMBench's table; check `metric` and the file"
        )
    images: dict[str, str] = {}
    for row in table:
        where = f"{files.data}, line {table.line_num}"
        if None in row or None in row.values():
            raise InputError(f"{where}: another number of fields than the first line's: mend the line")
        text = row["image"]
        # An image that was there before is named by its row's index.
        images[row["index"]] = images.get(text, text)
        yield from _rotations(row, where, EncodedImage(images[row["index"]]), instruction)


def _rotations(
    row: Mapping[str, str], where: str, image: EncodedImage, instruction: str
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
            images=(image,),
            answers=right,
            group=row.get("category", ""),
            unit=row["index"],
            choices=tuple(turned),
        )


def _is_none(cell: str | None) -> bool:
    return cell is None or cell.strip().lower() in ("", "nan", "none")


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
            problem = answer_to(known, str(name), record.where, files.annotations)
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
                prompt=f"{without_image_token(texts[0])}\n{LETTER}",
                images=(files.image(str(image)),) if image else (),
                answers=(right,),
                group="image" if image else "text",
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
            "ScienceQA's problems.json with `annotations`"
        )
    return said
