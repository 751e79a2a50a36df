"""Calibrations of a tiny random model from end to end: the files, runs that go on, mistakes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprune import export
from edgeprune.bundle import read_manifest
from edgeprune.calibration import calibrate
from edgeprune.calibration import run as running
from edgeprune.calibration.attention import Paid
from edgeprune.calibration.measure import Scorer
from edgeprune.debias.curves import ExponentialCurve, load_curve
from edgeprune.errors import InputError, OutputError
from edgeprune.exporter.origin import fingerprint
from edgeprune.files import only_writer
from tests.quantised_checkpoints import quantise_folder, save_dequantised
from tests.tiny import save_llava

GRID = (6, 6)


def run(model: Path, images: Path, output: Path, **options: Any) -> Any:
    return calibrate(model, images, output, batch=4, **options)


def test_a_run_writes_a_curve_that_knows_its_model(model: Path, images: Path, tmp_path: Path) -> None:
    found = run(model, images, tmp_path / "curve.json", trend="exponential")
    curve = load_curve(tmp_path / "curve.json")
    assert curve == found.curve
    assert isinstance(curve, ExponentialCurve)
    assert curve.b == found.fit.slope.b
    assert curve.fitted_to is not None
    assert curve.fitted_to.model_dump() == {
        "model": "tiny",
        "weights": fingerprint(model),
        "method": "fastv",
        "layer": 2,
        "grid": GRID,
        "images": 44,
    }
    assert found.stages[0].attention.samples == 44
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.json", "curve.report.json"]
    assert json.loads((tmp_path / "curve.report.json").read_text())["stages"][0]["chosen"] == "exponential"


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["awq", "gptq-act-order"])
def test_a_quantised_model_is_measured_by_the_weights_that_it_stands_for(
    layout: str, images: Path, tmp_path: Path
) -> None:
    folder = save_llava(tmp_path / "tiny")
    meant = quantise_folder(folder, layout)
    found = run(folder, images, tmp_path / "curve.json", trend="exponential")
    out = export(folder, keep=0.5, curve=tmp_path / "curve.json", output=tmp_path / "out", verify=False)
    assert read_manifest(out).curve == found.curve

    save_dequantised(folder, meant)
    expected = run(folder, images, tmp_path / "other.json", trend="exponential")
    ours, theirs = (result.stages[0].attention for result in (found, expected))
    assert np.array_equal(ours.sums, theirs.sums)
    with pytest.raises(InputError, match="curve"):  # of other weights, by their fingerprint
        export(folder, keep=0.5, curve=tmp_path / "curve.json", output=tmp_path / "other")


def test_an_interrupted_run_goes_on_to_the_same_result(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: dict[str, Any] = {"method": "himap", "layer": [1, 2]}
    whole = run(model, images, tmp_path / "whole.json", **stages)
    monkeypatch.setattr(running, "_SAVE_EVERY", 2)
    measure, calls = Scorer.attention, []

    def stopping(self: Scorer, samples: Any) -> Any:
        calls.append(len(samples))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return measure(self, samples)

    monkeypatch.setattr(Scorer, "attention", stopping)
    output = tmp_path / "curve.json"
    with pytest.raises(KeyboardInterrupt):
        run(model, images, output, **stages)
    assert not output.exists()
    with pytest.raises(InputError, match="unfinished calibration with other settings"):
        run(model, images, output)
    with pytest.raises(InputError, match=r"other settings \(layers was \[1, 2\] and is \[1, 3\]\)"):
        run(model, images, output, method="himap", layer=[1, 3])
    again = run(model, images, output, **stages)
    # Four batches of four were saved before the stop; seven are left of eleven.
    assert len(calls) == 6 + 7
    for ours, theirs in zip(again.stages, whole.stages, strict=True):
        assert np.array_equal(ours.attention.sums, theirs.attention.sums)
        assert ours.attention.padding_paid == theirs.attention.padding_paid
    assert load_curve(output) == load_curve(tmp_path / "whole.json")


def test_a_known_growth_at_each_stage_is_recovered_within_a_percent(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention made with a known b for each stage of SparseVLM; the curve is the first one's."""
    known = (0.01, 0.03, -0.02)
    rng = np.random.default_rng(2)

    def made(self: Scorer, samples: Any) -> Any:
        trends = [0.004 * np.exp(b * np.arange(36)) for b in known]
        noise = rng.gamma(400, 1 / 400, (3, len(samples), 36))
        valid = np.ones((len(samples), 36), dtype=np.float32)
        valid[::2, :6] = 0
        paid = (np.array(trends)[:, None] * noise * np.where(valid == 0, 10, 1)).astype(np.float32)
        return [Paid(paid[:, n], valid[n], {"image": np.arange(36)}) for n in range(len(samples))]

    monkeypatch.setattr(Scorer, "attention", made)
    output = tmp_path / "curve.json"
    found = run(model, images, output, method="sparsevlm", layer=[1, 2, 3], trend="exponential")
    assert [stage.layer for stage in found.stages] == [1, 2, 3]
    for stage, b in zip(found.stages, known, strict=True):
        assert stage.fit is not None
        assert stage.fit.slope.b == pytest.approx(b, rel=0.01)
        assert stage.fit.slope.significant
    curve = load_curve(output)
    assert isinstance(curve, ExponentialCurve)
    assert curve.b == pytest.approx(known[0], rel=0.01)
    assert curve.fitted_to is not None
    assert (curve.fitted_to.method, curve.fitted_to.layer) == ("sparsevlm", 1)


