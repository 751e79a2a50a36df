"""Answers on disk: going on after an interruption, refusing to mix runs, and leaving others' files alone."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgeprune.errors import EdgepruneError, InputError, OutputError
from edgeprune.evaluation.predictions import Prediction, PredictionFile, check_owner
from edgeprune.questions.question import Question

QUESTIONS = [Question(id=f"q{n}", where="", prompt=f"question {n}") for n in range(3)]
SETTINGS = {"model": "m", "batch": None, "shares": (0.5, 0.3)}
HEADER = '{"edgeprune_predictions": 2, "settings": {"model": "m", "batch": null, "shares": [0.5, 0.3]}}\n'


def answer(text: str) -> Prediction:
    return Prediction(
        text=text, visual_tokens=9, kept=(3, 2), padded_kept=1, new_tokens=2, asked_kept=(True, False)
    )


def begin(path: Path, *answers: str) -> None:
    """A run that was stopped after some answers."""
    with PredictionFile(path, SETTINGS, QUESTIONS) as file:
        file.append((number, answer(text)) for number, text in enumerate(answers))


@contextmanager
def reopened(path: Path) -> Iterator[PredictionFile]:
    with PredictionFile(path, SETTINGS, QUESTIONS) as file:
        yield file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def test_a_run_goes_on_where_it_was_stopped(path: Path) -> None:
    with reopened(path) as file:
        file.append([(0, answer("red")), (2, answer("blé"))])
    with reopened(path) as file:
        assert file.missing == [1]
        file.append([(1, answer("two"))])
    with reopened(path) as file:
        assert file.missing == []
        assert file.texts() == ["red", "two", "blé"]
        assert file.done[0] == answer("red")


def test_a_line_that_was_cut_off_is_answered_again(path: Path) -> None:
    begin(path, "red", "blue")
    path.write_bytes(cut := path.read_bytes()[:-9])
    with reopened(path) as file:
        assert file.missing == [1, 2]
        assert path.read_bytes() == cut, "nothing is changed before there is something to add"
        file.append([(1, answer("green"))])
    with reopened(path) as file:
        assert [file.done[number].text for number in file.done] == ["red", "green"]


@pytest.mark.parametrize("length", range(len(HEADER)))
def test_a_run_that_was_stopped_in_its_header_begins_anew(path: Path, length: int) -> None:
    path.write_text(HEADER[:length])
    with reopened(path) as file:
        assert file.missing == [0, 1, 2]
    assert path.read_text() == HEADER


def test_lines_carry_what_other_tools_read(path: Path) -> None:
    with reopened(path) as file:
        file.append([(1, answer("red"))])
    line = json.loads(path.read_text(encoding="utf-8").splitlines()[1])
    assert line["question_id"] == "q1"
    assert line["prompt"] == "question 1"
    assert line["text"] == "red"


def test_half_a_surrogate_pair_is_written_and_read(path: Path) -> None:
    begin(path, "half \ud83d of one, and a whole \U0001f600")
    with reopened(path) as file:
        assert file.done[0].text == "half \ud83d of one, and a whole \U0001f600"


def test_answers_are_on_the_disk_when_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    with reopened(path) as file:
        monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
        file.append([(0, answer("red"))])
        assert sizes == [path.stat().st_size]


def test_a_full_disk_is_said_and_costs_no_earlier_answer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    begin(path, "red")
    with reopened(path) as file:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"cannot be written to .*No space left.*`output`"):
            file.append([(1, answer("blue"))])
        assert file.missing == [1, 2]
        monkeypatch.undo()
        file.append([(1, answer("green"))])
    with reopened(path) as file:
        assert [file.done[number].text for number in file.done] == ["red", "green"]


# Other runs


def test_other_settings_are_refused_and_named(path: Path) -> None:
    begin(path, "red")
    before = path.read_bytes()
    message = r'begun with other settings \(model was "m" and is "n"\).*`restart=True`'
    with pytest.raises(InputError, match=message):
        PredictionFile(path, {**SETTINGS, "model": "n"}, QUESTIONS)
    with pytest.raises(InputError, match="seed was null and is 1"):
        PredictionFile(path, {**SETTINGS, "seed": 1}, QUESTIONS)
    assert path.read_bytes() == before


def test_restart_begins_anew(path: Path) -> None:
    begin(path, "red")
    with PredictionFile(path, {"model": "n"}, QUESTIONS, restart=True) as file:
        assert file.missing == [0, 1, 2]


def test_a_second_run_on_one_file_is_refused_at_once(path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from tests.edgeprune.evaluation.test_predictions import *\n"
        "file = PredictionFile(Path(sys.argv[1]), SETTINGS, QUESTIONS)\n"
        "file.append([(0, answer('red'))])\n"
        "print('ready', flush=True)\ninput()"
    )
    command = [sys.executable, "-c", code, str(path)]
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        before = path.read_bytes()
        for restart in (False, True):
            with pytest.raises(OutputError, match=r"another run is writing its answers.*`output`"):
                PredictionFile(path, SETTINGS, QUESTIONS, restart)
        assert path.read_bytes() == before
        process.kill()
    with reopened(path) as file:  # the lock has ended with the process
        assert file.missing == [1, 2]


# Files of another form

WHOLE = {
    "number": 0,
    "question_id": "q0",
    "text": "red",
    "visual_tokens": 9,
    "kept": [3],
    "padded_kept": 1,
    "new_tokens": 2,
    "asked_kept": None,
}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", "line 2 is no prediction .number is missing"),
        ("[1]", "line 2 is no prediction"),
        ("null", "line 2 is no prediction"),
        ("", "line 2 is no prediction"),
        ("[" * 100_000, "nested too deeply"),
        ('{"number": 0, "question_id": "q1"}', 'question "q1" where q0 is expected'),
        ('{"number": 7, "question_id": "q7"}', "question number 7 of 3"),
        ({**WHOLE, "number": -1, "question_id": "q2"}, "-1 is no count"),
        ({**WHOLE, "number": True}, "true is no count"),
        ({**WHOLE, "number": [0]}, "is no count"),
        ({**WHOLE, "question_id": None}, "question null where q0"),
        ({**WHOLE, "visual_tokens": float("inf")}, "it holds Infinity, which is no number"),
        ({**WHOLE, "kept": [float("nan")]}, "it holds NaN, which is no number"),
        ({**WHOLE, "kept": 3}, "counts that are no list"),
        ({**WHOLE, "kept": [None]}, "null is no count"),
        ({**WHOLE, "new_tokens": 1e400}, "is no number"),
        ({**WHOLE, "new_tokens": 2.5}, "2.5 is no count"),
        ({**WHOLE, "asked_kept": [1]}, "says not of each stage"),
        ({**WHOLE, "asked_kept": True}, "says not of each stage"),
        ({**WHOLE, "text": 3}, "no text"),
        (b"\xff\xfe", "line 2 is no prediction"),
        (b'{"number": 1' + b"0" * 10_000 + b"}", "line 2 is no prediction"),
    ],
)
def test_a_damaged_line_is_named_and_nothing_changed(path: Path, line: Any, message: str) -> None:
    begin(path)
    content = json.dumps(line).encode() if isinstance(line, dict) else line
    path.write_bytes(
        before := path.read_bytes() + (content.encode() if isinstance(content, str) else content) + b"\n"
    )
    with pytest.raises(InputError, match=f"{message}.*`restart=True`"):
        PredictionFile(path, SETTINGS, QUESTIONS)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "header",
    [
        '{"edgeprune_predictions": 0, "settings": {}}',
        '{"edgeprune_predictions": 1}',
        '{"edgeprune_predictions": 1, "settings": null}',
        '{"edgeprune_predictions": 1, "settings": [1]}',
        '{"edgeprune_predictions": 1, "settings": 3}',
        '{"edgeprune_predictions": null, "settings": {}}',
        '{"edgeprune_predictions": 1, "settings": ' + "[" * 100_000,
        '{"edgeprune_predictions": 1, "settings": {"model": NaN}}',
        '{"edgeprune_predictions": 1, "settings": {"\\n\\u001b[2J": 1}}',
        '{"edgeprune_predictions": }',
    ],
)
def test_a_header_of_another_form_is_one_sentence(path: Path, header: str) -> None:
    path.write_text(f"{header}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"`restart=True`") as caught:
        PredictionFile(path, SETTINGS, QUESTIONS)
    assert str(caught.value).isprintable()
    assert path.read_text(encoding="utf-8") == f"{header}\n"
    with PredictionFile(path, SETTINGS, QUESTIONS, restart=True) as file:
        assert file.missing == [0, 1, 2]


# Other files

FOREIGN = [
    "text\n",
    "no line end",
    '{"mine": 1}',
    '{"mine": 1}\nand more',
    '{"question_id": 1}\n',
    '{"edgeprune_predictions_of_mine": 1}',
    "\x00\xff\n",
    "\n",
]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("content", FOREIGN)
def test_another_file_is_never_written_to(path: Path, content: str, restart: bool) -> None:
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"no file of predictions.*move it away"):
        PredictionFile(path, SETTINGS, QUESTIONS, restart)
    assert path.read_text(encoding="utf-8") == content


@pytest.mark.parametrize("content", ["", '{"mine": 1}', HEADER])
def test_a_link_is_not_written_through(path: Path, content: str) -> None:
    target = path.with_name("mine")
    target.write_text(content)
    path.symlink_to(target)
    with pytest.raises(InputError, match="is a link"):
        PredictionFile(path, SETTINGS, QUESTIONS)
    assert target.read_text() == content


def test_a_link_to_nowhere_makes_no_file_there(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))
    with pytest.raises(InputError, match="is a link"):
        PredictionFile(path, SETTINGS, QUESTIONS)
    assert not path.exists()


def test_pipes_and_folders_are_refused_at_once(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(InputError, match="is a pipe: expected a regular file"):
        PredictionFile(path, SETTINGS, QUESTIONS)
    with pytest.raises(InputError, match="is a folder: expected a regular file"):
        PredictionFile(path.parent, SETTINGS, QUESTIONS)


def test_a_folder_that_is_missing(path: Path) -> None:
    with pytest.raises(EdgepruneError, match="cannot be written to"):
        PredictionFile(path / "none" / "answers.jsonl", SETTINGS, QUESTIONS)


def test_whose_it_is_can_be_asked_before_there_are_settings(path: Path) -> None:
    check_owner(path)
    begin(path)
    check_owner(path)
    path.write_text('{"mine": 1}')
    with pytest.raises(InputError, match="no file of predictions"):
        check_owner(path)
