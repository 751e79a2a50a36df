"""Calibration of a tiny random model: Hugging Face's own attention, runs that go on, whose curve it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from edgeprune.calibration import Sample
from edgeprune.curves import ExponentialCurve, load_curve, save_curve
from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.export import calibrate as calibrating
from edgeprune.export.calibrate import Scorer, calibrate, scoring_plan
from edgeprune.export.families.llava import Llava
from edgeprune.export.origin import check_curve, fingerprint, origin
from edgeprune.export.pipeline import export
from edgeprune.export.processor import padding_mask_for, read_preprocessing
from edgeprune.manifest import PaddingMask
from edgeprune.masks import visual_valid
from edgeprune.plans import method_by_name
from tests.tiny import save_llava

LAYERS, GRID, IMAGE_TOKEN = 4, (6, 6), 5
SIZES = ((24, 24), (36, 12), (10, 40), (50, 30))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("calibrated") / "tiny")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """44 pictures of noise in four shapes."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(44):
        width, height = SIZES[number % len(SIZES)]
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


def scorer(model: Path, method: str, layer: Any = None) -> Scorer:
    preprocessing = read_preprocessing(model, (24, 24), GRID)
    mask = padding_mask_for(preprocessing, method, True)
    return Scorer(model, scoring_plan(method, LAYERS, layer), preprocessing, mask)


def huggingface(model: Path, samples: list[Sample], layer: int, rows: str) -> Any:
    """The rows' attention of a layer by Hugging Face's eager attention, one prompt at a time."""
    processor = AutoProcessor.from_pretrained(model, local_files_only=True)
    hf = Llava().load(model, torch.float32)
    found = []
    for sample in samples:
        content = [{"type": "image"}, {"type": "text", "text": sample.prompt}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        given = processor(images=Image.open(sample.picture).convert("RGB"), text=text, return_tensors="pt")
        with torch.no_grad():
            paid = hf(**given, output_attentions=True).attentions[layer][0].mean(0)
        visual = (given["input_ids"][0] == IMAGE_TOKEN).nonzero()[:, 0]
        asking = paid[-1] if rows == "last" else paid[int(visual[-1]) + 1 :].sum(0)
        found.append(asking[visual].numpy())
    return np.stack(found)


@pytest.mark.parametrize(
    ("method", "layer", "score_layer", "rows"),
    [
        ("fastv", None, 1, "last"),
        ("fastv", 3, 2, "last"),
        ("himap", [2, 3], 1, "text"),
        ("pyramiddrop", [1, 2, 3], 1, "last"),  # scored by the layer behind the stage
    ],
)
def test_the_attention_is_that_of_the_first_stage(
    model: Path, pictures: Path, method: str, layer: Any, score_layer: int, rows: str
) -> None:
    """Also in a batch of prompts of different length, which are padded."""
    prompts = ("what is in the picture ?", "what colour ?", "star")
    samples = [
        Sample(path, prompt) for path, prompt in zip(sorted(pictures.iterdir()), prompts, strict=False)
    ]
    paid, _ = scorer(model, method, layer).attention(samples)
    assert paid == pytest.approx(huggingface(model, samples, score_layer, rows), abs=1e-6)


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop"])
def test_padding_is_found_as_the_runtime_finds_it(model: Path, pictures: Path, method: str) -> None:
    found = scorer(model, method)
    samples = [Sample(path, "?") for path in sorted(pictures.iterdir())[:4]]
    _, valid = found.attention(samples)
    preprocessing = read_preprocessing(model, (24, 24), GRID)
    mask = padding_mask_for(preprocessing, method, True)
    expected = [visual_valid(*size, preprocessing, mask) for size in SIZES]
    assert np.array_equal(valid, expected)
    assert 0 < valid.mean() < 1


def test_bilinear_masks_and_none_and_a_crop(model: Path) -> None:
    preprocessing = read_preprocessing(model, (24, 24), GRID)
    plan = scoring_plan("fastv", LAYERS, None)
    for mask in (PaddingMask(kind="bilinear"), PaddingMask(kind="none")):
        found = Scorer(model, plan, preprocessing, mask)._valid(50, 20)
        assert np.array_equal(found, visual_valid(50, 20, preprocessing, mask))
    cropped = preprocessing.model_copy(update={"resize_shortest_edge": 30, "resize_to": None})
    with pytest.raises(UnsupportedModelError, match="resizes to 30 and crops to 24"):
        Scorer(model, plan, cropped, PaddingMask(kind="share"))._valid(50, 20)


def test_only_the_first_layers_are_kept(model: Path) -> None:
    assert len(scorer(model, "fastv", 1)._decoder.text_model.layers) == 2
    assert len(scorer(model, "fastv", 3)._decoder.text_model.layers) == 4


@pytest.mark.parametrize("method", ["none", "random"])
def test_methods_that_pay_no_attention(method: str) -> None:
    with pytest.raises(InputError, match=f"the method {method} does not select by attention"):
        scoring_plan(method, LAYERS, None)


def run(model: Path, pictures: Path, output: Path, **options: Any) -> Any:
    return calibrate(model, pictures, output, batch=4, **options)


def test_a_run_writes_a_curve_that_knows_its_model(model: Path, pictures: Path, tmp_path: Path) -> None:
    found = run(model, pictures, tmp_path / "curve.json", trend="exponential")
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
        "pictures": 44,
    }
    assert found.attention.samples == 44
    assert [path.name for path in tmp_path.iterdir()] == ["curve.json"]


