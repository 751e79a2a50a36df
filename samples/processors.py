"""Processors for models of random weights: word-level tokenizers, with LLaVA's or Qwen's image processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

WORDS = [
    *("user", "assistant", "what", "colour", "is", "the", "big", "small"),
    *("red", "green", "blue", "star", "box", "in", "picture", "?", ":", "."),
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_WORDS = [
    *("<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|im_end|>", "user", "assistant", "system", "what", "colour", "is", "the", "big"),
    *("small", "star", "box", "?", "."),
]


def save_processor(folder: Path, image_size: int = 24, patch_size: int = 4, letterbox: bool = True) -> None:
    """A word-level tokenizer and the letterboxing LLaVA image processor."""
    specials = ["<pad>", "<s>", "</s>", "<unk>", "\n", "<image>"]
    vocabulary = {word: number for number, word in enumerate(specials + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )
    images = LlavaImageProcessorPil(
        do_pad=letterbox,
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
    )
    LlavaProcessor(
        image_processor=images,
        tokenizer=fast,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


def save_tokenizer(folder: Path, words: Sequence[str], bos: str | None = None, **special: str) -> None:
    """A word-level tokenizer; `special` names further special tokens."""
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=special,
        padding_side="left",
    ).save_pretrained(folder)


def save_qwen_processor(folder: Path, patch_size: int, **settings: Any) -> None:
    """A word-level tokenizer and the image processor of Qwen's models; `settings` are further ones of it."""
    special = [word for word in QWEN_WORDS if word.startswith("<|")]
    save_tokenizer(folder, QWEN_WORDS, **{f"{word.strip('<|>')}_token": word for word in special})
    Qwen2VLImageProcessorPil(patch_size=patch_size, **settings).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(QWEN_TEMPLATE, encoding="utf-8")
