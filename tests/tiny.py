"""Tiny random models in Hugging Face's own layout, one per text model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.video_llava.image_processing_video_llava import VideoLlavaImageProcessor

from samples.processors import save_processor, save_qwen_processor, save_tokenizer

TEXT_CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, {}),
    "mistral": (transformers.MistralConfig, {"sliding_window": None}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 16}),
    "gemma": (transformers.GemmaConfig, {"head_dim": 12}),
    "phi3": (transformers.Phi3Config, {"sliding_window": None, "pad_token_id": 0}),
}


def text_config(kind: str, **changes: Any) -> transformers.PretrainedConfig:
    """A text config of four small layers with grouped-query attention."""
    config, special = TEXT_CONFIGS[kind]
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        # Large weights, so that a random model's attention and logits are far from flat.
        "initializer_range": 0.3,
    }
    return config(**{**sizes, **special, **changes})


def llava_config(
    kind: str = "llama", image_size: int = 24, patch_size: int = 4, **changes: Any
) -> LlavaConfig:
    """A LLaVA of (image_size / patch_size)^2 visual tokens; `changes` go to the text config."""
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=patch_size,
        initializer_range=0.3,
    )
    text = text_config(kind, **changes)
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=5,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=text.tie_word_embeddings,
    )


def tiny_llava(
    kind: str = "llama", seed: int = 0, image_size: int = 24, patch_size: int = 4, **changes: Any
) -> LlavaForConditionalGeneration:
    """A LLaVA with random float32 weights that runs Hugging Face's eager attention, in eval mode."""
    return eager_llava(llava_config(kind, image_size, patch_size, **changes), seed)


def eager_llava(config: LlavaConfig, seed: int = 0) -> LlavaForConditionalGeneration:
    """The same of any config."""
    torch.manual_seed(seed)
    return LlavaForConditionalGeneration._from_config(config, attn_implementation="eager").eval()


def save_llava(
    folder: Path,
    kind: str = "llama",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    image_size: int = 24,
    patch_size: int = 4,
    letterbox: bool = True,
    shard: str = "1GB",
    **changes: Any,
) -> Path:
    """Saves a random LLaVA with processor, in files of at most `shard`; returns the folder."""
    model = tiny_llava(kind, seed, image_size, patch_size, **changes).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    save_processor(folder, image_size, patch_size, letterbox)
    return folder


INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)
INTERNVL_WORDS = [
    *("<pad>", "<s>", "</s>", "<unk>", "\n", "<IMG_CONTEXT>", "<img>", "</img>"),
    *("user", "assistant", "what", "colour", "is", "the", "big", "small", "star", "box", "?", ":", "."),
]


def save_internvl(folder: Path, kind: str = "qwen2", seed: int = 0, **processor: Any) -> Path:
    """Saves a random InternVL of tiles of 24 pixels and 3 x 3 visual tokens.

    Beside the weights lies what a checkpoint has, but for the video processor, which needs torchvision.

    Args:
        processor: changes of the image processor.
    """
    vision = transformers.InternVLVisionConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=[24, 24],
        patch_size=[4, 4],
        initializer_range=0.3,
    )
    config = transformers.InternVLConfig(
        text_config=text_config(kind, max_position_embeddings=1024).to_dict(),
        vision_config=vision.to_dict(),
        image_token_id=5,
        image_seq_length=9,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = transformers.InternVLForConditionalGeneration._from_config(config, attn_implementation="eager")
    model.eval().save_pretrained(folder)
    save_tokenizer(
        folder,
        INTERNVL_WORDS,
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
    )
    settings: dict[str, Any] = {
        "size": {"height": 24, "width": 24},
        "crop_to_patches": True,
        "min_patches": 1,
        "max_patches": 4,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    GotOcr2ImageProcessorPil(**{**settings, **processor}).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(INTERNVL_TEMPLATE, encoding="utf-8")
    return folder


def save_qwen(
    folder: Path, kind: str = "qwen2_5_vl", seed: int = 0, spread: float = 0.3, **processor: Any
) -> Path:
    """Saves a random Qwen-VL of patches of 4 pixels, 2 x 2 of them a visual token.

    Args:
        kind: "qwen2_vl", "qwen2_5_vl" (windows of 2 x 2 visual tokens) or "qwen3_vl" (3 levels of deepstack).
        spread: of the weights; large ones magnify what half precision rounds.
        processor: changes of the image processor.
    """
    sections = [4, 2, 2] if kind == "qwen3_vl" else [1, 1, 2]
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}
    text = {
        **text_config(
            "qwen3" if kind == "qwen3_vl" else "qwen2", max_position_embeddings=1024, initializer_range=spread
        ).to_dict(),
        "model_type": f"{kind}_text",
        "rope_parameters": {**rope, "mrope_interleaved": True} if kind == "qwen3_vl" else rope,
    }
    vision: dict[str, Any] = {"depth": 4, "num_heads": 4, "patch_size": 4, "initializer_range": spread}
    width = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32}
    vision |= {
        "qwen2_vl": {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "hidden_act": "quick_gelu"},
        "qwen2_5_vl": {**width, "window_size": 16, "fullatt_block_indexes": [1, 3]},
        "qwen3_vl": {**width, "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 1, 2]},
    }[kind]
    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[kind]
    config = getattr(transformers, f"{name}Config")(
        text_config=text,
        vision_config=vision,
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=7,
        vision_end_token_id=8,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForConditionalGeneration")._from_config(
        config, attn_implementation="eager"
    )
    model.eval().save_pretrained(folder)
    own = "Qwen3VLVideoProcessor" if kind == "qwen3_vl" else "Qwen2VLVideoProcessor"
    most = 10240 if kind == "qwen3_vl" else 1024  # of all frames, or of each
    video = {"video_processor_type": own, "size": {"shortest_edge": 256, "longest_edge": most}}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video), encoding="utf-8")
    settings: dict[str, Any] = {"patch_size": 4, "size": {"shortest_edge": 256, "longest_edge": 4096}}
    save_qwen_processor(folder, **{**settings, **processor})
    return folder


SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SMOLVLM_WORDS = [
    *("<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<image>"),
    *("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "\n"),
    *(f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)),
    *("User:", "Assistant:", "what", "colour", "is", "the", "big", "small", "star", "box", "?", "."),
]


def save_smolvlm(folder: Path, kind: str = "smolvlm", seed: int = 0, **processor: Any) -> Path:
    """Saves a random SmolVLM, or an Idefics3, of tiles of 24 pixels and 3 x 3 visual tokens.

    Args:
        kind: "smolvlm" or "idefics3".
        processor: changes of the image processor.
    """
    name, own = {
        "smolvlm": ("SmolVLM", SmolVLMImageProcessorPil),
        "idefics3": ("Idefics3", Idefics3ImageProcessorPil),
    }[kind]
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "image_size": 24,
        "patch_size": 4,
        "initializer_range": 0.3,
    }
    config = getattr(transformers, f"{name}Config")(
        text_config=text_config("llama", max_position_embeddings=1024, pad_token_id=0).to_dict(),
        vision_config=vision,
        image_token_id=5,
        scale_factor=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForConditionalGeneration")._from_config(
        config, attn_implementation="eager"
    )
    model.eval().save_pretrained(folder)
    special = [word for word in SMOLVLM_WORDS if word.startswith("<") and "_col_" not in word]
    names = {"<fake_token_around_image>": "fake_image_token", "<global-img>": "global_image_token"}
    save_tokenizer(
        folder, SMOLVLM_WORDS, **{names.get(word, f"{word.strip('<|>')}_token"): word for word in special[4:]}
    )
    sizes: dict[str, Any] = {"size": {"longest_edge": 72}, "max_image_size": {"longest_edge": 24}}
    own(**{**sizes, **processor}).save_pretrained(folder)
    (folder / "processor_config.json").write_text('{"image_seq_len": 9}', encoding="utf-8")
    (folder / "chat_template.jinja").write_text(SMOLVLM_TEMPLATE, encoding="utf-8")
    return folder


ANYRES_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% elif part['type'] == 'video' %}<video>\n"
    "{% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)
ANYRES_WORDS = [
    *("<pad>", "<s>", "</s>", "<unk>", "\n", "<image>", "<video>"),
    *("user", "assistant", "what", "colour", "is", "the", "big", "small", "star", "box", "?", ":", "."),
]


