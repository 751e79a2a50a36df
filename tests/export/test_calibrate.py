"""Calibration of a tiny random model: Hugging Face's own attention, runs that go on, whose curve it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from edgeprune import export
from edgeprune.calibration import Sample
from edgeprune.debias.curves import ExponentialCurve, load_curve, save_curve
from edgeprune.debias.masks import PaddingMask, visual_valid
from edgeprune.errors import InputError, OutputError
from edgeprune.exporter import calibrate as calibrating
from edgeprune.exporter.calibrate import Scorer, calibrate, scoring_plan
from edgeprune.exporter.families.llava import Llava
from edgeprune.exporter.origin import check_curve, fingerprint, origin
from edgeprune.exporter.processor import padding_mask_for, read_preprocessing
from edgeprune.files import only_writer
from edgeprune.manifest import Preprocessing
from edgeprune.plans import PruningPlan, method_by_name
from tests.export.method_reference import find_raters
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


def plan_of(method: str, layer: Any = None) -> PruningPlan:
    return scoring_plan(method, LAYERS, layer, 36, tower_layers=2)


def scorer(model: Path, method: str, layer: Any = None) -> Scorer:
    preprocessing = read_preprocessing(model, (24, 24), GRID)
    mask = padding_mask_for(preprocessing, method)
    return Scorer(model, plan_of(method, layer), preprocessing, mask)


def huggingface(model: Path, samples: list[Sample], stages: list[tuple[int, str]]) -> Any:
    """What rows pay in layers by Hugging Face's eager attention, one prompt at a time: [stages, N, V]."""
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
            seen = hf(**given, output_attentions=True, output_hidden_states=True)
        visual = (given["input_ids"][0] == IMAGE_TOKEN).nonzero()[:, 0].tolist()
        length = given["input_ids"].shape[1]
        raters = find_raters(seen.hidden_states[0][0], visual)
        rows = {
            "last": [length - 1],
            "text": list(range(visual[-1] + 1, length)),
            "image": visual,
            "raters": [length + distance for distance in raters],
        }
        paid = []
        for layer, asking in stages:
            attention = seen.attentions[layer][0].mean(0)[rows[asking]][:, visual]
            paid.append((attention.mean(0) if asking == "raters" else attention.sum(0)).numpy())
        found.append(paid)
    return np.array(found).swapaxes(0, 1)


@pytest.mark.parametrize(
    ("method", "layer", "stages"),
    [
        ("fastv", None, [(1, "last")]),
        ("fastv", 3, [(2, "last")]),
        ("himap", [2, 3], [(1, "text"), (2, "image")]),
        ("pyramiddrop", [1, 2, 3], [(1, "last"), (2, "last"), (3, "last")]),  # by the layer behind the stage
        ("sparsevlm", [1, 2, 3], [(0, "raters"), (1, "raters"), (2, "raters")]),
        ("tokencarve", None, [(1, "last")]),
        ("illava-decoder", 2, [(1, "last")]),
        ("illava", 2, [(1, "last")]),  # nothing is merged in the tower either
    ],
)
def test_the_attention_is_that_of_every_stage_in_the_unpruned_model(
    model: Path, pictures: Path, method: str, layer: Any, stages: list[tuple[int, str]]
) -> None:
    """Also in a batch of prompts of different length, which are padded."""
    prompts = ("what is in the picture ?", "what colour ?", "star")
    samples = [
        Sample(path, prompt) for path, prompt in zip(sorted(pictures.iterdir()), prompts, strict=False)
    ]
    paid, _ = scorer(model, method, layer).attention(samples)
    assert paid.shape == (len(stages), 3, 36)
    assert paid == pytest.approx(huggingface(model, samples, stages), rel=2e-6, abs=1e-6)


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop"])
def test_padding_is_found_as_the_runtime_finds_it(model: Path, pictures: Path, method: str) -> None:
    found = scorer(model, method)
    samples = [Sample(path, "?") for path in sorted(pictures.iterdir())[:4]]
    _, valid = found.attention(samples)
    preprocessing = read_preprocessing(model, (24, 24), GRID)
    mask = padding_mask_for(preprocessing, method)
    expected = [visual_valid(*size, preprocessing, mask) for size in SIZES]
    assert np.array_equal(valid, expected)
    assert 0 < valid.mean() < 1


