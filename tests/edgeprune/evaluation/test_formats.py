"""Every benchmark's files, read as their communities write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeprune.errors import InputError
from edgeprune.evaluation.benchmarks import BENCHMARKS, benchmark_by_name, can_score, read_questions
from edgeprune.evaluation.formats.choices import LETTER, LETTER_CN
from edgeprune.evaluation.formats.common import SHORT
from edgeprune.evaluation.formats.vqa import UNANSWERABLE
from edgeprune.questions.llava import Files
from edgeprune.questions.question import EncodedImage, Question
from tests.edgeprune.evaluation.files import SQUARE, WIDE, dump, encoded, lines, picture, table


def read(
    name: str, data: Path, images: Path | None = None, annotations: Path | None = None, **kw: Any
) -> list[Question]:
    files = Files(data, images, annotations, kw.pop("frames", 8))
    return read_questions(benchmark_by_name(name), files, **kw)


def refused(message: str, name: str, data: Path, *rest: Any, **kw: Any) -> None:
    with pytest.raises(InputError, match=message):
        read(name, data, *rest, **kw)


# Plain question files


def test_exact_takes_one_answer_or_several_and_any_number_of_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    data = lines(
        tmp_path / "q.jsonl",
        {"question_id": 1, "image": "a.png", "text": "<image>\nwhat?", "answer": "x", "category": "c"},
        {"question_id": "two", "image": ["a.png", "b.png"], "text": "and?", "answers": ["x", "y"]},
        {"question_id": 3, "text": "no image?", "answer": "z", "asked_token": 17},
    )
    one, two, three = read("exact", data)
    assert (one.prompt, one.answers, one.group) == ("what?", ("x",), "c")
    assert two.images == (tmp_path / "a.png", tmp_path / "b.png")
    assert two.answers == ("x", "y")
    assert three.images == ()
    assert (one.asked_token, three.asked_token) == (None, 17)
    assert one.where == f"{data}, line 1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question_id": 1, "text": "?", "answer": "x"}\n\n{"question_id": 2,\n', "line 3: not JSON"),
        ("[1]\n", "line 1: a JSON list: expected an object"),
        (
            '{"question_id": 1, "answer": "x"}\n',
            r"line 1: the field text is missing \(found: question_id, answer",
        ),
        ('{"question_id": [1], "text": "?", "answer": "x"}\n', r"line 1: question_id is \[1\]"),
        ('{"question_id": 1, "text": 5, "answer": "x"}\n', "line 1: text is 5: expected a string"),
        (
            '{"question_id": 1, "text": "?", "answers": []}\n',
            "line 1: answers is .*: expected a list of texts",
        ),
        (
            '{"question_id": 1, "text": "?", "answer": "x", "image": 4}\n',
            "line 1: image is 4: expected a file name",
        ),
        (
            '{"question_id": 1, "text": "?", "answer": "x", "asked_token": "a"}\n',
            "line 1: asked_token is 'a': expected a whole number",
        ),
        ("", "is empty: expected one JSON object per line"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, content: str, message: str) -> None:
    data = tmp_path / "q.jsonl"
    data.write_text(content, encoding="utf-8")
    refused(message, "exact", data)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    refused("there is no file .*q.jsonl", "exact", tmp_path / "q.jsonl")
    refused("is a folder: expected a regular file", "exact", tmp_path)
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    refused("is not UTF-8 text", "exact", tmp_path / "b.jsonl")


def test_a_missing_picture_is_named_with_its_question(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    record = {"question_id": 1, "text": "?", "answer": "x"}
    data = lines(tmp_path / "q.jsonl", {**record, "image": "a.png"}, {**record, "image": "b.png"})
    refused(r"line 2: there is no image .*b\.png.*`images`", "exact", data)
    data = lines(tmp_path / "q.jsonl", {**record, "image": "x" * 300})  # longer than a name may be
    refused("line 1: there is no image .*xxx", "exact", data)


def test_a_limit_takes_the_first_ones(tmp_path: Path) -> None:
    data = lines(tmp_path / "q.jsonl", *({"question_id": n, "text": "?", "answer": "x"} for n in range(5)))
    assert [question.id for question in read("exact", data, limit=2)] == [0, 1]
    refused("`limit` is 0: expected a whole number of at least 1", "exact", data, limit=0)


def test_an_unknown_metric_lists_the_known() -> None:
    with pytest.raises(InputError, match=r"unknown metric 'f2': choose one of exact, gqa, .*msrvtt-qa"):
        benchmark_by_name("f2")


# GQA

GQA = {
    "201": {
        "imageId": "n1",
        "question": "Is it left?",
        "answer": "left",
        "types": {"structural": "query"},
        "isBalanced": True,
    },
    "202": {
        "imageId": "n1",
        "question": "?",
        "answer": "yes",
        "types": {"structural": "verify"},
        "isBalanced": False,
    },
}


def test_gqa_by_llava(tmp_path: Path) -> None:
    picture(tmp_path / "n1.jpg")
    text = f"Is it left?\n{SHORT}"
    data = lines(
        tmp_path / "q.jsonl", {"question_id": "201", "image": "n1.jpg", "text": text, "category": "default"}
    )
    (found,) = read("gqa", data, None, dump(tmp_path / "testdev.json", GQA))
    assert (found.prompt, found.answers, found.group) == (text, ("left",), "open")


def test_gqa_by_its_own_file_has_the_balanced_questions(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "n1.jpg")
    (found,) = read("gqa", dump(tmp_path / "testdev.json", GQA), tmp_path / "images")
    assert found.prompt == f"Is it left?\n{SHORT}"
    assert found.images == (tmp_path / "images" / "n1.jpg",)


def test_gqa_without_the_answer_to_a_question(tmp_path: Path) -> None:
    data = lines(tmp_path / "q.jsonl", {"question_id": "9", "text": "?"})
    refused(
        "line 1: .*testdev.json has no answer to question 9",
        "gqa",
        data,
        None,
        dump(tmp_path / "testdev.json", GQA),
    )
    refused("holds no reference answers.*`annotations`", "gqa", data)
    refused(
        "holds a JSON list: expected an object with a member",
        "gqa",
        data,
        None,
        dump(tmp_path / "l.json", []),
    )


# VQAv2

VQA_ANSWERS = {
    "annotations": [
        {
            "question_id": 4001,
            "image_id": 4,
            "answer_type": "number",
            "answers": [{"answer": "2", "answer_id": n} for n in range(10)],
        }
    ]
}


@pytest.mark.parametrize(
    ("subtype", "name"),
    [
        ("val2014", "COCO_val2014_000000000004.jpg"),
        ("test2015", "COCO_test2015_000000000004.jpg"),
        ("test-dev2015", "COCO_test2015_000000000004.jpg"),
    ],
)
def test_vqav2_by_its_own_files(tmp_path: Path, subtype: str, name: str) -> None:
    picture(tmp_path / "images" / name)
    asked = {"question_id": 4001, "image_id": 4, "question": "How many?"}
    data = dump(tmp_path / "questions.json", {"data_subtype": subtype, "questions": [asked]})
    (found,) = read("vqav2", data, tmp_path / "images", dump(tmp_path / "answers.json", VQA_ANSWERS))
    assert (found.id, found.prompt, found.group) == (4001, f"How many?\n{SHORT}", "number")
    assert found.answers == ("2",) * 10


def test_vqav2_test_questions_have_no_answers(tmp_path: Path) -> None:
    picture(tmp_path / "x.jpg")
    data = lines(tmp_path / "q.jsonl", {"question_id": 1, "image": "x.jpg", "text": f"?\n{SHORT}"})
    found = read("vqav2", data)
    assert not can_score(benchmark_by_name("vqav2"), found)


def test_vqav2_without_its_member(tmp_path: Path) -> None:
    refused("has no member questions", "vqav2", dump(tmp_path / "questions.json", {"data": []}))


# VizWiz


def test_vizwiz_by_its_own_file(tmp_path: Path) -> None:
    picture(tmp_path / "VizWiz_val_0.jpg")
    answers = [{"answer": "unanswerable", "answer_confidence": "yes"}] * 10
    record = {
        "image": "VizWiz_val_0.jpg",
        "question": "What?",
        "answers": answers,
        "answer_type": "unanswerable",
    }
    (found,) = read("vizwiz", dump(tmp_path / "val.json", [record]))
    assert found.prompt == f"What?\n{UNANSWERABLE}\n{SHORT}"
    assert found.answers == ("unanswerable",) * 10
    assert found.fields["image"] == "VizWiz_val_0.jpg"


def test_vizwiz_by_llava(tmp_path: Path) -> None:
    picture(tmp_path / "VizWiz_test_0.jpg")
    record = {"question_id": "VizWiz_test_0.jpg", "image": "VizWiz_test_0.jpg", "text": "What?"}
    data = lines(tmp_path / "q.jsonl", record)
    assert not can_score(benchmark_by_name("vizwiz"), read("vizwiz", data))
    known = dump(tmp_path / "val.json", [{"image": "VizWiz_test_0.jpg", "answers": [{"answer": "tin"}]}])
    assert read("vizwiz", data, None, known)[0].answers == ("tin",)


# TextVQA

TEXTVQA = {
    "data": [
        {"question_id": n, "image_id": "t1", "question": question, "answers": [f"{n}"] * 10}
        for n, question in enumerate(("what Brand?", "which year?"))
    ]
}


def test_textvqa_by_llava_names_the_reference_by_picture_and_question(tmp_path: Path) -> None:
    picture(tmp_path / "t1.jpg")
    texts = (
        f"which year?\nReference OCR token: 1999\n{SHORT}",
        f"Reference OCR token: X\nWhat brand?\n{SHORT}",
        f"what Brand?\n{SHORT}",
    )
    data = lines(
        tmp_path / "q.jsonl", *({"question_id": "t1", "image": "t1.jpg", "text": text} for text in texts)
    )
    found = read("textvqa", data, None, dump(tmp_path / "val.json", TEXTVQA))
    assert [question.answers[0] for question in found] == ["1", "0", "0"]


def test_textvqa_by_its_own_file(tmp_path: Path) -> None:
    picture(tmp_path / "t1.jpg")
    first, second = read("textvqa", dump(tmp_path / "val.json", TEXTVQA))
    assert first.prompt == f"What Brand?\n{SHORT}"
    assert second.answers == ("1",) * 10


def test_textvqa_with_the_annotations_of_other_questions(tmp_path: Path) -> None:
    data = lines(tmp_path / "q.jsonl", {"question_id": "t2", "text": f"which year?\n{SHORT}"})
    known = dump(tmp_path / "val.json", TEXTVQA)
    refused("has no question 'which year.' about image t2", "textvqa", data, None, known)


# POPE


def pope_record(number: int, label: str | None = None, image: str = "p.jpg") -> dict[str, Any]:
    record = {"question_id": number, "image": image, "text": "Is there a dog in the image?"}
    return record if label is None else {**record, "label": label}


def test_pope_by_its_own_file(tmp_path: Path) -> None:
    picture(tmp_path / "p.jpg")
    data = lines(tmp_path / "coco_pope_popular.json", pope_record(1, "yes"), pope_record(2, "no"))
    found = read("pope", data)
    assert [question.answers for question in found] == [("yes",), ("no",)]
    assert {question.group for question in found} == {"popular"}
    assert found[0].prompt == f"Is there a dog in the image?\n{SHORT}"


def test_pope_by_llava_follows_the_order_of_each_category(tmp_path: Path) -> None:
    picture(tmp_path / "p.jpg")
    categories = ("random", "popular", "random")
    records = [{**pope_record(number), "category": name} for number, name in enumerate(categories)]
    data = lines(tmp_path / "llava_pope_test.jsonl", *records)
    folder = tmp_path / "coco"
    folder.mkdir()
    lines(folder / "coco_pope_random.json", pope_record(1, "yes"), pope_record(2, "no"))
    lines(folder / "coco_pope_popular.json", pope_record(1, "no"))
    assert [question.answers[0] for question in read("pope", data, None, folder)] == ["yes", "no", "no"]
    lines(folder / "coco_pope_random.json", pope_record(1, "yes"), pope_record(2, "no", "other.jpg"))
    refused("line 3: .*random.json asks about other.jpg", "pope", data, None, folder)
    lines(folder / "coco_pope_random.json", pope_record(1, "yes"))
    refused("line 3: .*random.json ends", "pope", data, None, folder)


def test_pope_with_another_label(tmp_path: Path) -> None:
    refused("label is 'maybe'", "pope", lines(tmp_path / "q.json", pope_record(1, "maybe")))


# MME


def mme_folder(root: Path) -> Path:
    picture(root / "color" / "0001.png")
    (root / "color" / "0001.txt").write_text(
        "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n",
        encoding="utf-8",
    )
    picture(root / "posters" / "images" / "tt1.jpg", WIDE)
    (root / "posters" / "questions_answers_YN").mkdir()
    (root / "posters" / "questions_answers_YN" / "tt1.txt").write_text(
        "Is it a film? Please answer yes or no.\tYes\r\nIs it a play? Please answer yes or no.\tNo",
        encoding="utf-8",
    )
    return root


def test_mme_folders_of_both_kinds(tmp_path: Path) -> None:
    found = read("mme", mme_folder(tmp_path / "MME"))
    assert [question.answers[0] for question in found] == ["yes", "no", "yes", "no"]
    assert found[0].prompt == f"Is it red?\n{SHORT}"
    assert [question.unit for question in found] == ["color/0001"] * 2 + ["posters/tt1"] * 2
    assert found[2].images == (tmp_path / "MME" / "posters" / "images" / "tt1.jpg",)


def test_mme_by_llava(tmp_path: Path) -> None:
    root = mme_folder(tmp_path / "MME")
    record = {"question_id": "color/0001.png", "image": "color/0001.png", "category": "color"}
    data = lines(tmp_path / "q.jsonl", {**record, "text": f"Is it blue?\n{SHORT}"})
    (found,) = read("mme", data, root, root)
    assert (found.answers, found.unit) == (("no",), "color/0001")
    other = lines(tmp_path / "o.jsonl", {**record, "text": "Is it green?"})
    refused("line 1: .*no such question about color/0001", "mme", other, root, root)


def test_mme_keeps_pairs_whole_under_a_limit(tmp_path: Path) -> None:
    assert len(read("mme", mme_folder(tmp_path / "MME"), limit=1)) == 2


def test_malformed_mme_is_named(tmp_path: Path) -> None:
    root = mme_folder(tmp_path / "MME")
    (root / "color" / "0001.txt").write_text("Is it red?\tYes\nIs it blue? Yes\n", encoding="utf-8")
    refused("0001.txt, line 2: .*expected a question, a tab, and Yes or No", "mme", root)
    (root / "color" / "0001.txt").write_text("Is it red?\tPerhaps\n", encoding="utf-8")
    refused("0001.txt, line 1", "mme", root)
    (tmp_path / "empty").mkdir()
    refused("has no folders with .txt files", "mme", tmp_path / "empty")


# MMBench


def mmbench_row(**changes: str) -> dict[str, str]:
    return {
        "index": "241",
        "question": "Which is it?",
        "hint": "nan",
        "A": "bus",
        "B": "cat",
        "C": "dog",
        "D": "nan",
        "answer": "B",
        "category": "object",
        "image": encoded(),
        **changes,
    }


def test_mmbench_rotates_the_options(tmp_path: Path) -> None:
    data = table(tmp_path / "dev.tsv", mmbench_row())
    found = read("mmbench", data)
    assert [question.answers[0] for question in found] == ["B", "A", "C"]
    assert [question.choices for question in found] == [
        ("bus", "cat", "dog"),
        ("cat", "dog", "bus"),
        ("dog", "bus", "cat"),
    ]
    assert found[1].prompt == f"Which is it?\nA. cat\nB. dog\nC. bus\n{LETTER}"
    assert {question.unit for question in found} == {"241"}
    (shown,) = found[0].images
    assert isinstance(shown, EncodedImage)
    assert shown.read() == SQUARE.read_bytes()


def test_mmbench_hints_shared_pictures_and_quoted_fields(tmp_path: Path) -> None:
    data = table(
        tmp_path / "dev.tsv",
        mmbench_row(C=""),
        mmbench_row(index="242", image="241", hint='"Look\n""well""."', C=""),
    )
    found = read("mmbench", data)
    assert found[2].prompt.startswith('Look\n"well".\nWhich is it?\nA. bus')
    assert found[2].images == found[0].images


def test_mmbench_in_chinese_and_without_answers(tmp_path: Path) -> None:
    row = mmbench_row()
    del row["answer"]
    found = read("mmbench-cn", table(tmp_path / "test.tsv", row))
    assert found[0].prompt.endswith(LETTER_CN)
    assert not can_score(benchmark_by_name("mmbench-cn"), found)


def test_mmbench_keeps_rotations_whole_under_a_limit(tmp_path: Path) -> None:
    assert len(read("mmbench", table(tmp_path / "dev.tsv", mmbench_row()), limit=2)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "D"}, "line 2: answer is 'D'"),
        ({"B": "nan"}, "line 2: 1 options"),
        ({"category": "object\textra"}, "line 2: another number of fields"),
    ],
)
def test_malformed_mmbench_is_named(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    refused(message, "mmbench", table(tmp_path / "dev.tsv", mmbench_row(**changes)))


def test_another_table_is_refused(tmp_path: Path) -> None:
    refused(
        "line 1: the columns question, A, B, image are missing",
        "mmbench",
        table(tmp_path / "x.tsv", {"index": "1"}),
    )


def test_a_picture_that_is_no_base64_is_refused(tmp_path: Path) -> None:
    (shown,) = read("mmbench", table(tmp_path / "dev.tsv", mmbench_row(image="$$$")))[0].images
    assert isinstance(shown, EncodedImage)
    with pytest.raises(InputError, match="not base64"):
        shown.read()


# MM-Vet


def test_mmvet_by_both_files(tmp_path: Path) -> None:
    picture(tmp_path / "v1_0.png")
    own = {
        "v1_0": {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1", "capability": ["math"]}
    }
    (found,) = read("mmvet", dump(tmp_path / "mm-vet.json", own))
    assert (found.id, found.prompt) == ("v1_0", "What is x?")
    data = lines(tmp_path / "q.jsonl", {"question_id": 0, "image": "v1_0.png", "text": "What is x?"})
    assert read("mmvet", data)[0].images == found.images
    assert BENCHMARKS["mmvet"].metric is None


# ScienceQA


def science_record(**changes: Any) -> dict[str, Any]:
    turns = [
        {"from": "human", "value": "<image>\nWhich?\nA. x\nB. y"},
        {"from": "gpt", "value": "The answer is B."},
    ]
    return {"id": "5", "image": "5/image.png", "conversations": turns, **changes}


def test_scienceqa_with_problems(tmp_path: Path) -> None:
    picture(tmp_path / "5" / "image.png")
    text_only = science_record(id="6", conversations=[{"from": "human", "value": "Which?"}])
    del text_only["image"]
    data = dump(tmp_path / "q.json", [science_record(), text_only])
    problems = {"5": {"choices": ["x", "y"], "answer": 0}, "6": {"choices": ["x", "y"], "answer": 1}}
    first, second = read("scienceqa", data, None, dump(tmp_path / "problems.json", problems))
    assert first.prompt == f"Which?\nA. x\nB. y\n{LETTER}"
    assert (first.answers, first.group) == (("A",), "image")
    assert (second.answers, second.group, second.images) == (("B",), "text", ())


def test_scienceqa_without_problems_takes_the_second_turn(tmp_path: Path) -> None:
    picture(tmp_path / "5" / "image.png")
    assert read("scienceqa", dump(tmp_path / "q.json", [science_record()]))[0].answers == ("B",)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (science_record(conversations=[]), r"entry 1: conversations is \[\]"),
        (science_record(conversations=[{"value": "?"}, {"from": "gpt"}]), "entry 1: conversations is"),
        (science_record(conversations=[{"value": "?"}]), "entry 1: the second turn is ''"),
    ],
)
def test_malformed_scienceqa_is_named(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    refused(message, "scienceqa", dump(tmp_path / "q.json", [record]))


def test_scienceqa_with_an_answer_beyond_the_choices(tmp_path: Path) -> None:
    problems = dump(tmp_path / "problems.json", {"5": {"choices": ["x"], "answer": 1}})
    refused(
        "problems.json, 5: answer is 1",
        "scienceqa",
        dump(tmp_path / "q.json", [science_record()]),
        None,
        problems,
    )


# Video


def video_files(root: Path, frames: int = 5) -> tuple[Path, Path, Path]:
    for number in range(frames):
        picture(root / "frames" / "v1" / f"{number:03d}.png")
    (root / "frames" / "v1" / "notes.txt").write_text("not a frame")
    asked = [{"video_name": "v1", "question": "what is he doing?", "question_id": "v_1"}]
    answered = [{"question_id": "v_1", "answer": "running", "type": 0}]
    return dump(root / "test_q.json", asked), root / "frames", dump(root / "test_a.json", answered)


@pytest.mark.parametrize("name", ["tgif-qa", "msvd-qa", "msrvtt-qa"])
def test_video_questions(tmp_path: Path, name: str) -> None:
    data, frames, answers = video_files(tmp_path)
    (found,) = read(name, data, frames, answers)
    assert (found.prompt, found.answers, found.group) == ("what is he doing?", ("running",), "0")
    assert [path.name for path in found.images] == [f"{n:03d}.png" for n in range(5)]
    assert BENCHMARKS[name].note is not None


@pytest.mark.parametrize(("count", "chosen"), [(1, [2]), (2, [1, 3]), (5, [0, 1, 2, 3, 4])])
def test_frames_are_spread_evenly(tmp_path: Path, count: int, chosen: list[int]) -> None:
    data, frames, answers = video_files(tmp_path)
    (found,) = read("msvd-qa", data, frames, answers, frames=count)
    assert [int(path.stem) for path in found.images] == chosen


def test_videos_without_frames_or_answers(tmp_path: Path) -> None:
    data, frames, answers = video_files(tmp_path)
    refused("entry 1: there are no frames", "msvd-qa", data, tmp_path, answers)
    refused("holds no reference answers", "msvd-qa", data, frames)
    refused("`frames` is 0", "msvd-qa", data, frames, answers, frames=0)
    refused(
        "entry 1: .*has no answer to question v_1",
        "msvd-qa",
        data,
        frames,
        dump(tmp_path / "n.json", [{"question_id": 2}]),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n{"a": 1},\n]', "line 3: not JSON"),
        ("{}", "holds a JSON dict: expected a list"),
        ("[]", "holds an empty list"),
        ("[3]", "entry 1: a JSON int"),
    ],
)
def test_malformed_json_is_named(tmp_path: Path, content: str, message: str) -> None:
    _, frames, answers = video_files(tmp_path)
    data = tmp_path / "q.json"
    data.write_text(content, encoding="utf-8")
    refused(message, "msvd-qa", data, frames, answers)
