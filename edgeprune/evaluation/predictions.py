"""The answers of a run on disk: JSON lines, a header with the run's settings first.

Every answer is written as it comes, so a run that was stopped goes on where it ended. A run with other
settings does not: its answers would be mixed with those of another. Nothing is changed in a file before it
is clear that it is ours, and no two runs write to one.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeprune.errors import InputError, OutputError
from edgeprune.files import flush, open_regular
from edgeprune.json_file import parse_json
from edgeprune.questions.question import Question
from edgeprune.scratch import lock_descriptor
from edgeprune.settings import changes, short

HEADER = "edgeprune_predictions"
_VERSION = 2
_LONGEST_HEADER = 1000


@dataclass(frozen=True)
class Prediction:
    """The answer to one question, and what pruning did for it.

    Attributes:
        text: the answer, without space around it.
        visual_tokens: of the prompt.
        kept: per pruning stage, the visual tokens kept.
        padded_kept: of those that the first stage kept, how many are padding.
        asked_kept: per pruning stage, whether the token that shows what is asked about stayed; None where the
            question does not say which one does.
        new_tokens: generated.
    """

    text: str
    visual_tokens: int
    kept: tuple[int, ...]
    padded_kept: int
    new_tokens: int
    asked_kept: tuple[bool, ...] | None = None


class PredictionFile:
    """The predictions of one run. The file is locked until `close`, or the end of a `with` block.

    Args:
        path: the file; an earlier run of the same settings is gone on with. Another file is left as it is.
        settings: everything an answer depends on, JSON values.
        questions: of the run, in order.
        restart: begin anew even if an earlier run had other settings, or is damaged.

    Attributes:
        done: the predictions by their question's number.

    Raises:
        InputError: the file is none of predictions, or of a run with other settings or questions.
        OutputError: it cannot be written, or another run writes to it.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        questions: Sequence[Question],
        restart: bool = False,
    ) -> None:
        self.path = path
        self._questions = questions
        self.done: dict[int, Prediction] = {}
        # As JSON has them, so that tuples and the like compare equal to what is read.
        wanted = json.loads(json.dumps(dict(settings)))
        header = json.dumps({HEADER: _VERSION, "settings": wanted}) + "\n"
        self._file = _opened(path)
        try:
            _lock(self._file, path)
            check_owner(path)
            content = self._file.read()
            cut_off = b"\n" not in content and header.encode().startswith(content)
            if restart or cut_off:  # a new file is cut off before its first byte
                self._end = 0
                self._write(header)
            else:
                self._end = content.rfind(b"\n") + 1  # a line that an interruption cut off is written over
                self._read(content[: self._end].split(b"\n")[:-1], wanted)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> PredictionFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the run: no more can be added, and others may use the file."""
        self._file.close()

    @property
    def missing(self) -> list[int]:
        """Numbers of the questions without an answer yet."""
        return [number for number in range(len(self._questions)) if number not in self.done]

    def texts(self) -> list[str]:
        """All answers in order; the run must be complete."""
        return [self.done[number].text for number in range(len(self._questions))]

    def append(self, answered: Iterable[tuple[int, Prediction]]) -> None:
        """Adds predictions by their question's number, on the disk before this returns.

        Raises:
            OutputError: they cannot be written.
        """
        added = dict(answered)
        lines = []
        for number, prediction in added.items():
            question = self._questions[number]
            line = {
                "number": number,
                "question_id": question.id,
                "prompt": question.prompt,
                **asdict(prediction),
            }
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        self._write("".join(lines))
        self.done |= added

    def _write(self, text: str) -> None:
        # Half a surrogate pair becomes an escape, as JSON has them.
        content = text.encode("utf-8", "backslashreplace")
        try:
            self._file.seek(self._end)
            self._file.truncate()
            left = memoryview(content)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(
                f"the answers cannot be written to {self.path} ({error.strerror}): free some space or choose "
                "another `output`"
            ) from error
        self._end += len(content)

    def _read(self, lines: Sequence[bytes], wanted: Mapping[str, Any]) -> None:
        try:
            header = parse_json(lines[0]) if lines else None
        except ValueError:
            header = None
        found = header.get("settings") if isinstance(header, dict) else None
        if not isinstance(header, dict) or header.get(HEADER) != _VERSION or not isinstance(found, dict):
            raise InputError(
                f"{self.path} is a file of predictions of another version, or damaged: give another "
                "`output`, or begin anew with `restart=True`"
            )
        if changed := changes(found, wanted):
            raise InputError(
                f"{self.path} was begun with other settings ({changed}): expected the same to go "
                "on; give another `output`, or begin anew with `restart=True`"
            )
        for number, line in enumerate(lines[1:], start=2):
            try:
                self._take(parse_json(line))
            except (ValueError, KeyError, TypeError) as error:
                reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
                raise InputError(
                    f"{self.path}, line {number} is no prediction ({reason}): the file is damaged; begin "
                    "anew with `restart=True`"
                ) from error

    def _take(self, values: Any) -> None:
        """Takes a line's prediction; ValueError, KeyError or TypeError where it is none."""
        if not isinstance(values, dict):
            raise TypeError("no JSON object")
        number = _count(values["number"])
        if number >= len(self._questions):
            raise ValueError(f"question number {number} of {len(self._questions)}")
        question = self._questions[number]
        if values["question_id"] != question.id:
            raise ValueError(f"question {short(values['question_id'])} where {question.id} is expected")
        if not isinstance(values["text"], str) or not isinstance(values["kept"], list):
            raise TypeError("an answer that is no text, or counts that are no list")
        self.done[number] = Prediction(
            text=values["text"],
            visual_tokens=_count(values["visual_tokens"]),
            kept=tuple(map(_count, values["kept"])),
            padded_kept=_count(values["padded_kept"]),
            new_tokens=_count(values["new_tokens"]),
            asked_kept=_flags(values["asked_kept"]),
        )