def with_processor(model: Path, folder: Path, **changes: Any) -> tuple[Path, Preprocessing]:
    """The model with another image processor, and what that does."""
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = folder / "processor_config.json"
    found = json.loads(config.read_text())
    found["image_processor"].update(changes)
    config.write_text(json.dumps(found))
    return folder, read_preprocessing(folder, (24, 24), GRID)


def test_padding_moves_with_a_crop(model: Path, pictures: Path, tmp_path: Path) -> None:
    """Letterboxed, resized to 36 and cropped to 24 pixels: the crop shows less padding."""
    cropping, preprocessing = with_processor(model, tmp_path / "crops", size={"shortest_edge": 36})
    mask = PaddingMask(kind="share")
    found = Scorer(cropping, plan_of("fastv"), preprocessing, mask)
    _, valid = found.attention([Sample(path, "?") for path in sorted(pictures.iterdir())[:4]])
    # 36 x 12 fills rows 12 to 24 of 36, which are 6 to 18 of the crop's 24: a token and a half are padding.
    assert valid[1].reshape(GRID)[:, 0].tolist() == [0, 1, 1, 1, 1, 0]
    assert np.array_equal(valid, [visual_valid(*size, preprocessing, mask) for size in SIZES])


def test_the_usual_crop_without_letterboxing(model: Path, pictures: Path, tmp_path: Path) -> None:
    """As LLaVA-1.5 comes: CLIP's processor, which scales the short edge and cuts the middle out."""
    usual, preprocessing = with_processor(
        model, tmp_path / "usual", do_pad=False, image_processor_type="CLIPImageProcessor"
    )
    assert not preprocessing.pad_to_square
    found = run(usual, pictures, tmp_path / "curve.json", trend="exponential")
    attention = found.stages[0].attention
    assert attention.padding_share_of_tokens == attention.padding_share_of_attention == 0
    assert attention.counts.sum(0).tolist() == [44] * 36
    samples = [Sample(path, "what colour ?") for path in sorted(pictures.iterdir())[:4]]
    paid, valid = Scorer(
        usual,
        plan_of("fastv"),
        preprocessing,
        padding_mask_for(preprocessing, "fastv"),
    ).attention(samples)
    assert valid.all()
    assert paid == pytest.approx(huggingface(usual, samples, [(1, "last")]), abs=1e-6)


def test_only_the_layers_that_score_are_kept(model: Path) -> None:
    assert len(scorer(model, "fastv", 1)._decoder.text_model.layers) == 1
    assert len(scorer(model, "fastv", 3)._decoder.text_model.layers) == 3
    assert len(scorer(model, "himap", [1, 3])._decoder.text_model.layers) == 3
    assert len(scorer(model, "pyramiddrop", [1, 2, 3])._decoder.text_model.layers) == 4


@pytest.mark.parametrize("method", ["none", "random"])
def test_methods_that_pay_no_attention(method: str) -> None:
    with pytest.raises(InputError, match=f"the method {method} does not select by attention"):
        plan_of(method)


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
    assert found.stages[0].attention.samples == 44
    assert [path.name for path in tmp_path.iterdir()] == ["curve.json"]


