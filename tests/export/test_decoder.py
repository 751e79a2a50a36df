"""The pruned decoder in torch, against Hugging Face's generate and against an independent FastV."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from edgeprune.debias.curves import load_preset
from edgeprune.debias.selection import kept_count, select
from edgeprune.exporter.attention import NAME
from edgeprune.exporter.decision import _DTYPE_NAMES, _model_info
from edgeprune.exporter.decoder import PrunedDecoder
from edgeprune.exporter.families import family_of
from edgeprune.interface import language_interface
from edgeprune.manifest import Precision
from edgeprune.plans import PruningPlan, method_by_name, with_keep
from edgeprune.positions import SequentialPositions
from tests.export.reference import (
    Decoded,
    Inputs,
    fastv,
    greedy,
    huggingface,
    places_of,
    random_inputs,
    torch_step,
)
from tests.tiny import TEXT_CONFIGS, tiny_llava

FAMILIES = sorted(TEXT_CONFIGS)
STEPS = 5
LIMIT = 1e-4
# Batches and images per prompt; every one but the first has rows of different left padding.
SHAPES = [(1, 1), (2, 2), (3, 3)]
LAYERS, PER_PICTURE = 4, 36


@functools.cache
def model_of(kind: str, **changes: Any) -> LlavaForConditionalGeneration:
    return tiny_llava(kind, **changes)


def curve_for(pictures: int) -> torch.Tensor:
    """The weights of the visual tokens of so many images, float32 [V]."""
    # The published curve is nearly flat over so few tokens; squared twice, it changes the selection.
    return torch.from_numpy(load_preset("fastv").weights(PER_PICTURE)).repeat(pictures) ** 4


def run(
    model: LlavaForConditionalGeneration,
    inputs: Inputs,
    plan: PruningPlan,
    curve: torch.Tensor,
    steps: int = STEPS,
    position: bool = True,
) -> Decoded:
    """Greedy decoding by a PrunedDecoder made of a copy of `model`, which stays as it is.

    Args:
        curve: float32, weights of at least one image's tokens.
        position: whether the visual tokens read the curve.
    """
    model = copy.deepcopy(model)
    family = family_of(model.config)
    parts = family.parts(model)
    table = torch.cat([torch.ones(1), curve[:PER_PICTURE]])
    most = model.config.get_text_config().max_position_embeddings
    decoder = PrunedDecoder(parts.text_model, parts.lm_head, plan, parts.image_token_id, table, most).eval()
    interface = language_interface(
        _model_info(family, model.config.get_text_config(), "tiny"),
        Precision.plain(_DTYPE_NAMES[model.dtype]),
        plan,
        SequentialPositions(),
    )
    embeds = torch.zeros(0, PER_PICTURE, model.config.text_config.hidden_size, dtype=model.dtype)
    if len(inputs.pixel_values):
        with torch.no_grad():
            embeds = parts.vision(inputs.pixel_values.to(model.dtype))
    kept = [counts.kept for counts in plan.counts(inputs.visual_valid.shape[1])]
    places = places_of(inputs, PER_PICTURE) if position else None
    step = torch_step(decoder, interface)
    return greedy(step, interface, inputs, embeds, parts.image_token_id, steps, kept, places)


def assert_same(found: Decoded, wanted: Decoded, limit: float = LIMIT) -> None:
    assert torch.equal(found.tokens, wanted.tokens)
    spread = float(wanted.logits.std())
    assert spread > 0.1, "logits this flat prove nothing"
    assert float((found.logits - wanted.logits).abs().max()) <= limit


@pytest.mark.parametrize("method", ["fastv", "none"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", FAMILIES)
def test_without_pruning_equals_huggingface(kind: str, shape: tuple[int, int], method: str) -> None:
    """By a plan without stages, and by one whose stage keeps everything."""
    model = model_of(kind)
    inputs = random_inputs(model, *shape)
    plan = method_by_name(method).plan(LAYERS, 1.0)
    assert len(plan.stages) == (method == "fastv")
    found = run(model, inputs, plan, curve_for(shape[1]))
    assert_same(found, huggingface(model, inputs, STEPS))
    for kept in found.kept:
        assert (kept == np.arange(inputs.input_ids.shape[1])).all()


@pytest.mark.parametrize("heads", [1, 4], ids=["one key head", "a key head each"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_any_number_of_key_heads(kind: str, heads: int) -> None:
    model = model_of(kind, num_key_value_heads=heads)
    inputs = random_inputs(model, 2, 1)
    assert_same(
        run(model, inputs, method_by_name("none").plan(LAYERS, 1.0), curve_for(1)),
        huggingface(model, inputs, STEPS),
    )


FEATURES: dict[str, tuple[str, dict[str, Any]]] = {
    "tied embeddings": ("llama", {"tie_word_embeddings": True}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "head_dim besides width / heads": ("mistral", {"head_dim": 20}),
    "partial rotary": ("phi3", {"rope_parameters": {"partial_rotary_factor": 0.5}}),
    "linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0}}),
    "llama3 rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "window as long as the positions": ("phi3", {"sliding_window": 512}),
}


@pytest.mark.parametrize("name", FEATURES)
def test_features_of_text_models(name: str) -> None:
    kind, changes = FEATURES[name]
    changes = copy.deepcopy(changes)
    if "rope_parameters" in changes:
        changes["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": 100.0,
            **changes["rope_parameters"],
        }
    model = tiny_llava(kind, **changes)
    inputs = random_inputs(model, 2, 1)
    plan = method_by_name("none").plan(LAYERS, 1.0)
    assert_same(run(model, inputs, plan, curve_for(1)), huggingface(model, inputs, STEPS))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", FAMILIES)
def test_pruning_equals_an_independent_fastv(kind: str, shape: tuple[int, int]) -> None:
    model = model_of(kind)
    inputs = random_inputs(model, *shape, seed=1)
    curve = curve_for(shape[1])
    plan = method_by_name("fastv").plan(LAYERS, 0.3)
    found = run(model, inputs, plan, curve)
    kept = kept_count(PER_PICTURE * shape[1], 3000)
    wanted = fastv(model, inputs, STEPS, layer=2, kept=kept, curve=curve)
    np.testing.assert_array_equal(found.kept[0], wanted.kept[0])
    assert float(np.abs(found.scores[0] - wanted.scores[0]).max()) <= 1e-5
    assert_same(found, wanted)
    assert found.kept[0].shape[1] == inputs.input_ids.shape[1] - round(PER_PICTURE * shape[1] * 0.7)


# Prompts and replies are longer than each of the windows.
WINDOWS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 9},
    "phi3": {"sliding_window": 20},
    "qwen2": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
    "qwen3": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
}


@pytest.mark.parametrize("kind", ["mistral", "phi3"])
def test_types_of_layers_that_the_model_s_own_code_does_not_read(kind: str) -> None:
    """Its window is that of all layers. Without caches, which transformers makes by the types."""
    model = tiny_llava(kind, sliding_window=9, layer_types=["full_attention"] * LAYERS)
    inputs = random_inputs(model, 2, 1, seed=4)
    found = run(model, inputs, method_by_name("none").plan(LAYERS, 1.0), curve_for(1), steps=1)
    with torch.no_grad():
        wanted = model(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            pixel_values=inputs.pixel_values,
            use_cache=False,
        ).logits[:, -1]
    assert float((found.logits[:, 0] - wanted).abs().max()) <= LIMIT


@pytest.mark.parametrize("keep", [1.0, 0.3])
@pytest.mark.parametrize("kind", WINDOWS)
def test_windows_count_tokens_of_the_unpruned_prompt(kind: str, keep: float) -> None:
    model = tiny_llava(kind, **WINDOWS[kind])
    inputs = random_inputs(model, 2, 1, seed=4)
    found = run(model, inputs, method_by_name("fastv").plan(LAYERS, keep), curve_for(1))
    if keep == 1:
        assert_same(found, huggingface(model, inputs, STEPS))
        return
    kept = kept_count(PER_PICTURE, 3000)
    wanted = fastv(model, inputs, STEPS, layer=2, kept=kept, curve=curve_for(1))
    np.testing.assert_array_equal(found.kept[0], wanted.kept[0])
    assert_same(found, wanted)


@pytest.mark.parametrize(("layer", "keep"), [(1, 0.5), (3, 0.1)])
def test_prunes_before_any_layer(layer: int, keep: float) -> None:
    model = model_of("llama")
    inputs = random_inputs(model, 2, 1, seed=2)
    plan = method_by_name("fastv").plan(LAYERS, keep, layer)
    wanted = fastv(model, inputs, STEPS, layer, kept_count(PER_PICTURE, int(keep * 10000)), curve_for(1))
    found = run(model, inputs, plan, curve_for(1))
    np.testing.assert_array_equal(found.kept[0], wanted.kept[0])
    assert_same(found, wanted)


def test_the_debias_changes_what_is_kept() -> None:
    """Curve and padding mask reach the selection, each by itself."""
    model = model_of("llama")
    inputs = random_inputs(model, 2, 1)
    shown = Inputs(inputs.input_ids, inputs.attention_mask, inputs.pixel_values, torch.ones(2, PER_PICTURE))
    plan = method_by_name("fastv").plan(LAYERS, 0.3)
    both, position, padding, neither = (
        run(model, case, plan, curve_for(1), steps=1, position=reads_curve).kept[0].tolist()
        for case, reads_curve in ((inputs, True), (shown, True), (inputs, False), (shown, False))
    )
    assert len({str(kept) for kept in (both, position, padding, neither)}) == 4


@pytest.mark.parametrize("position", [False, True])
@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_debias_and_keep_are_chosen_when_it_runs(position: bool, keep: float) -> None:
    """One decoder, made of a plan that keeps another share."""
    model = model_of("llama")
    inputs = random_inputs(model, 1, 1)
    inputs.visual_valid[:] = 1  # what the host says without debias by padding
    plan = with_keep(method_by_name("fastv").plan(LAYERS, 0.5), keep, LAYERS)
    found = run(model, inputs, plan, curve_for(1), steps=1, position=position)
    wanted = select(
        found.scores[0],
        inputs.visual_index(model.config.image_token_id).numpy(),
        (curve_for(1) if position else torch.ones(PER_PICTURE)).numpy()[None],
        kept_count(PER_PICTURE, int(keep * 10000)),
    )
    np.testing.assert_array_equal(found.kept[0], wanted.kept_index)


def test_a_row_gives_the_same_alone_and_padded_in_a_batch() -> None:
    model = model_of("qwen2")
    batch = random_inputs(model, 3, 2, seed=3)
    plan = method_by_name("fastv").plan(LAYERS, 0.4)
    together = run(model, batch, plan, curve_for(2))
    for row in range(3):
        start = int((batch.attention_mask[row] == 0).sum())
        alone = run(
            model,
            Inputs(
                batch.input_ids[row : row + 1, start:],
                batch.attention_mask[row : row + 1, start:],
                batch.pixel_values[2 * row : 2 * row + 2],
                batch.visual_valid[row : row + 1],
            ),
            plan,
            curve_for(2),
        )
        assert torch.equal(alone.tokens[0], together.tokens[row])
        assert float((alone.logits[0] - together.logits[row]).abs().max()) <= LIMIT
        # Padding is text to the stage, and stays in front.
        kept = together.kept[0][row]
        np.testing.assert_array_equal(kept[:start], np.arange(start))
        np.testing.assert_array_equal(kept[start:] - start, alone.kept[0][0])


def test_a_prompt_without_pictures() -> None:
    """V = 0 in the prefill: no stage drops anything, and the text is Hugging Face's."""
    model = model_of("llama")
    some = random_inputs(model, 2, 1)
    text = some.input_ids[:, -3:]
    assert not (text == model.config.image_token_id).any()
    inputs = Inputs(text, torch.ones_like(text), some.pixel_values[:0], torch.ones(2, 0))
    found = run(model, inputs, method_by_name("fastv").plan(LAYERS, 0.3), curve_for(1))
    np.testing.assert_array_equal(found.kept[0], np.tile(np.arange(3), (2, 1)))
    ids = text
    for step in range(STEPS):
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[:, -1]
        assert float((found.logits[:, step] - logits).abs().max()) <= LIMIT
        ids = torch.cat([ids, found.tokens[:, step : step + 1]], dim=1)


