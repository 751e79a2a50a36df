"""Which weights are stored how."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgeprune.errors import InputError
from edgeprune.exporter.families import family_of
from edgeprune.exporter.precision.blocks import BlockForm
from edgeprune.exporter.precision.choosing import forms_of, precision_of, untie
from edgeprune.manifest import DType, Precision, WeightKind
from edgeprune.plans import PruningPlan, method_by_name
from tests.tiny import llava_config

FASTV = method_by_name("fastv").plan(32, 0.3)
NONE = method_by_name("none").plan(32, 1.0)


def chosen(
    asked: WeightKind | None,
    compute: DType = "fp32",
    stored: DType = "fp32",
    plan: PruningPlan = FASTV,
    layers: int = 32,
) -> Precision:
    return precision_of(asked, compute, stored, plan, layers)


@pytest.mark.parametrize("asked", [None, "fp16"])
def test_what_is_computed_in_is_stored(asked: WeightKind | None) -> None:
    assert chosen(asked, "fp16") == Precision.plain("fp16")


def test_weights_may_be_narrower_than_what_is_computed_in() -> None:
    found = chosen("fp16", "fp32")
    assert (found.compute, found.cache, found.weights, found.other) == ("fp32", "fp32", "fp16", "fp16")
    assert found.describe() == "fp16 weights; computes in fp32"


def test_wider_weights_are_refused() -> None:
    with pytest.raises(InputError, match=r"weights in fp32 and computation in bf16 .*leave out `weights`"):
        chosen("fp32", "bf16")


@pytest.mark.parametrize(
    ("compute", "stored", "other"),
    [("fp32", "fp32", "fp16"), ("fp32", "bf16", "bf16"), ("fp16", "fp32", "fp16"), ("bf16", "fp16", "bf16")],
)
def test_what_is_not_in_blocks_has_16_bits(compute: DType, stored: DType, other: DType) -> None:
    assert chosen("int4", compute, stored).other == other


@pytest.mark.parametrize(
    ("layer", "layers", "scoring"),
    [(2, 32, "int8"), (2, 4, "int8"), (4, 32, "int8"), (5, 32, "int4"), (3, 16, "int4")],
)
def test_few_layers_in_front_of_the_selection_are_finer(layer: int, layers: int, scoring: str) -> None:
    plan = method_by_name("fastv").plan(layers, 0.3, layer)
    assert chosen("int4", plan=plan, layers=layers).scoring == scoring
    assert chosen("int8", plan=plan, layers=layers).scoring == "int8"


def test_four_bit_floats_have_blocks_of_their_own_length() -> None:
    found = chosen("nvfp4", "fp16", "fp16")
    assert (found.weights, found.scoring, found.head, found.block) == ("nvfp4", "int8", "int8", 16)


def test_without_a_selection_nothing_is_scored() -> None:
    assert chosen("int4", plan=NONE).scoring == "int4"
    assert chosen("int4").describe() == (
        "int4 weights in blocks of 128 (rounded to the nearest), layers in front of the selection int8, the "
        "head int8, other weights fp16; computes in fp32"
    )


def forms(precision: Precision, tied: bool = False) -> tuple[dict[str, Any], Any]:
    config = llava_config("llama")
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    family = family_of(config)
    model: Any = family.build(config, torch.float32)
    model.tie_weights()
    parts = family.parts(model)
    plan = method_by_name("fastv").plan(config.text_config.num_hidden_layers, 0.3)
    untie(parts.text_model, parts.lm_head, precision)
    return forms_of(model, parts.text_model, parts.lm_head, plan, precision), model


def test_every_weight_has_its_form() -> None:
    found, model = forms(chosen("int4"))
    assert set(found) == {name for name, _ in model.named_parameters(remove_duplicate=False)}
    layer = "model.language_model.layers.{}.self_attn.q_proj.weight"
    width = model.config.text_config.hidden_size
    assert found[layer.format(0)].kind == "int8"
    assert found[layer.format(2)].kind == "int4"
    assert width % found[layer.format(2)].block == 0
    assert found["lm_head.weight"].kind == "int8"
    assert found["model.language_model.embed_tokens.weight"] == torch.float16
    assert found["model.language_model.norm.weight"] == torch.float32
    assert not any(isinstance(form, BlockForm) for name, form in found.items() if "vision" in name)


@pytest.mark.parametrize(("asked", "untied"), [("int4", True), (None, False)])
def test_a_tied_head_is_a_weight_of_its_own_where_it_is_stored_otherwise(
    asked: WeightKind | None, untied: bool
) -> None:
    found, model = forms(chosen(asked), tied=True)
    embedding = model.get_input_embeddings().weight
    assert (model.lm_head.weight is not embedding) == untied
    assert isinstance(found["lm_head.weight"], BlockForm) == untied
    assert not isinstance(found["model.language_model.embed_tokens.weight"], BlockForm)


def test_inputs_that_no_block_divides_stay_as_the_rest() -> None:
    config = llava_config("llama")
    config.text_config.intermediate_size = 40
    family = family_of(config)
    parts = family.parts(model := family.build(config, torch.float32))
    plan = method_by_name("fastv").plan(config.text_config.num_hidden_layers, 0.3)
    found = forms_of(model, parts.text_model, parts.lm_head, plan, chosen("int8"))
    assert found["model.language_model.layers.1.mlp.down_proj.weight"] == torch.float16
    assert isinstance(found["model.language_model.layers.1.mlp.up_proj.weight"], BlockForm)
