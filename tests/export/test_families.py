"""Model families: what can be exported, and what is refused by name with the list of what works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlavaConfig, SiglipVisionConfig

from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.exporter.families import FAMILIES, family_of, read_config, supported
from edgeprune.exporter.families.base import TEXT_MODELS
from edgeprune.exporter.weights import buffer_values
from tests.tiny import TEXT_CONFIGS, eager_llava, llava_config, tiny_llava

LIST = "Supported: Gemma3ForConditionalGeneration, Idefics3ForConditionalGeneration, InternVL"


def with_text(text: transformers.PretrainedConfig) -> LlavaConfig:
    config = llava_config()
    config.text_config = text
    return config


def with_vision(vision: transformers.PretrainedConfig, strategy: str) -> LlavaConfig:
    config = llava_config()
    config.vision_config = vision
    config.vision_feature_select_strategy = strategy
    return config


def text_changed(kind: str, **changes: Any) -> LlavaConfig:
    config = llava_config(kind)
    for name, value in changes.items():
        setattr(config.text_config, name, value)
    return config


def qwen_windowed() -> transformers.PretrainedConfig:
    text = {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 2, "num_hidden_layers": 4}
    return transformers.Qwen2VLConfig(text_config=text, architectures=["Qwen2VLForConditionalGeneration"])


def siglip() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=24,
        patch_size=4,
    )


def test_the_list_names_every_text_model_that_is_tested() -> None:
    assert set(TEXT_MODELS) == set(TEXT_CONFIGS)
    assert supported().startswith(LIST)
    assert all(name in supported() for name in TEXT_MODELS.values())


@pytest.mark.parametrize("kind", sorted(TEXT_CONFIGS))
def test_accepts_every_text_model(kind: str) -> None:
    config = llava_config(kind)
    assert family_of(config) is FAMILIES[0], "by model_type where architectures is empty"
    config.architectures = ["LlavaForConditionalGeneration"]
    assert family_of(config) is FAMILIES[0]


ROPE = {"rope_theta": 1e4, "factor": 2.0}
REFUSED: dict[str, tuple[transformers.PretrainedConfig, str]] = {
    "another architecture": (
        transformers.LlamaConfig(architectures=["LlamaForCausalLM"]),
        "architecture LlamaForCausalLM is not supported",
    ),
    "no architecture": (transformers.BertConfig(), "model_type 'bert' is not supported"),
    "another text model": (with_text(transformers.OPTConfig()), "text model 'opt' is not supported"),
    "a relative of a text model": (
        with_text(transformers.Gemma2Config()),
        "text model 'gemma2' is not supported",
    ),
    "layers of another kind": (
        llava_config("qwen2", layer_types=["full_attention", "chunked_attention"] * 2),
        "'qwen2' has layers of chunked_attention, which are not supported",
    ),
    "windows by positions of several axes": (
        qwen_windowed(),
        "'qwen2_vl_text' has layers with windows, which is not supported here: they count tokens",
    ),
    "softcap of attention": (
        text_changed("gemma", attn_logit_softcapping=50.0),
        "'gemma' uses attn_logit_softcapping",
    ),
    "softcap of logits": (
        text_changed("gemma", final_logit_softcapping=30.0),
        "'gemma' uses final_logit_softcapping",
    ),
    "rope by length": (
        llava_config("llama", rope_parameters={"rope_type": "dynamic", **ROPE}),
        "'llama' uses 'dynamic' rotary scaling",
    ),
    "yarn": (
        llava_config("qwen2", rope_parameters={"rope_type": "yarn", **ROPE}),
        "'qwen2' uses 'yarn' rotary scaling",
    ),
    "long rope": (
        llava_config(
            "phi3",
            original_max_position_embeddings=64,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
            },
        ),
        "'phi3' uses 'longrope' rotary scaling",
    ),
    "another tower": (
        with_vision(transformers.Dinov2Config(), "full"),
        "vision tower 'dinov2' is not supported; supported towers: clip_vision_model, siglip_vision_model",
    ),
    "class token as a visual token": (
        with_vision(llava_config().vision_config, "full"),
        "vision_feature_select_strategy 'full' with 'clip_vision_model'",
    ),
    "patch lost as a class token": (
        with_vision(siglip(), "default"),
        "vision_feature_select_strategy 'default' with 'siglip_vision_model'",
    ),
}


def test_a_window_of_no_size_is_refused() -> None:
    config = text_changed("qwen2", layer_types=["full_attention"] * 3 + ["sliding_attention"])
    with pytest.raises(UnsupportedModelError, match="layers of sliding_attention and no sliding_window"):
        family_of(config)


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_by_name_and_says_what_works(name: str) -> None:
    config, message = REFUSED[name]
    with pytest.raises(UnsupportedModelError) as caught:
        family_of(config)
    assert message in str(caught.value)
    assert LIST in str(caught.value)


def _write(folder: Path, text: str) -> Path:
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


def test_reads_a_folder(tmp_path: Path) -> None:
    llava_config("qwen2").save_pretrained(tmp_path)
    assert read_config(tmp_path).text_config.model_type == "qwen2"


QUANTISED: dict[str, tuple[dict[str, Any], str]] = {
    "awq": ({"quantization_config": {"quant_method": "awq", "bits": 3}}, "awq"),
    "gptq in the text model": (
        {"text_config": {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 3}}},
        "gptq",
    ),
    "bitsandbytes of old": ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
    "fp8": ({"quantization_config": {"quant_method": "fp8", "fmt": "e5m2"}}, "fp8"),
    "compressed-tensors": (
        {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
        "compressed-tensors pack-quantized",
    ),
    "compressed-tensors of old": ({"compression_config": {"format": "int-quantized"}}, "int-quantized"),
    "torchao": ({"quantization_config": {"quant_method": "torchao"}}, "torchao"),
    "nobody": ({"quantization_config": {}}, "an unknown method"),
    "no object": ({"quantization_config": "int4"}, "an unknown method"),
    "escape": ({"quantization_config": {"quant_method": "\x1b[31m"}}, r"\x1b[31m"),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_a_quantised_model_is_named_as_such_from_its_config(name: str, tmp_path: Path) -> None:
    changes, method = QUANTISED[name]
    text = {**llava_config().to_dict(), **changes}
    (tmp_path / "config.json").write_text(json.dumps(text))
    message = rf"is stored quantised by {re.escape(method)} \(see .*config\.json\).*: export the original"
    with pytest.raises(UnsupportedModelError, match=message):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "method"),
    [
        ("quantize_config.json", {"bits": 3, "quant_method": "gptq"}, "gptq"),
        ("quant_config.json", {"zero_point": True}, "an unknown method"),
        (
            "hf_quant_config.json",
            {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}},
            "modelopt NVFP4",
        ),
    ],
)
def test_a_quantised_model_is_named_as_such_from_the_quantisers_file(
    file: str, content: dict[str, Any], method: str, tmp_path: Path
) -> None:
    llava_config().save_pretrained(tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(UnsupportedModelError, match=rf"quantised by {method} \(see .*{file}\)"):
        read_config(tmp_path)
    (tmp_path / file).write_text("{")
    with pytest.raises(UnsupportedModelError, match=r"quantised by an unknown method"):
        read_config(tmp_path)


def test_a_config_of_a_quantised_model_that_can_be_repacked_is_read(tmp_path: Path) -> None:
    text = {**llava_config().to_dict(), "quantization_config": {"quant_method": "awq", "bits": 4}}
    assert read_config(_write(tmp_path, json.dumps(text))).model_type == "llava"


def test_a_config_that_says_it_is_not_quantised_is_read(tmp_path: Path) -> None:
    text = {**llava_config().to_dict(), "quantization_config": None}
    (tmp_path / "config.json").write_text(json.dumps(text))
    assert read_config(tmp_path).model_type == "llava"


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_has_to_be_merged_first(name: str, whole: bool, tmp_path: Path) -> None:
    if whole:
        llava_config().save_pretrained(tmp_path)
    (tmp_path / name).write_text("{}")
    with pytest.raises(
        UnsupportedModelError, match=rf"{name}.*merge the adapter first, with merge_and_unload"
    ):
        read_config(tmp_path)


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a Hugging Face model folder: it has no config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["{", "", "[1]", '"llava"', "{" * 100_000])
def test_a_config_that_is_no_json_object(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json is not valid"):
        read_config(_write(tmp_path, text))


@pytest.mark.parametrize("kind", ["unheard_of", None])
def test_a_model_type_that_transformers_does_not_know(kind: str | None, tmp_path: Path) -> None:
    text = json.dumps({"model_type": kind} if kind else {"hidden_size": 3})
    with pytest.raises(UnsupportedModelError, match=f"knows no model_type {kind!r}.*{LIST}"):
        read_config(_write(tmp_path, text))


@pytest.mark.parametrize("kind", ["internvl_chat", "phi3_v"])
def test_a_checkpoint_with_code_of_its_own(kind: str, tmp_path: Path) -> None:
    text = json.dumps({"model_type": kind, "auto_map": {"AutoConfig": "configuration.Config"}})
    wanted = f"model_type {kind!r} and brings code of its own, which is never run: convert it .*{LIST}"
    with pytest.raises(UnsupportedModelError, match=wanted):
        read_config(_write(tmp_path, text))


def test_a_text_model_that_transformers_does_not_know(tmp_path: Path) -> None:
    llava_config().save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["text_config"]["model_type"] = "unheard_of"
    with pytest.raises(UnsupportedModelError, match=f"knows no model_type 'unheard_of'.*{LIST}"):
        read_config(_write(tmp_path, json.dumps(raw)))


@pytest.mark.parametrize("change", [{"num_hidden_layers": "four"}, {"rope_parameters": 3}])
def test_a_config_with_a_value_that_cannot_be(change: dict[str, Any], tmp_path: Path) -> None:
    llava_config().save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["text_config"].update(change)
    (name,) = change
    with pytest.raises(InputError, match=rf"config\.json is not valid \(.*{name}.*download"):
        read_config(_write(tmp_path, json.dumps(raw)))


@pytest.mark.parametrize("layers", [-2, -1, 1, [-2, -1], [1]], ids=str)
def test_visual_embeddings_are_huggingfaces(layers: int | list[int]) -> None:
    config = llava_config()
    config.vision_feature_layer = layers
    check_vision(config)


def test_visual_embeddings_of_a_siglip_tower() -> None:
    check_vision(with_vision(siglip(), "full"))


def test_a_siglip_tower_is_built_without_memory() -> None:
    config = with_vision(siglip(), "full")
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = family_of(config).build(config, torch.float16)
    buffers = buffer_values(model)
    (places,) = (values for name, values in buffers.items() if name.endswith("position_ids"))
    assert places.tolist() == [list(range(36))]


def check_vision(config: LlavaConfig) -> None:
    model = eager_llava(config)
    family = family_of(config)
    pixels = torch.randn(3, 3, *family.image_size(config))
    with torch.no_grad():
        found = family.parts(model).vision(pixels)
        wanted = torch.cat(list(model.model.get_image_features(pixels).pooler_output))
    rows, columns = family.grid(config)
    assert found.shape == (3 * rows * columns, config.text_config.hidden_size)
    assert float((found - wanted).abs().max()) <= 1e-6
    assert float(wanted.std()) > 1e-3


def test_builds_and_loads_in_the_dtype(tmp_path: Path) -> None:
    model = tiny_llava("qwen3")
    model.save_pretrained(tmp_path)
    family = family_of(model.config)
    loaded = family.load(tmp_path, torch.float16)
    assert loaded.lm_head.weight.dtype == torch.float16
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.half())
    assert not loaded.training
    built = family.build(model.config, torch.bfloat16)
    assert {parameter.dtype for parameter in built.parameters()} == {torch.bfloat16}
    assert not built.training