def test_an_image_token_that_the_model_makes_is_text() -> None:
    """Hugging Face embeds it as a word; there is no image left to take its place."""
    model = copy.deepcopy(model_of("llama"))
    image = model.config.image_token_id
    # Whatever the model sees, the image token is what it says.
    model.lm_head.bias = torch.nn.Parameter(
        1000 * torch.nn.functional.one_hot(torch.tensor(image), model.config.text_config.vocab_size).float()
    )
    inputs = random_inputs(model, 2, 1)
    found = run(model, inputs, method_by_name("none").plan(LAYERS, 1.0), curve_for(1))
    assert (found.tokens == image).all()
    assert_same(found, huggingface(model, inputs, STEPS))


def test_half_precision_scores_stay_in_float32() -> None:
    model = tiny_llava("llama").half()
    inputs = random_inputs(model, 2, 1)
    plan = method_by_name("fastv").plan(LAYERS, 0.3)
    found = run(model, inputs, plan, curve_for(1))
    assert found.scores[0].dtype == np.float32
    wanted = fastv(model, inputs, STEPS, 2, kept_count(PER_PICTURE, 3000), curve_for(1))
    assert found.logits.dtype == torch.float32
    assert float((found.scores[0] - wanted.scores[0]).max()) < 2e-3
    assert float((found.logits - wanted.logits).abs().max()) < 5e-2 * float(wanted.logits.std()) + 5e-2


