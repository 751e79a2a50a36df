"""The files that a calibration would write over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeprune.calibration.outputs import Outputs
from edgeprune.debias.curves import ExponentialCurve, save_curve
from edgeprune.errors import InputError, OutputError


def test_outputs_go_by_the_curves_name(tmp_path: Path) -> None:
    found = Outputs.beside(tmp_path / "a.json")
    assert [path.name for path in (found.curve, found.report, found.plot, found.unfinished)] == [
        "a.json",
        "a.report.json",
        "a.png",
        "a.json.unfinished.npz",
    ]
    found.check([])


def test_an_earlier_curve_is_written_over_with_all_beside_it(tmp_path: Path) -> None:
    found = Outputs.beside(tmp_path / "curve.json")
    save_curve(ExponentialCurve(b=0.01, num_tokens=36), found.curve)
    found.report.touch()
    found.plot.touch()
    found.check([tmp_path / "images.txt"])


@pytest.mark.parametrize("content", ["{}", "", '{"mine": 1}', json.dumps({"kind": "mine"})])
def test_another_file_at_the_output_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "curve.json").write_text(content)
    with pytest.raises(InputError, match=r"exists and is no bias curve: move it away"):
        Outputs.beside(tmp_path / "curve.json").check([])


@pytest.mark.parametrize("name", ["cat.png", "cat.report.json"])
def test_a_file_beside_it_that_no_calibration_wrote_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=rf"{name} exists without the bias curve cat\.json"):
        Outputs.beside(tmp_path / "cat.json").check([])


@pytest.mark.parametrize("name", ["cat.json", "cat.png", "cat.report.json", "cat.json.unfinished.npz"])
def test_no_output_is_an_input(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(name)
    with pytest.raises(InputError, match="are one file"):
        Outputs.beside(tmp_path / "cat.json").check([tmp_path / "link"])


def test_a_folder_that_is_missing_is_seen_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="in a folder that exists"):
        Outputs.beside(tmp_path / "none" / "curve.json").check([])


def test_a_name_that_is_no_curves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cat\.png does not end as a curve's name: expected \.json"):
        Outputs.beside(tmp_path / "cat.png").check([])
