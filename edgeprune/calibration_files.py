"""What a calibration has on the disk: its outputs, and the sums of a run that was stopped."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.debias.curves import load_curve
from edgeprune.errors import InputError, OutputError
from edgeprune.files import open_regular, refuse_same, write_bytes
from edgeprune.fitting import Attention
from edgeprune.settings import changes

_SCALARS = ("padding_paid", "total_paid", "padded", "tokens", "samples", "pictures")
_SUMS = ("sums", "counts")


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

    def check(self, inputs: Iterable[str | os.PathLike[str] | None]) -> None:
        """Refuses to write over what is read, or what no earlier calibration wrote.

        Args:
            inputs: the files that are read.

        Raises:
            InputError: an output is an input, or another file of its name is there.
            OutputError: the folder is not there or cannot be written to.
        """
        refuse_same((self.curve, self.report, self.plot, self.unfinished), inputs)
        folder = self.curve.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise OutputError(
                f"{self.curve} cannot be written: expected a file's name in a folder that exists and can be "
                "written to"
            )
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


class State:
    """What was gathered so far, in a file, so that a run that was stopped goes on.

    Args:
        path: the file.
        settings: everything the sums depend on, JSON values.
        visual_tokens: of a picture.
        stages: pruning stages that are measured.
        restart: begin anew whatever is there.

    Attributes:
        attention: the sums of every stage.

    Raises:
        InputError: the file is none of this kind, or of a run with other settings.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        visual_tokens: int,
        stages: int = 1,
        restart: bool = False,
    ) -> None:
        self.path = path
        self._settings = json.dumps(dict(settings), sort_keys=True)
        self.attention = [Attention.empty(visual_tokens) for _ in range(stages)]
        if path.exists() and not restart:
            self._read()

    @property
    def samples(self) -> int:
        """How many were added; as many to every stage."""
        return self.attention[0].samples

    def add(self, paid: NDArray[np.float32], valid: NDArray[np.float32], picture: NDArray[np.int64]) -> None:
        """Adds samples to every stage.

        Args:
            paid: float32 [stages, N, V].
            valid, picture: as for `Attention.add`.

        Raises:
            InputError: a value is negative or no number.
        """
        for stage, to_stage in zip(self.attention, paid, strict=True):
            stage.add(to_stage, valid, picture)

    def save(self) -> None:
        """Writes the sums; the file is complete or as it was before.

        Raises:
            OutputError: it cannot be written.
        """
        content = io.BytesIO()
        arrays: dict[str, Any] = {
            name: np.array([getattr(stage, name) for stage in self.attention]) for name in (*_SUMS, *_SCALARS)
        }
        np.savez(content, settings=np.array(self._settings), **arrays)
        write_bytes(self.path, content.getvalue(), "what was measured so far")

    def remove(self) -> None:
        """The run is complete."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        try:
            with open_regular(self.path) as file, np.load(file, allow_pickle=False) as found:
                settings = json.loads(str(found["settings"]))
                arrays = {name: np.array(found[name]) for name in (*_SUMS, *_SCALARS)}
            if not isinstance(settings, dict):
                raise ValueError("its settings are no object")
        except Exception as error:  # numpy and zipfile raise errors of many kinds on damaged files
            raise InputError(
                f"{self.path} is no unfinished calibration ({error}): remove it, or begin anew with "
                "`restart=True`"
            ) from error
        if changed := changes(settings, json.loads(self._settings)):
            raise InputError(
                f"{self.path} is an unfinished calibration with other settings ({changed}): "
                "expected the same to go on; give another `output`, or begin anew with `restart=True`"
            )
        stages = len(self.attention)
        shapes = dict.fromkeys(_SUMS, (stages, *self.attention[0].sums.shape))
        if any(arrays[name].shape != shapes.get(name, (stages,)) for name in arrays):
            raise InputError(
                f"{self.path} is of another number of visual tokens or stages: begin anew with `restart=True`"
            )
        self.attention = [
            Attention(
                **{name: arrays[name][number] for name in _SUMS},
                **{name: arrays[name][number].item() for name in _SCALARS},
            )
            for number in range(stages)
        ]
