"""The files that a calibration writes, looked at before the model is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgeprune.debias.curves import load_curve
from edgeprune.errors import InputError, OutputError
from edgeprune.files import refuse_same


@dataclass(frozen=True)
class Outputs:
    """The files that a calibration writes: curve, all figures, plot, and what an unfinished run gathered."""

    curve: Path
    report: Path
    plot: Path
    unfinished: Path

    @classmethod
    def beside(cls, curve: Path) -> Outputs:
        """By the curve's name."""
        return cls(
            curve,
            curve.with_suffix(".report.json"),
            curve.with_suffix(".png"),
            curve.with_name(f"{curve.name}.unfinished.npz"),
        )

    def check_folder(self) -> None:
        """Refuses a name that is no curve's, and a folder that nothing can be written to.

        Raises:
            InputError: the name does not end in .json.
            OutputError: the folder is not there or cannot be written to.
        """
        if self.curve.suffix != ".json":
            raise InputError(f"{self.curve} does not end as a curve's name: expected .json")
        folder = self.curve.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise OutputError(
                f"{self.curve} cannot be written: expected a file's name in a folder that exists and can be "
                "written to"
            )

    def check(self, inputs: Iterable[str | os.PathLike[str] | None]) -> None:
        """Refuses to write over what is read, or what no earlier calibration wrote.

        Args:
            inputs: the files that are read.

        Raises:
            InputError: an output is an input, or another file of its name is there.
            OutputError: the folder is not there or cannot be written to.
        """
        refuse_same((self.curve, self.report, self.plot, self.unfinished), inputs)
        self.check_folder()
        if os.path.lexists(self.curve):
            try:
                load_curve(self.curve)
            except InputError as error:
                raise InputError(
                    f"{self.curve} exists and is no bias curve: move it away, or give another `output`"
                ) from error
            return
        foreign = next((path for path in (self.report, self.plot) if os.path.lexists(path)), None)
        if foreign is not None:
            raise InputError(
                f"{foreign} exists without the bias curve {self.curve.name} beside it, so no calibration "
                "wrote it: move it away, or give another `output`"
            )