def test_an_interrupted_run_goes_on_to_the_same_result(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: dict[str, Any] = {"method": "himap", "layer": [1, 2]}
    whole = run(model, pictures, tmp_path / "whole.json", **stages)
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
        run(model, pictures, output, **stages)
    assert not output.exists()
    with pytest.raises(InputError, match="unfinished calibration with other settings"):
        run(model, pictures, output)
    with pytest.raises(InputError, match=r"other settings \(layers was \[1, 2\] and is \[1, 3\]\)"):
        run(model, pictures, output, method="himap", layer=[1, 3])
    again = run(model, pictures, output, **stages)
    # Four batches of four were saved before the stop; seven are left of eleven.
    assert len(calls) == 6 + 7
    for ours, theirs in zip(again.stages, whole.stages, strict=True):
        assert np.array_equal(ours.attention.sums, theirs.attention.sums)
        assert ours.attention.padding_paid == theirs.attention.padding_paid
    assert load_curve(output) == load_curve(tmp_path / "whole.json")


def test_a_known_growth_at_each_stage_is_recovered_within_a_percent(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention made with a known b for each stage of SparseVLM; the curve is the first one's."""
    known = (0.01, 0.03, -0.02)
    rng = np.random.default_rng(2)

    def made(self: Scorer, samples: Any) -> Any:
        trends = [0.004 * np.exp(b * np.arange(36)) for b in known]
        noise = rng.gamma(400, 1 / 400, (3, len(samples), 36))
        valid = np.ones((len(samples), 36), dtype=np.float32)
        valid[::2, :6] = 0
        paid = np.array(trends)[:, None] * noise * np.where(valid == 0, 10, 1)
        return paid.astype(np.float32), valid

    monkeypatch.setattr(Scorer, "attention", made)
    output = tmp_path / "curve.json"
    found = run(model, pictures, output, method="sparsevlm", layer=[1, 2, 3], trend="exponential")
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
        (tmp_path / f"{number:02d}.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"00\.png is not an image: expected JPEG"):
        run(model, tmp_path, tmp_path / "curve.json")


def test_what_was_measured_before_a_damaged_picture_is_not_lost(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    copies = tmp_path / "copies"
    shutil.copytree(pictures, copies)
    damaged = sorted(copies.iterdir())[-1]
    whole = damaged.read_bytes()
    damaged.write_bytes(b"no picture")
    output = tmp_path / "curve.json"
    with pytest.raises(InputError, match="is not an image"):
        run(model, copies, output, trend="exponential")
    with np.load(tmp_path / "curve.json.unfinished.npz") as found:
        assert found["samples"].tolist() == [40]
    damaged.write_bytes(whole)
    again = run(model, copies, output, trend="exponential")
    assert again.stages[0].attention.samples == 44


def test_too_few_pictures_and_a_batch_of_none(model: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found 12, expected at least 40"):
        run(model, pictures, tmp_path / "curve.json", limit=12)
    with pytest.raises(InputError, match="`batch` is 0"):
        calibrate(model, pictures, tmp_path / "curve.json", batch=0)


def test_what_cannot_be_is_seen_before_the_model_is_loaded(pictures: Path, tmp_path: Path) -> None:
    none = tmp_path / "no model"
    with pytest.raises(InputError, match="unknown `trend` 'cosine'"):
        calibrate(none, pictures, tmp_path / "curve.json", trend="cosine")  # type: ignore[arg-type]
    photo = sorted(pictures.iterdir())[0]
    with pytest.raises(InputError, match=f"{photo.name} are one file"):
        calibrate(none, pictures, photo)
    listed = tmp_path / "list.txt"
    listed.write_text(f"{photo}\n")
    with pytest.raises(InputError, match=r"list\.txt are one file"):
        calibrate(none, listed, listed)
    with only_writer(tmp_path / "curve.json"), pytest.raises(OutputError, match="another run is writing"):
        calibrate(none, pictures, tmp_path / "curve.json")


def belongs(model: Path, method: str = "fastv", layer: Any = None) -> Any:
    plan = method_by_name(method).plan(LAYERS, 0.5, layer)
    return origin(model, str(model), plan, GRID)


def test_a_curve_is_accepted_where_it_was_measured(model: Path) -> None:
    curve = ExponentialCurve(b=0.01, num_tokens=36, fitted_to=belongs(model))
    check_curve(curve, belongs(model).model_copy(update={"model": "renamed", "pictures": 7}))
    check_curve(ExponentialCurve(b=0.01, num_tokens=36), belongs(model))
    check_curve(None, belongs(model))


def test_a_curve_belongs_to_the_first_stage_whatever_the_later_ones(model: Path) -> None:
    """All are measured on the unpruned model, and the first alone is debiased."""
    curve = ExponentialCurve(b=0.01, num_tokens=36, fitted_to=belongs(model, "himap", [1, 2]))
    check_curve(curve, belongs(model, "himap", [1, 3]))
    with pytest.raises(InputError, match="for layer 1, and this export has layer 2"):
        check_curve(curve, belongs(model, "himap", [2, 3]))


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
