"""Writes a model with random weights, to measure with where a trained one of that size is not at hand.

    python benchmarks/random_model.py --shape 7b -o build/llava-7b

Times and memory depend on shapes and dtype alone, so random weights measure them as trained ones would;
which tokens are kept, and the text, mean nothing. The weights never pass through memory as a whole: files
are written tensor by tensor from one block of random numbers.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: make the repository's packages importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_SMALL_TOWER = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "heads": 4}
# CLIP ViT-L/14 at 336 pixels.
_CLIP_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "heads": 16}
_LARGE_TEXT = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "heads": 16}
SHAPES: dict[str, dict[str, Any]] = {
    # LLaVA-1.5-7B.
    "7b": {
        "vision": _CLIP_LARGE,
        "text": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "heads": 32},
        "vocab_size": 32064,
    },
    # Small enough for a CPU, large enough that matrix products dominate as in a real model.
    "large": {
        "vision": _SMALL_TOWER,
        "text": _LARGE_TEXT,
        "vocab_size": 32064,
    },
    # Where the vision tower takes as long as the decoder.
    "tower": {
        "vision": _CLIP_LARGE,
        "text": _LARGE_TEXT,
        "vocab_size": 32064,
    },
    # For the memory of builds: few wide layers, and many narrow ones.
    "wide": {
        "vision": _SMALL_TOWER,
        "text": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 6, "heads": 16},
        "vocab_size": 32064,
    },
    "wider": {
        "vision": _SMALL_TOWER,
        "text": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 8, "heads": 24},
        "vocab_size": 32064,
    },
    "deep": {
        "vision": _SMALL_TOWER,
        "text": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 48, "heads": 8},
        "vocab_size": 32064,
    },
}
# In transformers' own words.
_QWEN_TOWER = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
_QWEN_ROPE = {"rope_type": "default", "rope_theta": 1e6}
QWEN_SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-vl-7b": {
        "kind": "Qwen2_5_VL",
        "vision": {**_QWEN_TOWER, "out_hidden_size": 3584, "fullatt_block_indexes": [7, 15, 23, 31]},
        "text": {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "rope_parameters": {**_QWEN_ROPE, "mrope_section": [16, 24, 24]},
        },
    },
    "qwen3-vl-4b": {
        "kind": "Qwen3VL",
        "vision": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2560,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        "text": {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
            "rope_parameters": {
                **_QWEN_ROPE,
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
    },
    # Small enough for a CPU; the tower takes about the share of the time that it takes in Qwen2.5-VL-7B.
    "qwen-large": {
        "kind": "Qwen2_5_VL",
        "vision": {
            "depth": 8,
            "hidden_size": 512,
            "intermediate_size": 1368,
            "num_heads": 8,
            "out_hidden_size": 1024,
            "fullatt_block_indexes": [3, 7],
        },
        "text": {
            "hidden_size": 1024,
            "intermediate_size": 5504,
            "num_hidden_layers": 24,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "vocab_size": 32064,
            "rope_parameters": {**_QWEN_ROPE, "mrope_section": [16, 24, 24]},
        },
    },
}
IMAGE_SIZE, PATCH = 336, 14
"""24 x 24 = 576 visual tokens, as in LLaVA-1.5."""
_SHARD_BYTES = 4 << 30
_BLOCK = 1 << 22
# Each tensor begins elsewhere in the block: engine builders keep equal tensors once.
_STRIDE = 7919


def llava_config(spec: dict[str, Any]) -> Any:
    """The transformers config of a LLaVA of one of SHAPES."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision, text = dict(spec["vision"]), dict(spec["text"])
    vision_heads, text_heads = vision.pop("heads"), text.pop("heads")
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            **vision, num_attention_heads=vision_heads, image_size=IMAGE_SIZE, patch_size=PATCH
        ),
        text_config=LlamaConfig(
            **text,
            num_attention_heads=text_heads,
            num_key_value_heads=text_heads,
            vocab_size=spec["vocab_size"],
            max_position_embeddings=4096,
        ),
        image_token_index=5,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


