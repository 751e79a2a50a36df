"""The decoder of a model's folder, as a plain Llama."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from edgeprune.bench.peers import llama as llamas
from edgeprune.bench.peers.llama import read_llama, write_llama
from edgeprune.errors import InputError, UnsupportedModelError
from tests.conftest import SAMPLE_MODEL


def changed(folder: Path, whole: dict[str, Any] | None = None, **text: Any) -> Path:
    """The sample model with a part of its config changed."""
    model = folder / "model"
    shutil.copytree(SAMPLE_MODEL, model)
    config = json.loads((model / "config.json").read_text())
    config["text_config"].update(text)
    (model / "config.json").write_text(json.dumps({**config, **(whole or {})}))
    return model


def test_the_tensors_are_the_decoder_s_own(tmp_path: Path) -> None:
    llama = read_llama(SAMPLE_MODEL)
    assert len(llama.files) == 4 * 9 + 3
    assert llama.head_dim == 24
    write_llama(llama, SAMPLE_MODEL, tmp_path / "llama")
    config = json.loads((tmp_path / "llama/config.json").read_text())
    assert (config["architectures"], config["hidden_size"]) == (["LlamaForCausalLM"], 96)
    assert (tmp_path / "llama/tokenizer.json").is_file()
    with (
        safe_open(tmp_path / "llama/model.safetensors", "numpy") as written,
        safe_open(SAMPLE_MODEL / "model.safetensors", "numpy") as source,
    ):
        assert set(written.keys()) == set(llama.files)
        for name, (_, stored) in llama.files.items():
            np.testing.assert_array_equal(written.get_tensor(name), source.get_tensor(stored))


@pytest.mark.slow
def test_transformers_computes_the_same_of_both(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, LlamaForCausalLM

    write_llama(read_llama(SAMPLE_MODEL), SAMPLE_MODEL, tmp_path / "llama")
    ids = torch.arange(6, 20)[None]
    with torch.no_grad():
        plain = LlamaForCausalLM.from_pretrained(tmp_path / "llama")(input_ids=ids).logits
        whole = AutoModelForImageTextToText.from_pretrained(SAMPLE_MODEL)(input_ids=ids).logits
    torch.testing.assert_close(plain, whole)


@pytest.mark.parametrize(
    ("stored", "plain"),
    [
        ("model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("language_model.model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.language_model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("model.norm.weight", "model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.vision_tower.layers.0.mlp.up_proj.weight", None),
        ("multi_modal_projector.linear_1.weight", None),
    ],
)
def test_names_of_several_releases(stored: str, plain: str | None) -> None:
    assert llamas._plain_name(stored) == plain


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2': expected 'llama'"),
        ({"attention_bias": True}, "attention_bias is True: expected False"),
        ({"rope_parameters": {"rope_type": "yarn"}}, r"rotary embedding is scaled \('yarn'\): expected none"),
        ({"num_hidden_layers": 5}, r"model\.layers\.4\.input_layernorm\.weight was not found"),
    ],
)
def test_what_is_no_plain_llama(tmp_path: Path, text: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        read_llama(changed(tmp_path, **text))


def test_tied_embeddings_need_no_head(tmp_path: Path) -> None:
    llama = read_llama(changed(tmp_path, tie_word_embeddings=True))
    assert "lm_head.weight" not in llama.files


def test_a_type_that_is_not_read(tmp_path: Path) -> None:
    model = changed(tmp_path)
    save_file({"model.norm.weight": np.ones(3, dtype=np.int8)}, model / "more.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"its model\.norm\.weight is I8: expected F32 or F16"):
        read_llama(model)


def test_folders_that_are_no_model_s(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not the folder of a vision-language model.*as `model`"):
        read_llama(tmp_path)
    model = changed(tmp_path)
    (model / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"a file of weights in .* cannot be read \(.*\): copy it again"):
        read_llama(model)
