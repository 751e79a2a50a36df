"""Merging inside the vision tower, against a plain loop over one image, and through the whole runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from edgeprune import export
from edgeprune.bundle import read_manifest
from edgeprune.errors import InputError
from edgeprune.exporter.families import family_of
from edgeprune.exporter.families.llava import Llava
from edgeprune.plans import TowerStage
from edgeprune.runtime import load
from tests.export.method_reference import Outcome, Recipe, generate
from tests.export.reference import Inputs, prompts_of, random_inputs
from tests.export.test_families import siglip, with_vision
from tests.tiny import eager_llava, llava_config, save_llava, save_processor

PLACES, STEPS, LIMIT = 36, 20, 1e-4
# The published shares of 36: 18 leave the tower, in two layers, and 13 of these stay in the decoder.
TOWER = (TowerStage(layer=0, kept=27), TowerStage(layer=1, kept=18))
KEPT = {1: 13, 2: 25}


def tower_by_loops(
    model: Any, pixels: torch.Tensor, stages: tuple[TowerStage, ...]
) -> tuple[torch.Tensor, list[int]]:
    """One image [3, H, W] through Hugging Face's own layers, merging by indexing: embeds [K, D], places."""
    tower, front = model.model.vision_tower, int(model.config.vision_feature_select_strategy == "default")
    depth = model.config.vision_config.num_hidden_layers + 1 + model.config.vision_feature_layer
    hidden = tower.embeddings(pixels[None])[0]
    if hasattr(tower, "pre_layrnorm"):
        hidden = tower.pre_layrnorm(hidden)
    places = list(range(len(hidden) - front))
    kept = {stage.layer: stage.kept for stage in stages}
    for number in range(depth):
        layer = tower.encoder.layers[number]
        mixed, attention = layer.self_attn(layer.layer_norm1(hidden)[None])
        hidden = hidden + mixed[0]
        if number in kept:
            received = attention[0].mean(0).mean(0)[front:].tolist()
            best_first = sorted(range(len(received)), key=lambda i: (-received[i], i))
            survivor, *others = best_first[kept[number] - 1 :]
            total = hidden[front + survivor].clone()
            for weight, other in enumerate(others, start=2):
                total += weight * hidden[front + other]
            hidden = hidden.clone()
            hidden[front + survivor] = total / sum(range(1, len(others) + 2))
            stays = sorted(set(range(len(received))) - set(others))
            hidden = torch.cat([hidden[:front], hidden[[front + i for i in stays]]])
            places = [places[i] for i in stays]
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return model.model.multi_modal_projector(hidden[front:]), places


@pytest.mark.parametrize("feature_layer", [-2, -1])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.no_grad()
def test_a_tower_merges_as_the_plain_loop_does(kind: str, feature_layer: int) -> None:
    config = llava_config() if kind == "clip" else with_vision(siglip(), "full")
    config.vision_feature_layer = feature_layer
    model = eager_llava(config)
    family = family_of(config)
    pixels = torch.randn(3, 3, *family.image_size(config))
    rows, columns = family.grid(config)
    stages = (TowerStage(layer=0, kept=rows * columns - 5), TowerStage(layer=1, kept=rows * columns // 2))
    stages = stages[: family.tower_layers(config)]
    wanted = [tower_by_loops(model, picture, stages) for picture in pixels]
    embeds, place, *_ = family.parts(model, stages).vision(pixels)
    assert embeds.shape == (place.numel(), model.config.text_config.hidden_size)
    assert place.tolist() == [places for _, places in wanted]
    assert len({tuple(places) for _, places in wanted}) > 1, "images this alike prove nothing"
    assert float((embeds - torch.cat([found for found, _ in wanted])).abs().max()) <= 1e-5


@torch.no_grad()
def test_equal_attention_leaves_the_lower_places() -> None:
    model = eager_llava(llava_config())
    for layer in model.model.vision_tower.encoder.layers:
        layer.self_attn.q_proj.weight.zero_()
        layer.self_attn.q_proj.bias.zero_()
    _, place, *_ = Llava().parts(model, TOWER).vision(torch.randn(1, 3, 24, 24))
    assert place.tolist() == [list(range(18))]


@torch.no_grad()
def test_the_model_it_is_made_of_keeps_its_attention() -> None:
    model = eager_llava(llava_config())
    pixels = torch.randn(1, 3, 24, 24)
    before = Llava().parts(model).vision(pixels)
    heads = Llava().tower_attention(model, pixels, 2).shape
    Llava().parts(model, TOWER)
    assert torch.allclose(Llava().parts(model).vision(pixels), before, atol=1e-6)
    assert Llava().tower_attention(model, pixels, 2).shape == heads == (1, 2, 37, 36)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlavaForConditionalGeneration, Path]:
    folder = tmp_path_factory.mktemp("illava")
    source = save_llava(folder / "model")
    bundle = export(source, method="illava", output=folder / "bundle")
    return Llava().load(source, torch.float32), bundle


def shortened(inputs: Inputs, image: int, per_image: int) -> list[np.ndarray[Any, Any]]:
    """The prompts, without left padding, with fewer image tokens an image."""
    prompts = []
    for ids, mask in zip(inputs.input_ids, inputs.attention_mask, strict=True):
        row = ids[mask == 1].numpy()
        of_picture = (row == image).cumsum() - 1
        prompts.append(row[(row != image) | (of_picture % PLACES < per_image)])
    return prompts


def expected(
    model: Any, inputs: Inputs, prompts: list[np.ndarray[Any, Any]], pictures: int
) -> list[tuple[Outcome, np.ndarray[Any, Any]]]:
    """Each prompt's decoding by the plain loops, and the places of the visual tokens it is given."""
    results = []
    for row, ids in enumerate(prompts):
        mine = inputs.pixel_values[row * pictures : (row + 1) * pictures]
        seen = [tower_by_loops(model, picture, TOWER) for picture in mine]
        places = np.concatenate([np.array(found) + PLACES * n for n, (_, found) in enumerate(seen)])
        embeds, valid = torch.cat([embeds for embeds, _ in seen]), inputs.visual_valid[row][places]
        recipe = Recipe("illava-decoder", (1,), (KEPT[pictures],), torch.ones(len(places)))
        outcome = generate(model, torch.from_numpy(ids), embeds, valid, recipe, STEPS)
        results.append((outcome, places))
    return results


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 2)], ids=str)
@torch.no_grad()
def test_the_bundle_equals_the_plain_loops_over_twenty_steps(
    merged: tuple[LlavaForConditionalGeneration, Path], shape: tuple[int, int]
) -> None:
    model, bundle = merged
    manifest, pictures = read_manifest(bundle), shape[1]
    assert manifest.plan.tower == TOWER
    assert manifest.verification.checks
    inputs = random_inputs(model, *shape, seed=4)
    prompts = shortened(inputs, manifest.prompt.image_token_id, manifest.tokens_per_tile)
    wanted = expected(model, inputs, prompts, pictures)
    session = load(bundle, "onnxruntime", threads=1).session
    state = session.prefill(prompts_of(inputs, manifest.image_program, prompts))
    for row, (outcome, places) in enumerate(wanted):
        visual = np.flatnonzero(prompts[row] == manifest.prompt.image_token_id)
        (stage,) = state.stages[row]
        assert stage.candidates.tolist() == places.tolist()
        assert stage.kept_visual.tolist() == places[np.isin(visual, outcome.kept[0])].tolist()
        assert stage.visual_valid.tolist() == inputs.visual_valid[row][places].tolist()
    for step in range(STEPS):
        reference = torch.stack([outcome.logits[step] for outcome, _ in wanted]).numpy()
        assert float(np.abs(state.logits - reference).max()) <= LIMIT
        tokens = state.logits.argmax(axis=1)
        assert tokens.tolist() == [outcome.tokens[step] for outcome, _ in wanted]
        state.step(tokens.astype(np.int64))