def check_owner(path: Path) -> None:
    """Looks whose file it is, by its first line; nothing is changed. A missing or empty one is free to take.

    Raises:
        InputError: it is no file of predictions, or a link.
    """
    try:
        if path.is_symlink():
            raise InputError(
                f"{path} is a link: answers are not written to where it leads; remove it, or give another "
                "`output`"
            )
        with open_regular(path, "the file of predictions") as file:
            start = file.read(_LONGEST_HEADER)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give another `output`") from error
    line, ended, _ = start.partition(b"\n")
    begun = f'{{"{HEADER}": '.encode()
    if start and not (line.startswith(begun) or (not ended and begun.startswith(line))):
        raise InputError(
            f"{path} is no file of predictions: expected one that edgeprune wrote, or none; move it away, or "
            "give another `output`"
        )


def _opened(path: Path) -> io.FileIO:
    """For reading and writing; a new one is empty. Neither pipes nor links are followed."""
    check_owner(path)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags, 0o666)
        flush(path.parent)
        return io.FileIO(descriptor, "r+")
    except OSError as error:
        raise OutputError(
            f"the answers cannot be written to {path} ({error.strerror}): choose another `output`"
        ) from error


def _lock(file: io.FileIO, path: Path) -> None:
    try:
        lock_descriptor(file.fileno())
    except BlockingIOError as error:
        raise OutputError(
            f"another run is writing its answers to {path}: wait until it ends, or choose another `output`"
        ) from error
    except OSError:  # no locks here
        pass


def _flags(value: object) -> tuple[bool, ...] | None:
    if value is not None and not (isinstance(value, list) and all(isinstance(one, bool) for one in value)):
        raise TypeError(f"{short(value)} says not of each stage whether the asked token stayed")
    return None if value is None else tuple(value)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{short(value)} is no count")
    return value
