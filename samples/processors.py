"""A processor for models of random weights: a word-level tokenizer and LLaVA's image processor."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

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
