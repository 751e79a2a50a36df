"""Standard errors, the trend's fit, and the document, on numbers whose answer is known."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import sample_report
from benchmarks.sample_report import BASELINE, Figure, Report, Trend, fit_trend, markdown, mean_and_error
from edgeprune.errors import OutputError


def _figure(name, keep, accuracy, difference, error=0.01):
    return Figure(name, 2, keep, accuracy, 0.02, difference, error, 0.25, 0.5)


@pytest.fixture
def report():
    figures = tuple(
        figure
        for keep in (0.1, 0.3)
        for figure in (
            _figure(BASELINE, keep, 0.6, None, None),
            _figure("FastV + both", keep, 0.6 + keep / 2, keep / 2, 0.06),
        )
    )
    return Report(
        command="python benchmarks/sample_accuracy.py -o docs",
        questions=24,
        pictures=2,
        seeds=(5, 6),
        curve_seeds=(7, 9),
        machine="2 CPU cores, no GPU; 1 thread",
        versions={"onnxruntime": "1.2.3"},
        minutes=12.3,
        cpu_minutes=4.5,
        padding=0.25,
        unpruned=Figure("unpruned", None, 1.0, 0.995, 0.002, None, None, None, None),
        figures=figures,
        trends=(Trend(2, -1e-3, 2e-4, 0.5, 101, 3),),
    )


def test_the_error_counts_pictures_not_questions():
    """All answers about a picture alike: as much is known as from one question each."""
    values, picture = np.repeat([0.0, 1.0, 1.0, 0.0, 1.0], 12), np.repeat(np.arange(5), 12)
    mean, error = mean_and_error(values, picture)
    assert mean == pytest.approx(0.6)
    assert error == pytest.approx(math.sqrt(0.6 * 0.4 / 4))
    assert mean_and_error(np.tile([0.0, 1.0], 30), picture) == (0.5, 0.0)


def test_the_fit_finds_a_known_trend_beside_padding():
    rng = np.random.default_rng(1)
    tokens, pictures, b = 50, 40, 0.01
    valid = np.ones((pictures, tokens), dtype=np.float32)
    valid[::2, :10] = 0
    attention = np.exp(b * np.arange(tokens)) * rng.uniform(0.5, 1.5, (pictures, 1))
    # The padding sink must not reach the fit.
    trend = fit_trend(2, np.where(valid == 0, 100.0, attention), valid)
    assert trend.b == pytest.approx(b, abs=3 * trend.error)
    assert 0 < trend.error < b / 3
    assert trend.explained > 0.9
    assert (trend.layer, trend.tokens, trend.pictures) == (2, tokens, pictures)


def test_without_a_trend_b_is_within_its_error():
    rng = np.random.default_rng(2)
    trend = fit_trend(1, rng.uniform(0.5, 1.5, (60, 50)), np.ones((60, 50), dtype=np.float32))
    assert abs(trend.b) < 3 * trend.error
    assert trend.explained < 0.2


def test_a_token_that_is_padding_in_every_picture_is_left_out():
    valid = np.ones((3, 20), dtype=np.float32)
    valid[:, :4] = 0
    trend = fit_trend(2, np.exp(0.05 * np.arange(20)) * valid, valid)
    assert trend.b == pytest.approx(0.05)


def test_tables_hold_every_figure_and_mark_clear_differences(report):
    text = markdown(report)
    assert "| keep | 0.3 | 0.1 |" in text
    assert "| FastV | 60.0 ± 2.0 | 60.0 ± 2.0 |" in text
    assert "| FastV + both | 75.0 ± 2.0 | 65.0 ± 2.0 |" in text
    assert "| FastV + both | **+15.0 ± 6.0** | +5.0 ± 6.0 |" in text
    assert "| FastV + both | 25 / 50 | 25 / 50 |" in text
    assert "Unpruned: **99.5 ± 0.2** right" in text
    assert "| 2 | -1.00e-03 ± 2.0e-04 | -5.0 | 0.90 | 0.50 |" in text


def test_text_outside_the_markers_is_kept(report, tmp_path):
    sample_report.write(report, tmp_path)
    document = tmp_path / "sample-accuracy.md"
    first = document.read_text()
    assert first.startswith("# ")
    document.write_text(first.replace("# ", "# My words: ", 1) + "and an end\n")
    sample_report.write(replace(report, questions=36), tmp_path)
    again = document.read_text()
    assert again.startswith("# My words: ")
    assert again.endswith("and an end\n")
    assert "36 questions" in again
    assert "24 questions" not in again
    assert json.loads((tmp_path / "sample-accuracy.json").read_text())["questions"] == 36
    assert (tmp_path / "sample-accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_written_is_named(report, tmp_path):
    (tmp_path / "sample-accuracy.md").mkdir()
    with pytest.raises(OutputError, match=r"sample-accuracy\.md cannot be written .*choose another folder"):
        sample_report.write(report, tmp_path)