def save_anyres(
    folder: Path, kind: str = "llava_next", text: str = "llama", seed: int = 0, **processor: Any
) -> Path:
    """Saves a random LLaVA-NeXT or LLaVA-OneVision of tiles of 24 pixels and 6 x 6 visual tokens.

    Args:
        kind: "llava_next" or "llava_onevision", whose images have at most as many visual tokens as two tiles.
        text: of `TEXT_CONFIGS`.
        processor: changes of the image processor.
    """
    name, own = {
        "llava_next": ("LlavaNext", LlavaNextImageProcessorPil),
        "llava_onevision": ("LlavaOnevision", LlavaOnevisionImageProcessorPil),
    }[kind]
    one = kind == "llava_onevision"
    vision = {
        "model_type": "siglip_vision_model" if one else "clip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 24,
        "patch_size": 4,
        "initializer_range": 0.3,
        **({"vision_use_head": False} if one else {}),
    }
    pinpoints = [[24, 48], [48, 24], [48, 48], [72, 24], [24, 72], *([[24, 24], [72, 72]] if one else [])]
    own_settings: dict[str, Any] = (
        {"vision_aspect_ratio": "anyres_max_2", "video_token_index": 6} if one else {}
    )
    config = getattr(transformers, f"{name}Config")(
        text_config=text_config(text, max_position_embeddings=1024).to_dict(),
        vision_config=vision,
        image_token_index=5,
        image_grid_pinpoints=pinpoints,
        tie_word_embeddings=False,
        **own_settings,
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForConditionalGeneration")._from_config(
        config, attn_implementation="eager"
    )
    model.eval().save_pretrained(folder)
    save_tokenizer(folder, ANYRES_WORDS, image_token="<image>", video_token="<video>")
    settings: dict[str, Any] = {"size": {"height": 24, "width": 24}, "image_grid_pinpoints": pinpoints}
    if not one:
        settings |= {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    own(**{**settings, **processor}).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(ANYRES_TEMPLATE, encoding="utf-8")
    return folder


def save_video_llava(folder: Path, seed: int = 0) -> Path:
    """Saves a random Video-LLaVA of 6 x 6 visual tokens an image, and one more of each frame."""
    plain = llava_config(max_position_embeddings=1024)
    config = transformers.VideoLlavaConfig(
        vision_config=plain.vision_config.to_dict(),
        text_config=plain.text_config.to_dict(),
        image_token_index=5,
        video_token_index=6,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = transformers.VideoLlavaForConditionalGeneration._from_config(config, attn_implementation="eager")
    model.eval().save_pretrained(folder)
    save_tokenizer(folder, ANYRES_WORDS, image_token="<image>", video_token="<video>")
    sizes = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    VideoLlavaImageProcessor(**sizes).save_pretrained(folder)
    video = {"video_processor_type": "VideoLlavaVideoProcessor", **sizes}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(ANYRES_TEMPLATE, encoding="utf-8")
    return folder


GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message['role'] }}\n"
    "{% if message['content'] is string %} {{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>"
    "{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GEMMA_WORDS = [
    *("<pad>", "<s>", "</s>", "<unk>", "<start_of_turn>", "<image_soft_token>", "<start_of_image>"),
    *(
        "<end_of_image>",
        "<end_of_turn>",
        "user",
        "model",
        "system",
        "assistant",
        "what",
        "colour",
        "is",
        "the",
    ),
    *("big", "small", "star", "box", "?", ".", "\n\n", "\n"),
]


def save_gemma3(folder: Path, seed: int = 0, **processor: Any) -> Path:
    """Saves a random Gemma 3: images of 4 x 4 visual tokens, windows of 9 tokens in three of five layers."""
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 4,
        "vision_use_head": False,
    }
    kinds = [
        "sliding_attention",
        "sliding_attention",
        "full_attention",
        "sliding_attention",
        "full_attention",
    ]
    text = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 64,
        "max_position_embeddings": 512,
        "sliding_window": 9,
        "layer_types": kinds,
        "query_pre_attn_scalar": 8,
        "initializer_range": 0.3,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        },
    }
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=16,
        image_token_index=5,
        boi_token_index=6,
        eoi_token_index=7,
    )
    torch.manual_seed(seed)
    model = transformers.Gemma3ForConditionalGeneration._from_config(config, attn_implementation="eager")
    # What starts as zeros would make all images alike.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.3)
    model.eval().save_pretrained(folder)
    # Line breaks are tokens, so that those around an image are compared.
    names = {"image_token": 5, "boi_token": 6, "eoi_token": 7, "paragraph_token": -2, "line_token": -1}
    special = {name: GEMMA_WORDS[number] for name, number in names.items()}
    save_tokenizer(folder, GEMMA_WORDS, bos="<s>", **special)
    settings: dict[str, Any] = {"size": {"height": 32, "width": 32}}
    Gemma3ImageProcessorPil(**{**settings, **processor}).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(GEMMA_TEMPLATE, encoding="utf-8")
    return folder
