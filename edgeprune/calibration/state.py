"""The sums of a calibration that was stopped, on the disk, so that it goes on."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.calibration.attention import Attention
from edgeprune.errors import InputError
from edgeprune.files import open_regular, write_bytes
from edgeprune.settings import changes

_SCALARS = ("padding_paid", "total_paid", "padded", "tokens", "samples", "images")
_SUMS = ("sums", "counts")


class State:
    """What was gathered so far, in a file, so that a run that was stopped goes on.

    Args:
        path: the file.
        settings: everything the sums depend on, JSON values.
        places: of the curve.
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
        places: int,
        stages: int = 1,
        restart: bool = False,
    ) -> None:
        self.path = path
        self._settings = json.dumps(dict(settings), sort_keys=True)
        self.attention = [Attention.empty(places) for _ in range(stages)]
        if path.exists() and not restart:
            self._read()

    @property
    def samples(self) -> int:
        """How many were added; as many to every stage."""
        return self.attention[0].samples

    def add(
        self,
        paid: NDArray[np.float32],
        valid: NDArray[np.float32],
        place: NDArray[np.int64],
        image: NDArray[np.int64],
    ) -> None:
        """Adds samples to every stage.

        Args:
            paid: float32 [stages, N, V].
            valid, place, image: as for `Attention.add`.

        Raises:
            InputError: a value is negative or no number.
        """
        for stage, to_stage in zip(self.attention, paid, strict=True):
            stage.add(to_stage, valid, place, image)

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
