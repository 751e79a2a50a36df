"""Whole quantised folders: every layer is found under its weight's name, and loads as what it stands for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlavaForConditionalGeneration

from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.exporter import weights
from edgeprune.exporter.families import family_of
from edgeprune.exporter.precision.checkpoints import dequantise
from edgeprune.exporter.precision.quantisers import Scheme, read_quantization
from edgeprune.exporter.precision.stored import find_layers, load_layer
from tests.quantised_checkpoints import LAYOUTS, quantise_folder, rounded, save_dequantised
from tests.quantised_checkpoints import gptq as gptq_parts
from tests.tiny import save_gemma3, save_internvl, save_llava, save_qwen, save_smolvlm

GPTQ = Scheme("gptq", 4, 16, zeros_less_one=True)


def built(folder: Path) -> Any:
    """The folder's model as its config makes it, which an export of it starts from."""
    config = AutoConfig.from_pretrained(folder)
    return family_of(config).build(config, torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layers_of_a_folder_are_what_was_quantised(layout: str, tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "model")
    meant = quantise_folder(folder, layout)
    scheme = read_quantization(folder, json.loads((folder / "config.json").read_text()))
    assert scheme is not None
    model = built(folder)
    layers = find_layers(model, folder, scheme)
    assert len(layers) == 4 * 7
    found = weights.locate(model, folder, layers)
    parameters = dict(model.named_parameters())
    assert set(found) | set(layers) == set(parameters)
    assert not set(found) & set(layers)
    wanted = {name: meant[key] for key, name in weights.rename_map(model, meant).items()}
    for name, layer in layers.items():
        n, k = parameters[name].shape
        values = dequantise(load_layer(folder, scheme, name, layer, (n, k)))
        assert np.array_equal(values, wanted[name].numpy()), name
    # The others are as they were, and all together are a model that transformers loads.
    save_dequantised(folder, meant)
    loaded = dict(LlavaForConditionalGeneration.from_pretrained(folder).named_parameters())
    assert all(torch.equal(loaded[name], wanted[name]) for name in parameters)


@pytest.mark.parametrize(
    ("save", "before", "after"),
    [
        (save_llava, "", ""),
        (save_gemma3, "language_model.model.", "model.language_model."),
        (save_qwen, "model.layers.", "model.language_model.layers."),
        (save_internvl, "language_model.model.", "model.language_model."),
        (save_smolvlm, "model.text_model.", "model.text_model."),
    ],
)
def test_parts_of_a_layer_are_renamed_as_its_weight(
    save: Callable[[Path], Path], before: str, after: str, tmp_path: Path
) -> None:
    """In the names of older and of newer checkpoints."""
    folder = save(tmp_path / "model")
    path = folder / "model.safetensors"
    model = built(folder)
    plain = set(weights.locate(model, folder))
    quantise_folder(folder, "gptq")
    for changed in (False, True):
        if changed:
            renamed = {
                after + key.removeprefix(before) if key.startswith(before) else key: value
                for key, value in load_file(path).items()
            }
            assert (set(renamed) == set(load_file(path))) == (after == before)
            save_file(renamed, path, metadata={"format": "pt"})
        model = built(folder)
        layers = find_layers(model, folder, GPTQ)
        assert layers
        assert all(set(layer) == {"qweight", "qzeros", "scales", "g_idx"} for layer in layers.values())
        assert set(weights.locate(model, folder, layers)) | set(layers) == plain


def _change(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _quantise(tensors: dict[str, torch.Tensor], end: str) -> None:
    """The weight whose key ends so, in GPTQ's layout."""
    key = next(key for key in tensors if key.endswith(end))
    parts = gptq_parts(rounded(tensors.pop(key)))
    tensors.update({f"{key.removesuffix('weight')}{part}": value for part, value in parts.items()})


def test_a_head_is_a_layer_like_others_unless_it_is_tied(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "model")
    _change(folder, lambda tensors: _quantise(tensors, "lm_head.weight"))
    model = built(folder)
    layers = find_layers(model, folder, GPTQ)
    assert set(layers) == {"lm_head.weight"}
    assert "lm_head.weight" not in weights.locate(model, folder, layers)
    tied = save_llava(tmp_path / "tied", tie_word_embeddings=True)

    def add(tensors: dict[str, torch.Tensor]) -> None:
        key = next(key for key in tensors if key.endswith("embed_tokens.weight"))
        tensors["language_model.lm_head.weight"] = tensors[key].clone()
        _quantise(tensors, "lm_head.weight")

    _change(tied, add)
    with pytest.raises(UnsupportedModelError, match=r"lm_head\.weight quantised, which is not a linear"):
        find_layers(built(tied), tied, GPTQ)


def test_an_embedding_that_is_quantised_is_refused(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "model")
    _change(folder, lambda tensors: _quantise(tensors, "language_model.model.embed_tokens.weight"))
    with pytest.raises(UnsupportedModelError, match=r"embed_tokens\.weight quantised, which is not a linear"):
        find_layers(built(folder), folder, GPTQ)


def test_layers_of_another_model_are_left_alone(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "model")
    quantise_folder(folder, "gptq")
    before = set(find_layers(built(folder), folder, GPTQ))

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["mtp.proj.weight"] = torch.zeros(32, 32)
        _quantise(tensors, "mtp.proj.weight")

    _change(folder, add)
    assert set(find_layers(built(folder), folder, GPTQ)) == before


def test_a_folder_that_is_not_quantised_has_no_layers(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "model")
    assert find_layers(built(folder), folder, None) == {}


def test_layers_that_no_config_speaks_of_are_named(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "model")
    quantise_folder(folder, "awq")
    with pytest.raises(InputError, match=r"quantised, and config\.json does not say how: expected a quant"):
        find_layers(built(folder), folder, None)


def test_a_layer_of_another_shape_is_named_from_its_header(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "model")
    quantise_folder(folder, "awq")
    text = json.loads((folder / "config.json").read_text())
    text["text_config"]["intermediate_size"] = 64
    (folder / "config.json").write_text(json.dumps(text))
    with pytest.raises(InputError, match=r"qweight of .*_proj\.weight .*do not belong together"):
        find_layers(built(folder), folder, Scheme("awq", 4, 16))
