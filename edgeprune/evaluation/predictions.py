"""The answers of a run on disk: JSON lines, a header with the run's settings first.

Every answer is written as it comes, so a run that was stopped goes on where it ended. A run with other
settings does not: its answers would be mixed with those of another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeprune.errors import InputError
from edgeprune.evaluation.questions import Question
from edgeprune.files import write_text

HEADER = "edgeprune_predictions"
_VERSION = 1


@dataclass(frozen=True)
class Prediction:
    """The answer to one question, and what pruning did for it.

    Attributes:
        text: the answer, without space around it.
        visual_tokens: of the prompt.
        kept: per pruning stage, the visual tokens kept.
        padded_kept: of those that the first stage kept, how many are padding.
        new_tokens: generated.
    """

    text: str
    visual_tokens: int
    kept: tuple[int, ...]
    padded_kept: int
    new_tokens: int


class PredictionFile:
    """The predictions of one run.

    Args:
        path: the file; an earlier run of the same settings is gone on with.
        settings: everything an answer depends on, JSON values.
        questions: of the run, in order.
        restart: begin anew whatever is there.

    Attributes:
        done: the predictions by their question's number.

    Raises:
        InputError: the file is none of predictions, or of a run with other settings or questions.
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
        if restart or not path.exists():
            write_text(path, json.dumps({HEADER: _VERSION, "settings": wanted}) + "\n")
            return
        lines = self._whole_lines()
        self._check_header(lines[0] if lines else "", wanted)
        for number, line in enumerate(lines[1:], start=2):
            self._read(line, f"{path}, line {number}")

    @property
    def missing(self) -> list[int]:
        """Numbers of the questions without an answer yet."""
        return [number for number in range(len(self._questions)) if number not in self.done]

    def texts(self) -> list[str]:
        """All answers in order; the run must be complete."""
        return [self.done[number].text for number in range(len(self._questions))]

    def append(self, answered: Iterable[tuple[int, Prediction]]) -> None:
        """Adds predictions by their question's number, on disk before this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            for number, prediction in answered:
                question = self._questions[number]
                line = {
                    "number": number,
                    "question_id": question.id,
                    "prompt": question.prompt,
                    **asdict(prediction),
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                self.done[number] = prediction

    def _whole_lines(self) -> list[str]:
        """The file's lines; one that an interruption cut off is removed from it."""
        content = self.path.read_bytes()
        whole, _, rest = content.rpartition(b"\n")
        if rest:
            with self.path.open("r+b") as file:
                file.truncate(len(content) - len(rest))
        return whole.decode("utf-8", "replace").split("\n") if whole else []

    def _check_header(self, line: str, wanted: dict[str, Any]) -> None:
        try:
            header = json.loads(line)
        except ValueError:
            header = None
        if not isinstance(header, dict) or header.get(HEADER) != _VERSION:
            raise InputError(
                f"{self.path} is no file of predictions of this version: expected one, or none; give another "
                "--output, or begin anew with --restart"
            )
        found = header.get("settings", {})
        changed = [
            f"{name} was {_short(found.get(name))} and is {_short(wanted.get(name))}"
            for name in {**found, **wanted}
            if found.get(name) != wanted.get(name)
        ]
        if changed:
            raise InputError(
                f"{self.path} was begun with other settings ({'; '.join(changed)}): expected the "
                "same to go on; give another --output, or begin anew with --restart"
            )

    def _read(self, line: str, where: str) -> None:
        try:
            values = json.loads(line)
            number = values["number"]
            question = self._questions[number]
            if values["question_id"] != question.id:
                raise ValueError(f"question {values['question_id']} where {question.id} is expected")
            self.done[number] = Prediction(
                text=str(values["text"]),
                visual_tokens=int(values["visual_tokens"]),
                kept=tuple(values["kept"]),
                padded_kept=int(values["padded_kept"]),
                new_tokens=int(values["new_tokens"]),
            )
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(
                f"{where} is no prediction ({error}): the file is damaged; begin anew with --restart"
            ) from error


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:36]}..."