def test_an_interrupted_run_goes_on_to_the_same_result(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(model, pictures, tmp_path / "whole.json")
    monkeypatch.setattr(calibrating, "_SAVE_EVERY", 2)
    measure, calls = Scorer.attention, []

    def stopping(self: Scorer, samples: Any) -> Any:
        calls.append(len(samples))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return measure(self, samples)

    monkeypatch.setattr(Scorer, "attention", stopping)
    output = tmp_path / "curve.json"
    with pytest.raises(KeyboardInterrupt):
        run(model, pictures, output)
    assert not output.exists()
    with pytest.raises(InputError, match="unfinished calibration with other settings"):
        run(model, pictures, output, method="himap", layer=[1, 2])
    again = run(model, pictures, output)
    # Four batches of four were saved before the stop; seven are left of eleven.
    assert len(calls) == 6 + 7
    assert np.array_equal(again.attention.sums, whole.attention.sums)
    assert load_curve(output) == load_curve(tmp_path / "whole.json")


def test_a_picture_that_cannot_be_read_is_named(model: Path, tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02d}.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"the picture .*00.png cannot be read"):
        run(model, tmp_path, tmp_path / "curve.json")


def test_too_few_pictures_and_a_batch_of_none(model: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found 12, expected at least 40"):
        run(model, pictures, tmp_path / "curve.json", limit=12)
    with pytest.raises(InputError, match="--batch is 0"):
        calibrate(model, pictures, tmp_path / "curve.json", batch=0)


def belongs(model: Path, method: str = "fastv", layer: int | None = None) -> Any:
    plan = method_by_name(method).plan(LAYERS, 0.5, layer)
    return origin(model, str(model), plan, GRID)


def test_a_curve_is_accepted_where_it_was_measured(model: Path) -> None:
    curve = ExponentialCurve(b=0.01, num_tokens=36, fitted_to=belongs(model))
    check_curve(curve, belongs(model).model_copy(update={"model": "renamed", "pictures": 7}))
    check_curve(ExponentialCurve(b=0.01, num_tokens=36), belongs(model))
    check_curve(None, belongs(model))


def test_a_curve_of_another_model_method_or_layer_is_refused(model: Path, tmp_path: Path) -> None:
    curve = ExponentialCurve(b=0.01, num_tokens=36, fitted_to=belongs(model))
    other = save_llava(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=r"was measured on tiny .*, and this is other"):
        check_curve(curve, belongs(other))
    with pytest.raises(InputError, match="for layer 2, and this export has layer 1"):
        check_curve(curve, belongs(model, layer=1))
    with pytest.raises(InputError, match="for method fastv, and this export has method himap"):
        check_curve(curve, belongs(model, "himap"))
    with pytest.raises(InputError, match=r"for grid \(6, 6\)"):
        check_curve(curve, belongs(model).model_copy(update={"grid": (3, 12)}))


def test_export_checks_the_curve(model: Path, tmp_path: Path) -> None:
    save_curve(ExponentialCurve(b=0.01, num_tokens=36, fitted_to=belongs(model)), tmp_path / "curve.json")
    with pytest.raises(InputError, match="measured for layer 2, and this export has layer 1"):
        export(model, keep=0.3, layer=1, curve=tmp_path / "curve.json", output=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