_ENDS = ("bos_token_id", "eos_token_id")  # the tokenizer's own, and not those of a larger vocabulary
# Of Qwen2.5-VL's released processor.
_QWEN_PIXELS = {"shortest_edge": 4 * 28 * 28, "longest_edge": 16384 * 28 * 28}


def qwen_config(spec: dict[str, Any]) -> Any:
    """The transformers config of a Qwen-VL of one of QWEN_SHAPES."""
    import transformers

    tokens = ("image", "video", "vision_start", "vision_end")
    return getattr(transformers, f"{spec['kind']}Config")(
        vision_config=spec["vision"],
        text_config={**spec["text"], "max_position_embeddings": 32768, **dict.fromkeys(_ENDS)},
        tie_word_embeddings=spec["text"].get("tie_word_embeddings", False),
        **{f"{name}_token_id": 5 + number for number, name in enumerate(tokens)},
    )


def write(shape: str, folder: Path, dtype: str = "fp16", seed: int = 0) -> int:
    """Writes the model folder of one of SHAPES or QWEN_SHAPES; returns the bytes of its weights."""
    from samples.processors import save_processor, save_qwen_processor

    if shape in QWEN_SHAPES:
        config = qwen_config(QWEN_SHAPES[shape])
        total = write_weights(config, folder, dtype, seed)
        save_qwen_processor(folder, config.vision_config.patch_size, size=_QWEN_PIXELS)
        return total
    config = llava_config(SHAPES[shape])
    total = write_weights(config, folder, dtype, seed)
    save_processor(folder, IMAGE_SIZE, PATCH)
    return total


def write_weights(config: Any, folder: Path, dtype: str = "fp16", seed: int = 0) -> int:
    """Writes a config and its weights; returns the bytes of these.

    Args:
        config: of transformers, a vision-language model's.
        folder: to write.
        dtype: of the weights, "fp16" or "fp32".
        seed: of the random numbers.
    """
    import numpy as np
    import torch
    from transformers import AutoModelForImageTextToText

    from edgeprune.exporter.weights import SAFETENSORS_NAMES

    kind = {"fp16": torch.float16, "fp32": torch.float32}[dtype]
    config.dtype = kind
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    config.architectures = [type(model).__name__]
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)

    width = torch.empty(0, dtype=kind).element_size()
    # Odd length, so that no two rows of a matrix repeat each other.
    block = np.random.default_rng(seed).standard_normal(_BLOCK + 1).astype(np.float32) * 0.02
    noise = (block.astype(np.float16) if dtype == "fp16" else block).tobytes()
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, parameter in model.named_parameters():
        size = parameter.numel() * width
        if filled and filled + size > _SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append((name, tuple(parameter.shape)))
        filled += size
    weight_map, total, start = {}, 0, 0
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, sizes in shard:
            begin, end = end, end + int(np.prod(sizes)) * width
            header[name] = {
                "dtype": SAFETENSORS_NAMES[kind],
                "shape": list(sizes),
                "data_offsets": [begin, end],
            }
            weight_map[name] = file
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as writer:
            writer.write(struct.pack("<Q", len(text)) + text)
            for _, sizes in shard:
                left = int(np.prod(sizes)) * width
                begin = start = (start + _STRIDE * width) % len(noise)
                while left:
                    left -= writer.write(noise[begin : begin + left])
                    begin = 0
        total += end
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return total


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write a model with random weights.")
    parser.add_argument("--shape", choices=sorted({*SHAPES, *QWEN_SHAPES}), required=True)
    parser.add_argument("--dtype", choices=["fp16", "fp32"], default="fp16")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    if options.output.exists():
        print(f"error: {options.output} exists already: name another folder", file=sys.stderr)
        return 1
    total = write(options.shape, options.output, options.dtype)
    print(f"wrote {total / 1e9:.2f} GB of weights to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
