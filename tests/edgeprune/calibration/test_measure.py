"""What is measured of a tiny random model, against Hugging Face's own attention."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoProcessor

from edgeprune.calibration import calibrate
from edgeprune.calibration.measure import Scorer, Subject, scoring_plan, subject_of
from edgeprune.calibration.samples import Sample
from edgeprune.debias.masks import PaddingMask
from edgeprune.errors import InputError
from edgeprune.exporter.families import family_of, read_config
from edgeprune.exporter.families.llava import Llava
from edgeprune.exporter.image_processor import padding_mask_for, read_image_program
from edgeprune.image_program import ImageProgram
from edgeprune.layout import PromptLayout
from edgeprune.plans import PruningPlan
from edgeprune.progress import Silent
from tests.edgeprune.calibration.conftest import SIZES
from tests.export.method_reference import find_raters
from tests.tiny import save_internvl, save_qwen

LAYERS, GRID, IMAGE_TOKEN = 4, (6, 6), 5


def plan_of(method: str, layer: Any = None) -> PruningPlan:
    return scoring_plan(method, LAYERS, layer, 36, tower_layers=2)


def subject(model: Path, method: str = "fastv", layer: Any = None) -> Subject:
    return subject_of(model, method, layer, 44, Silent())


def scorer(model: Path, method: str, layer: Any = None) -> Scorer:
    return Scorer(subject(model, method, layer))


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
        given = processor(images=Image.open(sample.image).convert("RGB"), text=text, return_tensors="pt")
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
    model: Path, images: Path, method: str, layer: Any, stages: list[tuple[int, str]]
) -> None:
    """Also in a batch of prompts of different length, which are padded."""
    prompts = ("what is in the image ?", "what colour ?", "star")
    samples = [Sample(path, prompt) for path, prompt in zip(sorted(images.iterdir()), prompts, strict=False)]
    found = scorer(model, method, layer).attention(samples)
    paid = np.stack([one.paid for one in found], axis=1)
    assert paid.shape == (len(stages), 3, 36)
    assert all(np.array_equal(one.places["image"], range(36)) for one in found)
    assert paid == pytest.approx(huggingface(model, samples, stages), rel=2e-6, abs=1e-6)


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop"])
def test_padding_is_found_as_the_runtime_finds_it(model: Path, images: Path, method: str) -> None:
    found = scorer(model, method)
    samples = [Sample(path, "?") for path in sorted(images.iterdir())[:4]]
    valid = np.stack([one.valid for one in found.attention(samples)])
    program = read_image_program(model, (24, 24), GRID)
    assert np.array_equal(valid, masks(program, padding_mask_for(program, method)))
    assert 0 < valid.mean() < 1


def masks(program: ImageProgram, mask: PaddingMask) -> list[NDArray[np.float32]]:
    """The padding masks that the runtime makes of images of SIZES."""
    return [PromptLayout((program.layout(*size),)).valid(mask) for size in SIZES]


def with_processor(model: Path, folder: Path, **changes: Any) -> tuple[Path, ImageProgram]:
    """The model with another image processor, and what that does."""
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = folder / "processor_config.json"
    found = json.loads(config.read_text())
    found["image_processor"].update(changes)
    config.write_text(json.dumps(found))
    return folder, read_image_program(folder, (24, 24), GRID)


def test_padding_moves_with_a_crop(model: Path, images: Path, tmp_path: Path) -> None:
    """Letterboxed, resized to 36 and cropped to 24 pixels: the crop shows less padding."""
    cropping, program = with_processor(model, tmp_path / "crops", size={"shortest_edge": 36})
    mask = PaddingMask(kind="share")
    found = Scorer(replace(subject(cropping), mask=mask))
    samples = [Sample(path, "?") for path in sorted(images.iterdir())[:4]]
    valid = np.stack([one.valid for one in found.attention(samples)])
    # 36 x 12 fills rows 12 to 24 of 36, which are 6 to 18 of the crop's 24: a token and a half are padding.
    assert valid[1].reshape(GRID)[:, 0].tolist() == [0, 1, 1, 1, 1, 0]
    assert np.array_equal(valid, masks(program, mask))


def test_the_usual_crop_without_letterboxing(model: Path, images: Path, tmp_path: Path) -> None:
    """As LLaVA-1.5 comes: CLIP's processor, which scales the short edge and cuts the middle out."""
    usual, _ = with_processor(
        model, tmp_path / "usual", do_pad=False, image_processor_type="CLIPImageProcessor"
    )
    found = calibrate(usual, images, tmp_path / "curve.json", trend="exponential")
    attention = found.stages[0].attention
    assert attention.padding_share_of_tokens == attention.padding_share_of_attention == 0
    assert attention.counts.sum(0).tolist() == [44] * 36
    samples = [Sample(path, "what colour ?") for path in sorted(images.iterdir())[:4]]
    measured = scorer(usual, "fastv").attention(samples)
    assert all(one.valid.all() for one in measured)
    paid = np.stack([one.paid for one in measured], axis=1)
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


@pytest.mark.parametrize("kind", ["internvl", "qwen2_5_vl", "qwen3_vl"])
def test_images_of_different_sizes(kind: str, tmp_path: Path) -> None:
    """Each prompt's attention is what Hugging Face's own model pays, in times of an even share."""
    folder = save_internvl(tmp_path / "m") if kind == "internvl" else save_qwen(tmp_path / "m", kind)
    about = subject(folder, layer=3)
    blocks = {} if about.program.grid is None else {"block": 9, "row": 3}
    assert about.places == {"image": 256, "row": 64, "cell": 256, **blocks}
    samples = []
    for number, (width, height) in enumerate([(40, 24), (24, 40), (64, 20), (40, 24)]):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        samples.append(
            Sample(tmp_path / f"{number}.png", ("what colour", "star", "is the box big")[number % 3])
        )
    scorer = Scorer(about)
    found = scorer.attention(samples)
    assert len({one.paid.shape[1] for one in found}) > 1
    config = read_config(folder)
    family = family_of(config)
    hf = family.load(folder, torch.float32)
    for sample, one in zip(samples, found, strict=True):
        inputs = scorer._reader.prepare(sample)
        ids = torch.from_numpy(inputs.input_ids)[None]
        pixels = torch.from_numpy(inputs.pixel_values)
        given = family.image_arguments(ids, pixels, [inputs.layout], config)
        if kind != "internvl":  # by which it finds positions on three axes
            given["mm_token_type_ids"] = (ids == config.image_token_id).int()
        with torch.no_grad():
            seen = hf(input_ids=ids, **given, output_attentions=True)
        visual = np.flatnonzero(inputs.input_ids == config.image_token_id)
        expected = seen.attentions[2][0].mean(0)[-1].numpy()[visual] * len(visual)
        assert one.paid[0] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert one.valid.all()
        for name, count in about.places.items():
            assert np.array_equal(one.places[name], inputs.layout.places(count, name) - 1)