@pytest.mark.slow
def test_a_prompt_without_pictures_has_nothing_to_merge(
    merged: tuple[LlavaForConditionalGeneration, Path],
) -> None:
    model, bundle = merged
    ids = np.array([1, 8, 9, 10], dtype=np.int64)
    inputs = Inputs(
        torch.from_numpy(ids)[None],
        torch.ones(1, 4, dtype=torch.int64),
        torch.zeros(0, 3, 24, 24),
        torch.zeros(1, 0),
    )
    prompts = prompts_of(inputs, read_manifest(bundle).image_program)
    state = load(bundle, "onnxruntime", threads=1).session.prefill(prompts)
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0, -1].numpy()
    assert float(np.abs(state.logits[0] - logits).max()) <= LIMIT


@pytest.mark.slow
def test_statistics_tell_what_the_tower_leaves(merged: tuple[LlavaForConditionalGeneration, Path]) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (24, 48, 3), dtype=np.uint8)
    model = load(merged[1], "onnxruntime", threads=1)
    found = model.generate("what is in the image ?", [picture] * 2).statistics
    assert (found.visual_tokens, found.tower_tokens, found.kept) == (72, 36, (25,))


def test_visual_tokens_of_several_tower_layers_cannot_merge(tmp_path: Path) -> None:
    source = save_llava(tmp_path / "model")
    config = llava_config()
    config.vision_feature_layer = [-2, -1]
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(source)
    with pytest.raises(InputError, match="illava merges inside the vision tower, and this model's visual"):
        export(source, method="illava", output=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_tensorrt_for_rtx_builds_both_graphs(merged: tuple[LlavaForConditionalGeneration, Path]) -> None:
    pytest.importorskip("tensorrt_rtx")
    from edgeprune.runtime.backends.tensorrt.building import build

    folder = build(merged[1], backend="tensorrt-rtx", targets=("sm89",), max_batch=2, max_images=2)
    assert all((folder / name).stat().st_size > 0 for name in ("vision.engine", "language.engine"))


@pytest.mark.slow
def test_a_siglip_model_is_exported_and_agrees_with_huggingface(tmp_path: Path) -> None:
    config = with_vision(siglip(), "full")
    config.architectures = ["LlavaForConditionalGeneration"]
    eager_llava(config).save_pretrained(tmp_path / "model")
    save_processor(tmp_path / "model")
    bundle = export(tmp_path / "model", method="illava", output=tmp_path / "bundle")
    names = [check.name for check in read_manifest(bundle).verification.checks]
    assert "tower score, graph against Hugging Face" in names
    assert "score, graph against Hugging Face" in names
