"""`edgeprune calibrate`: figures on stdout; curve, report and plot in files; mistakes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprune.calibration import Calibration, Outputs, run
from edgeprune.calibration.attention import Attention
from edgeprune.calibration.report import calibration_of
from edgeprune.debias.curves import FittedTo
from edgeprune.plans import method_by_name
from tests.edgeprune.cli.conftest import Cli
from tests.edgeprune.evaluation.files import picture

ABOUT = FittedTo(model="tiny", weights="12ab", method="fastv", layer=2, grid=(6, 6), images=60)


def noise(seed: int) -> Attention:
    """Without a trend; a third stage gets no attention at all, to which nothing can be fitted."""
    attention = Attention.empty(36)
    paid = np.random.default_rng(seed).uniform(0.5, 1.5, (60, 36)).astype(np.float32) * (seed != 2)
    attention.add(paid, np.ones_like(paid), np.tile(np.arange(36), (60, 1)), np.arange(60))
    return attention


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Puts a calibration without a trend in the place of a real one; remembers what it was asked for."""
    made: list[dict[str, Any]] = []

    def calibrate(model: str, images: Path, output: Path, **options: Any) -> Calibration:
        options.pop("progress")
        made.append({"model": model, "images": images, **options})
        stages = method_by_name(options["method"]).plan(32, layer=options["layer"]).stages
        found = calibration_of(
            ABOUT, stages, {"image": [noise(seed) for seed in range(len(stages))]}, "exponential"
        )
        run.write(found, Outputs.beside(output), options["plot"])
        return found

    monkeypatch.setattr(run, "calibrate", calibrate)
    monkeypatch.chdir(tmp_path)
    return made


def test_figures_and_files(cli: Cli, calls: list[dict[str, Any]]) -> None:
    result = cli("calibrate", "model", "--images", "pictures", "-o", "c.json")
    assert result.code == 0, result
    assert "exponential (chosen)" in result.out
    assert "not significant" in result.out
    assert "note: attention does not change with the token's index" in result.err
    assert "--debias padding" in result.err
    assert "written: c.json, c.report.json, c.png" in result.out
    assert json.loads(Path("c.report.json").read_text())["stages"][0]["significant"] is False
    assert "stage" not in result.out
    assert Path("c.png").stat().st_size > 10_000
    assert calls == [
        {
            "model": "model",
            "images": Path("pictures"),
            "prompts": None,
            "method": "fastv",
            "layer": None,
            "trend": None,
            "coordinate": None,
            "limit": None,
            "batch": 8,
            "restart": False,
            "plot": True,
        }
    ]


def test_every_stage_has_a_line(cli: Cli, calls: list[dict[str, Any]]) -> None:
    result = cli("calibrate", "model", "--images", "pictures", "--method", "sparsevlm", "-o", "c.json")
    assert result.code == 0, result
    lines = [line.split() for line in result.out.splitlines() if line.strip().startswith("before layer")]
    assert [line[2] for line in lines] == ["3", "7", "16"]
    assert [line[3:5] for line in lines][2] == ["not", "fitted"]
    for line in lines[:2]:  # before layer L, b ± error, significance, R², two correlations, two shares
        assert line[4] == "±"
        assert line[6] == "no"
        assert line[10:] == ["0.0%", "0.0%"]
    assert "note: before layer 16: of 36 visual tokens 36 ever show an image" in result.out
    assert len(json.loads(Path("c.report.json").read_text())["stages"]) == 3


def test_options_are_passed_on(cli: Cli, calls: list[dict[str, Any]]) -> None:
    options = ("--method", "himap", "--layer", "2,3", "--trend", "cubic", "--limit", "50", "--batch", "4")
    result = cli(
        "calibrate", "m", "--images", "p", "--prompts", "q.txt", *options, "--restart", "--json", "--no-plot"
    )
    assert json.loads(result.out)["model"] == "tiny"
    assert not Path("curve.png").exists()
    assert calls[0]["layer"] == (2, 3)
    assert calls[0]["prompts"] == Path("q.txt")
    assert (calls[0]["method"], calls[0]["trend"], calls[0]["limit"]) == ("himap", "cubic", 50)
    assert (calls[0]["batch"], calls[0]["restart"]) == (4, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "curve"], "curve does not end as a curve's name: expected .json"),
        (["-o", "nowhere/curve.json"], "expected a file's name in a folder that exists"),
        (["--layer", "two"], "Invalid value for '--layer': 'two' is not a whole number"),
        (["--trend", "linear"], "'linear' is not one of"),
    ],
)
def test_mistakes_before_any_work(cli: Cli, options: list[str], message: str) -> None:
    """Neither the model nor the images are there, and nobody looked."""
    assert message in cli("calibrate", "model", "--images", "pictures", *options).message


def test_without_matplotlib_it_does_not_begin(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "edgeprune[plot]" in cli("calibrate", "model", "--images", "pictures").message
    message = cli("calibrate", "model", "--images", "pictures", "--no-plot").message
    assert message.startswith("there is no file pictures")


def test_mistakes_that_need_the_model(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = Path(__file__).resolve().parents[3] / "samples" / "tiny-llava"
    picture(tmp_path / "pictures" / "a.png")
    (tmp_path / "empty").mkdir()

    def message(*options: str) -> str:
        return cli("calibrate", model, "--images", "pictures", *options).message

    assert "empty has no images" in cli("calibrate", model, "--images", "empty").message
    assert "unknown pruning method 'fastw'" in message("--method", "fastw")
    assert "layer 9 cannot be pruned at" in message("--layer", "9")
    assert "found 1, expected at least 40" in message()
    assert "there is no file nothing.txt" in message("--prompts", "nothing.txt")