def test_every_layer_uses_its_attention() -> None:
    model = copy.deepcopy(model_of("llama"))
    parts = family_of(model.config).parts(model)
    plan = method_by_name("none").plan(LAYERS, 1.0)
    PrunedDecoder(parts.text_model, parts.lm_head, plan, 5, torch.ones(1), PER_PICTURE)
    assert {layer.self_attn.config._attn_implementation for layer in parts.text_model.layers} == {NAME}


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "random"])
def test_the_last_position_stays_where_an_image_ends_the_prompt(method: str) -> None:
    """The next token comes from it; without care the other scores would decide, here for another token."""
    model = model_of("llama")
    inputs = random_inputs(model, 2, 1, seed=5)
    image = model.config.image_token_id
    ids = torch.stack([torch.cat([row[row != image], row[row == image]]) for row in inputs.input_ids])
    valid = torch.ones_like(inputs.visual_valid)
    valid[:, PER_PICTURE // 2 :] = 0  # the last one too
    ending = Inputs(ids, torch.ones_like(ids), inputs.pixel_values, valid)
    plan = method_by_name(method).plan(LAYERS, 0.1, visual_tokens=PER_PICTURE)
    found = run(model, ending, plan, curve_for(1) ** 20, steps=1, position=method != "random")
    last = ids.shape[1] - 1
    for kept in found.kept:
        assert (kept[:, -1] == last).all()
        last = kept.shape[1] - 1
