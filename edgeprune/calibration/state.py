"""The sums of a calibration that was stopped, on the disk, so that it goes on."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.calibration.attention import Attention, Paid
from edgeprune.debias.curves import Coordinate
from edgeprune.errors import InputError
from edgeprune.files import open_regular, write_bytes
from edgeprune.settings import changes

_SCALARS = ("squares", "padding_paid", "total_paid", "padded", "tokens", "samples", "images")
_SUMS = ("sums", "counts")


class State:
    """What was gathered so far, in a file, so that a run that was stopped goes on.

    Args:
        path: the file.
        settings: everything the sums depend on, JSON values.
        places: of the curve, by each coordinate that is measured.
        stages: pruning stages that are measured.
        restart: begin anew whatever is there.

    Attributes:
        attention: for each coordinate the sums of every stage.

    Raises:
        InputError: the file is none of this kind, or of a run with other settings.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        places: Mapping[Coordinate, int],
        stages: int = 1,
        restart: bool = False,
    ) -> None:
        self.path = path
        self._settings = json.dumps(dict(settings), sort_keys=True)
        self.attention = {
            coordinate: [Attention.empty(count) for _ in range(stages)]
            for coordinate, count in places.items()
        }
        if path.exists() and not restart:
            self._read()

    @property
    def samples(self) -> int:
        """How many were added; as many to every stage."""
        first, *_ = self.attention.values()
        return first[0].samples

    def add(self, sample: Paid, image: int) -> None:
        """Adds a sample to every stage.

        Args:
            sample: what its rows pay.
            image: its image's number, as for `Attention.add`.

        Raises:
            InputError: a value is negative or no number.
        """
        valid, number = sample.valid[None], np.array([image])
        for coordinate, stages in self.attention.items():
            place = sample.places[coordinate][None]
            for stage, to_stage in zip(stages, sample.paid, strict=True):
                stage.add(to_stage[None], valid, place, number)

    def save(self) -> None:
        """Writes the sums; the file is complete or as it was before.

        Raises:
            OutputError: it cannot be written.
        """
        content = io.BytesIO()
        arrays: dict[str, Any] = {
            f"{coordinate} {name}": np.array([getattr(stage, name) for stage in stages])
            for coordinate, stages in self.attention.items()
            for name in (*_SUMS, *_SCALARS)
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
                arrays = {name: np.array(found[name]) for name in found.files if name != "settings"}
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
        if {name: array.shape for name, array in arrays.items()} != self._shapes():
            raise InputError(
                f"{self.path} is of another number of visual tokens or stages: begin anew with `restart=True`"
            )
        self.attention = {
            coordinate: [
                Attention(
                    **{name: arrays[f"{coordinate} {name}"][number] for name in _SUMS},
                    **{name: arrays[f"{coordinate} {name}"][number].item() for name in _SCALARS},
                )
                for number in range(len(stages))
            ]
            for coordinate, stages in self.attention.items()
        }

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of what `save` writes."""
        return {
            f"{coordinate} {name}": (len(stages), *(stages[0].sums.shape if name in _SUMS else ()))
            for coordinate, stages in self.attention.items()
            for name in (*_SUMS, *_SCALARS)
        }
