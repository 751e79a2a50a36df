"""`edgeprune inspect`: what a bundle is, in words and in JSON, and the drawing of what it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeprune.bundle import read_manifest
from edgeprune.cli.summary import curve_plot
from edgeprune.debias.curves import ExponentialCurve, TabulatedCurve
from edgeprune.debias.masks import PaddingMask
from edgeprune.plans import PruningPlan, TowerStage
from tests.conftest import SAMPLE_MODEL
from tests.edgeprune.cli.conftest import Cli
from tests.edgeprune.cli.fakes import FakeModel, make_reply
from tests.manifests import FILES, write_bundle

PICTURE = SAMPLE_MODEL.parent / "pictures" / "tall.png"


def test_text_names_plan_curve_mask_graphs_files_and_verification(cli: Cli, bundle: Path) -> None:
    result = cli("inspect", bundle)
    assert (result.code, result.err) == (0, "")
    for text in (
        "fastv: before layer 2 keep 0.3 (debias position, padding)",
        "exponential curve, b = 0.01",
        "more than 0.5 of it is padding",
        "16 an image (4 x 4)",
        "layers 0 to 1, layers 2 to 3",
        "512 B a token that nothing prunes, 262 kB at all positions",
        "the same with caches in-place: language.in-place.onnx",
        "pixel_values",
        "[tiles, 3, 24, 24]",
        "present_key.2..3",
        "prefill logits",
        "opset 18",
        *FILES,
    ):
        assert text in result.out, text


def test_an_unpruned_bundle_has_no_curve_to_show(cli: Cli, tmp_path: Path) -> None:
    out = cli("inspect", write_bundle(tmp_path / "unpruned", method="none")).out
    assert "none: no pruning" in out
    assert "weights by token" not in out


def test_tokens_that_the_vision_tower_alone_merges_are_counted(cli: Cli, tmp_path: Path) -> None:
    plan = PruningPlan(method="illava", tower=(TowerStage(layer=0, kept=8),))
    out = cli("inspect", write_bundle(tmp_path / "merging", method="none", plan=plan)).out
    assert "16, 8 from the vision tower, on average 50.0% of them per layer" in out


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"debias": "position"}, "of it is padding; the plan does not go by it"),
        (
            {"debias": "position", "padding_mask": PaddingMask(kind="none")},
            "never padded",
        ),
        (
            {"padding_mask": PaddingMask(kind="bilinear", threshold=0.5)},
            "the resized mask is below 0.5",
        ),
        ({"debias": "padding"}, "positions are not debiased"),
    ],
)
def test_what_is_not_debiased_is_said(
    cli: Cli, tmp_path: Path, changes: dict[str, object], text: str
) -> None:
    assert text in cli("inspect", write_bundle(tmp_path / "other", **changes)).out


def test_json_is_the_manifest(cli: Cli, bundle: Path) -> None:
    found = json.loads(cli("inspect", bundle, "--json").out)
    manifest = read_manifest(bundle)
    assert found == {
        "format": "edgeprune.bundle/1",
        "bundle": str(bundle),
        "bytes": sum(map(len, FILES.values())),
        **manifest.model_dump(mode="json"),
    }


def test_the_plot_of_a_curve_falls_from_full_to_its_share() -> None:
    falling = curve_plot(ExponentialCurve(b=0.01, num_tokens=100), width=10)
    assert len(falling) == 10
    assert falling[0] == "█"
    assert falling[-1] == "▃"
    assert sorted(falling, reverse=True) == list(falling)
    assert curve_plot(TabulatedCurve(weights=(1.0, 2.0)), width=10) == "▅█"
    assert curve_plot(TabulatedCurve(weights=(1.0,))) == "█"


def test_a_drawing_asks_for_one_token_and_compares_with_no_debias(
    cli: Cli, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FakeModel()
    monkeypatch.setattr("edgeprune.runtime.load", model.load, raising=False)
    picture = tmp_path / "grey.png"
    Image.fromarray(np.full((8, 16, 3), 90, dtype=np.uint8)).save(picture)
    output = tmp_path / "kept.png"
    result = cli("inspect", bundle, "--image", picture, "--prompt", "what?", "--draw", output)
    assert model.asked == ("what?", [str(picture)], {"max_new_tokens": 1})
    assert "5 of 16 tokens" in result.out
    assert "0 (without debias 4)" in result.out
    with Image.open(output) as drawn:
        assert drawn.format == "PNG"
    facts = json.loads(cli("inspect", bundle, "--image", picture, "--draw", output, "--json").out)["drawing"]
    assert facts == {
        "file": str(output),
        "visual_tokens": 16,
        "kept": [5],
        "padded_kept": [0],
        "padded_kept_without_debias": [4],
        "kept_visual": [[4, 5, 6, 7, 8]],
        "kept_visual_without_debias": [[0, 1, 2, 3, 4]],
    }


def test_a_drawing_of_the_sample_model(cli: Cli, sample_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "kept.png"
    result = cli(
        "inspect", sample_bundle, "--image", PICTURE, "--prompt", "what shape is red", "--draw", output
    )
    assert "43 of 144 tokens" in result.out
    with Image.open(output) as drawn:
        assert min(drawn.size) > 144


@pytest.mark.parametrize(
    ("method", "name", "message"),
    [
        ("none", "kept.png", "language model drops nothing"),
        ("fastv", "kept", "does not end as an image's name"),
    ],
)
def test_a_drawing_that_cannot_be(cli: Cli, tmp_path: Path, method: str, name: str, message: str) -> None:
    made = write_bundle(tmp_path / "made", method=method)
    assert message in cli("inspect", made, "--image", PICTURE, "--draw", tmp_path / name).message


def test_a_drawing_that_was_not_named_replaces_nothing(
    cli: Cli, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kept.png").write_bytes(b"mine")
    message = cli("inspect", bundle, "--image", PICTURE).message
    assert message == "kept.png exists already: name the drawing with --draw, which replaces a file"
    assert Path("kept.png").read_bytes() == b"mine"


def test_without_debias_there_is_nothing_to_compare_with(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    for debias, told in (("", False), ("position padding", True)):
        model = FakeModel(make_reply(debias=debias))
        monkeypatch.setattr("edgeprune.runtime.load", model.load, raising=False)
        out = cli("inspect", bundle, "--image", PICTURE, "--draw", tmp_path / "kept.png").out
        assert ("(without debias" in out) == told


def test_what_would_be_kept_without_debias_is_not_said_where_the_scores_do_not_tell(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FakeModel(make_reply(method="tokencarve"))
    monkeypatch.setattr("edgeprune.runtime.load", model.load, raising=False)
    made = write_bundle(tmp_path / "made", method="tokencarve")
    asked = ("inspect", made, "--image", PICTURE, "--draw", tmp_path / "kept.png")
    assert "(without debias" not in cli(*asked).out
    facts = json.loads(cli(*asked, "--json").out)["drawing"]
    assert facts["kept_visual_without_debias"] == facts["padded_kept_without_debias"] == [None]


def test_a_drawing_needs_an_image(cli: Cli, bundle: Path) -> None:
    result = cli("inspect", bundle, "--draw", "kept.png")
    assert (result.code, "'--draw': expected an --image" in result.message) == (2, True)


def test_a_picture_that_is_none(cli: Cli, sample_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "kept.png"
    output.write_bytes(b"earlier")
    assert (
        "no image" in cli("inspect", sample_bundle, "--image", tmp_path / "x.png", "--draw", output).message
    )
    assert output.read_bytes() == b"earlier"
