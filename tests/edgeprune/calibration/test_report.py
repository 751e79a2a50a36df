"""What a calibration came to: the figures, the curve and the plot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeprune.calibration.attention import Attention
from edgeprune.calibration.plot import plot
from edgeprune.calibration.report import Calibration, calibration_of
from edgeprune.debias.curves import Coordinate, ExponentialCurve, FittedTo, load_curve, save_curve
from edgeprune.errors import InputError, OutputError
from edgeprune.plans import PruningStage, ScoringRows

ABOUT = FittedTo(model="tiny", weights="12ab", method="fastv", layer=2, grid=(6, 6), images=60)
PLACES = np.tile(np.arange(36), (60, 1))


def gathered(b: float, seed: int = 0) -> Attention:
    attention = Attention.empty(36)
    valid = np.ones((60, 36), dtype=np.float32)
    valid[::2, :6] = 0
    paid = np.exp(b * np.arange(36)) * np.random.default_rng(seed).uniform(0.9, 1.1, (60, 36))
    attention.add(paid.astype(np.float32), valid, PLACES, np.arange(60))
    return attention


STAGES = (
    PruningStage(layer=2, score_layer=1, rows=ScoringRows.TEXT_AFTER_IMAGE, keep=5000),
    PruningStage(layer=4, score_layer=3, rows=ScoringRows.IMAGE, keep=5000),
)


@pytest.fixture
def calibration() -> Calibration:
    return calibration_of(ABOUT, STAGES, {"image": [gathered(0.02), gathered(0.05, 1)]}, "exponential")


def test_the_report_has_every_figure(calibration: Calibration) -> None:
    report = json.loads(json.dumps(calibration.to_dict()))
    assert (report["model"], report["layer"], report["advice"]) == ("tiny", 2, None)
    first, second = report["stages"]
    assert [first[name] for name in ("layer", "score_layer", "rows")] == [2, 1, "text_after_image"]
    assert [second[name] for name in ("layer", "score_layer", "rows")] == [4, 3, "image"]
    for stage, b in ((first, 0.02), (second, 0.05)):
        assert stage["chosen"] == "exponential"
        assert stage["b"] == pytest.approx(b, rel=0.05)
        assert stage["last_over_first"] == pytest.approx(np.exp(35 * stage["b"]))
        assert stage["significant"] is True
        assert stage["spearman_before"] > 0.9 > abs(stage["spearman_after"])
        assert set(stage["trends"]) == {"exponential", "cubic", "smooth"}
        assert stage["padding_share_of_tokens"] == pytest.approx(6 / 72)
        assert stage["padding_share_of_attention"] < stage["padding_share_of_tokens"]
        assert stage["samples_per_token"] == [30] * 6 + [60] * 30


def test_the_curve_is_the_first_stages(calibration: Calibration) -> None:
    assert isinstance(calibration.curve, ExponentialCurve)
    assert calibration.curve.b == calibration.fit.slope.b == pytest.approx(0.02, rel=0.05)
    assert calibration.curve.fitted_to == ABOUT
    assert calibration.curve.source == "measured on tiny, fastv before layer 2, 60 images"


def flat_but_for_a_few() -> Attention:
    """0 in the middle, which no trend goes through."""
    found = gathered(0.0)
    found.sums[:, 10:20] = 0
    return found


def test_a_later_stage_that_cannot_be_fitted_costs_no_curve(tmp_path: Path) -> None:
    found = calibration_of(ABOUT, STAGES, {"image": [gathered(0.02), flat_but_for_a_few()]})
    report = json.loads(json.dumps(found.to_dict()))
    assert report["stages"][1]["fault"].startswith("of 36 visual tokens 36 ever show an image")
    assert report["stages"][1]["padding_share_of_tokens"] > 0
    assert "b" not in report["stages"][1]
    plot(found, tmp_path / "curve.png")
    with pytest.raises(InputError, match="expected at least 8, all above 0"):
        calibration_of(ABOUT, STAGES, {"image": [flat_but_for_a_few(), gathered(0.02)]})


def test_a_kind_that_only_the_first_stage_can_have() -> None:
    steep = Attention.empty(36)
    paid = np.tile(1e-4 + 5.0 * (np.arange(36) > 31), (60, 1)).astype(np.float32)
    steep.add(paid, np.ones_like(paid), PLACES, np.arange(60))
    found = calibration_of(ABOUT, STAGES, {"image": [gathered(0.02), steep]}, "cubic")
    assert found.fit.chosen == "cubic"
    later = found.stages[1].fit
    assert later is not None
    assert "cubic" not in later.trends


def test_the_plot(calibration: Calibration, tmp_path: Path) -> None:
    plot(calibration, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    with pytest.raises(OutputError, match="the plot cannot be written"):
        plot(calibration, tmp_path / "nowhere" / "curve.png")


def test_a_curve_keeps_what_it_was_fitted_to(calibration: Calibration, tmp_path: Path) -> None:
    save_curve(calibration.curve, tmp_path / "curve.json")
    assert load_curve(tmp_path / "curve.json") == calibration.curve
    assert json.loads((tmp_path / "curve.json").read_text())["fitted_to"]["grid"] == [6, 6]
    save_curve(ExponentialCurve(b=0.1, num_tokens=4), tmp_path / "plain.json")
    assert "fitted_to" not in json.loads((tmp_path / "plain.json").read_text())


def test_a_curve_written_by_an_earlier_version_still_loads(tmp_path: Path) -> None:
    about = '"model": "tiny", "weights": "12ab", "method": "fastv", "layer": 2, "grid": [6, 6], "images": 60'
    text = '{"source": "measured", "fitted_to": {%s}, "kind": "exponential", "b": 0.02, "num_tokens": 36}'
    (tmp_path / "earlier.json").write_text(text % about)
    assert load_curve(tmp_path / "earlier.json").fitted_to == ABOUT


def by_row(tilt: float, rows: float) -> dict[Coordinate, list[Attention]]:
    """Attention that grows along each row of 12, and from row to row of 12, by both coordinates."""
    rng = np.random.default_rng(3)
    found: dict[Coordinate, list[Attention]] = {"image": [Attention.empty(144)], "row": [Attention.empty(12)]}
    index = np.arange(144)
    for number in range(60):
        paid = np.exp(tilt * (index % 12) + rows * (index // 12)) * rng.uniform(0.8, 1.2, 144)
        for name, place in (("image", index), ("row", index % 12)):
            found[name][0].add(
                paid.astype(np.float32)[None], np.ones((1, 144)), place[None], np.array([number])
            )
    return found


@pytest.mark.parametrize(("tilt", "rows", "best"), [(0.1, 0.0, "row"), (0.0, 0.1, "image")])
def test_the_coordinate_is_the_one_that_explains_most(tilt: float, rows: float, best: Coordinate) -> None:
    """An exponential cannot follow what begins anew in every row of an image."""
    found = calibration_of(ABOUT, STAGES[:1], by_row(tilt, rows), "exponential")
    assert found.curve.coordinate == best
    shares = found.explained
    assert shares[best] == max(share for share in shares.values() if share is not None)
    assert shares[best] == pytest.approx(1 - 1 / 3 * 0.04 / (0.15 + 1 / 3 * 0.04), abs=0.1)
    other = "image" if best == "row" else "row"
    chosen = calibration_of(ABOUT, STAGES[:1], by_row(tilt, rows), "exponential", other)
    assert chosen.curve.coordinate == other
    assert (chosen.to_dict()["coordinate"], chosen.to_dict()["explained"]) == (other, shares)


def test_what_a_coordinate_explains_is_its_share_of_the_variance_of_single_tokens() -> None:
    """Half of the variance is the trend's, half is noise of each token."""
    rng = np.random.default_rng(5)
    trend = np.where(np.arange(64) < 32, 0.9, 1.1)
    attention = Attention.empty(64)
    for number in range(400):
        paid = (trend + rng.choice([-0.1, 0.1], 64)).astype(np.float32)[None]
        attention.add(paid, np.ones((1, 64), dtype=np.float32), np.arange(64)[None], np.array([number]))
    assert attention.variance == pytest.approx(0.02, rel=0.02)
    found = calibration_of(ABOUT, STAGES[:1], {"image": [attention]}, "smooth")
    assert found.explained["image"] == pytest.approx(0.5, abs=0.03)


def test_a_coordinate_that_nothing_can_be_fitted_to() -> None:
    found = by_row(0.0, 0.1)
    found["row"] = [Attention.empty(4)]  # fewer places than a trend needs
    found["row"][0].images = 60
    result = calibration_of(ABOUT, STAGES[:1], found)
    assert result.explained["row"] is None
    with pytest.raises(InputError, match="expected at least 8"):
        calibration_of(ABOUT, STAGES[:1], found, coordinate="row")
    with pytest.raises(
        InputError, match="`coordinate` is block, and this model's images are measured by image, row"
    ):
        calibration_of(ABOUT, STAGES[:1], found, coordinate="block")