def test_a_picture_that_cannot_be_read_is_named(model: Path, tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02d}.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"00\.png is not an image: expected JPEG"):
        run(model, tmp_path, tmp_path / "curve.json")


def test_what_was_measured_before_a_damaged_image_is_not_lost(
    model: Path, images: Path, tmp_path: Path
) -> None:
    copies = tmp_path / "copies"
    shutil.copytree(images, copies)
    damaged = sorted(copies.iterdir())[-1]
    whole = damaged.read_bytes()
    damaged.write_bytes(b"no image")
    output = tmp_path / "curve.json"
    with pytest.raises(InputError, match="is not an image"):
        run(model, copies, output, trend="exponential")
    with np.load(tmp_path / "curve.json.unfinished.npz") as found:
        assert found["image samples"].tolist() == [40]
    damaged.write_bytes(whole)
    again = run(model, copies, output, trend="exponential")
    assert again.stages[0].attention.samples == 44


def test_too_few_pictures_and_a_batch_of_none(model: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found 12, expected at least 40"):
        run(model, images, tmp_path / "curve.json", limit=12)
    with pytest.raises(InputError, match="`batch` is 0"):
        calibrate(model, images, tmp_path / "curve.json", batch=0)


def test_what_cannot_be_is_seen_before_the_model_is_loaded(images: Path, tmp_path: Path) -> None:
    none = tmp_path / "no model"
    with pytest.raises(InputError, match="unknown `trend` 'cosine'"):
        calibrate(none, images, tmp_path / "curve.json", trend="cosine")  # type: ignore[arg-type]
    photo, listed = tmp_path / "photo.json", tmp_path / "list.json"
    shutil.copy(sorted(images.iterdir())[0], photo)
    listed.write_text(f"{photo}\n")
    for output in (photo, listed):
        with pytest.raises(InputError, match=f"{output.name} are one file"):
            calibrate(none, listed, output)
    with only_writer(tmp_path / "curve.json"), pytest.raises(OutputError, match="another run is writing"):
        calibrate(none, images, tmp_path / "curve.json")


def test_importing_calibration_needs_neither_torch_nor_matplotlib() -> None:
    blocked = dict.fromkeys(["torch", "transformers", "matplotlib", "onnx", "edgeprune.runtime"])
    code = (
        f"import sys; sys.modules.update({blocked}); import edgeprune.calibration.plot, edgeprune.calibration"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
