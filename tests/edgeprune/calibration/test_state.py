"""An unfinished calibration on the disk."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edgeprune.calibration.attention import Paid
from edgeprune.calibration.state import State
from edgeprune.debias.curves import Coordinate
from edgeprune.errors import InputError, OutputError

PLACES: dict[Coordinate, int] = {"image": 36, "row": 6}
SETTINGS = {"method": "fastv", "grid": [6, 6]}


def add(state: State, count: int = 5) -> None:
    rng = np.random.default_rng(state.samples)
    for number in range(state.samples, state.samples + count):
        valid = (rng.random(36) > 0.2).astype(np.float32)
        paid = rng.random((len(state.attention["image"]), 36)).astype(np.float32)
        state.add(Paid(paid, valid, {"image": np.arange(36), "row": np.arange(36) % 6}), number)


@pytest.mark.parametrize("stages", [1, 3])
def test_an_unfinished_run_goes_on(tmp_path: Path, stages: int) -> None:
    path = tmp_path / "state.npz"
    first = State(path, SETTINGS, PLACES, stages)
    add(first)
    first.save()
    again = State(path, SETTINGS, PLACES, stages)
    assert again.samples == 5
    assert [stage.images for stage in again.attention["image"]] == [5] * stages
    add(first)
    add(again)
    for coordinate in PLACES:
        pairs = zip(again.attention[coordinate], first.attention[coordinate], strict=True)
        for ours, theirs in pairs:
            for name in ("sums", "counts", "squares", "padding_paid", "total_paid", "padded", "tokens"):
                assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    assert len({stage.total_paid for stage in again.attention["image"]}) == stages
    again.remove()
    assert State(path, SETTINGS, PLACES, stages).samples == 0


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    State(path, SETTINGS, PLACES).save()
    with pytest.raises(
        InputError, match=r'other settings \(method was "fastv" and is "himap"\).*`restart=True`'
    ):
        State(path, {**SETTINGS, "method": "himap"}, PLACES)
    for places, stages in (({**PLACES, "image": 35}, 1), (PLACES, 2), ({"image": 36}, 1)):
        with pytest.raises(InputError, match=r"another number of visual tokens or stages: .*`restart=True`"):
            State(path, SETTINGS, places, stages)
    assert State(path, {}, PLACES, restart=True).samples == 0


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 no archive"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no unfinished calibration"):
        State(path, SETTINGS, PLACES)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    np.savez(path, settings=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="is no unfinished calibration"):
        State(path, SETTINGS, PLACES)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="what was measured so far cannot be written"):
        State(tmp_path / "nowhere" / "state.npz", SETTINGS, PLACES).save()


@pytest.mark.parametrize("settings", ["null", "[]", "3", "{", "[" * 100_000])
def test_settings_of_another_form_are_refused(tmp_path: Path, settings: str) -> None:
    path = tmp_path / "state.npz"
    np.savez(path, settings=np.array(settings))
    with pytest.raises(InputError, match="is no unfinished calibration"):
        State(path, SETTINGS, PLACES)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "state.npz")
    with pytest.raises(InputError, match="is a pipe"):
        State(tmp_path / "state.npz", SETTINGS, PLACES)
