"""The files that an evaluation writes into its folder, looked at before the first question is asked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeprune.errors import InputError
from edgeprune.evaluation.predictions import check_owner
from edgeprune.files import refuse_same
from edgeprune.questions.llava import Files
from edgeprune.questions.question import Question


@dataclass(frozen=True)
class Outputs:
    """What an evaluation writes.

    Attributes:
        predictions: the files of answers, which say whose they are.
        results: what is made of the answers, and written anew each time.
    """

    predictions: tuple[Path, ...]
    results: tuple[Path, ...]

    def check(self, inputs: Iterable[str | os.PathLike[str] | None]) -> None:
        """Refuses to write over the user's own files.

        Args:
            inputs: what the evaluation reads.

        Raises:
            InputError: an output is one of the inputs, or there is a file of its name that no earlier
                evaluation wrote.
        """
        refuse_same([*self.predictions, *self.results], inputs)
        for path in self.predictions:
            check_owner(path)
        # Answers are written before any result, so without them these are not ours.
        if not any(path.exists() for path in self.predictions):
            foreign = [path for path in self.results if os.path.lexists(path)]
            if foreign:
                raise InputError(
                    f"{foreign[0]} exists, and no answers of an earlier evaluation beside it: it would be "
                    "written over; move it away, or give another `output`"
                )


def inputs_of(files: Files, questions: Sequence[Question]) -> list[Path | None]:
    """Every file that the questions come from."""
    images = {image for question in questions for image in question.images}
    return [files.data, files.annotations, *(path for path in images if isinstance(path, Path))]
