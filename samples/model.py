"""What the sample model is made of: its sizes, its vocabulary, its prompt form, its Hugging Face folder."""

from __future__ import annotations

import os
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

# The Pillow variant by name: the name without "Pil" stands for one that needs torchvision.
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from samples.scenes import COLORS, GRID, SHAPES

PATCH = 8
IMAGE_SIZE = GRID * PATCH
VISUAL_TOKENS = GRID * GRID
LAYERS = 4
TOWER_LAYERS = 2
WIDTH = 96
MLP_WIDTH = 192
HEADS = 4
POSITIONS = 2048
"""Enough for a dozen pictures in one prompt, though it was trained on prompts with one."""

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
ROLE_TOKENS = ("USER:", "ASSISTANT:")
_QUESTION_WORDS = ("what", "color", "shape", "is", "the")

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- message['role'] | upper + ':' }}
    {%- if message['content'] is string %}
        {{- ' ' + message['content'] }}
    {%- else %}
        {%- set pictures = message['content'] | selectattr('type', 'equalto', 'image') | list %}
        {%- for part in message['content'] if part['type'] == 'image' %}
            {{- ' <image>\\n' }}
        {%- endfor %}
        {%- for part in message['content'] if part['type'] == 'text' %}
            {{- ('' if pictures else ' ') + part['text'] }}
        {%- endfor %}
    {%- endif %}
    {{- '</s>' if message['role'] == 'assistant' else ' ' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'ASSISTANT:' }}
{%- endif %}
"""


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word. Case and question marks make no difference, and a new line counts as a space."""
    words = [*SPECIAL_TOKENS, *ROLE_TOKENS, *COLORS, *SHAPES, *_QUESTION_WORDS]
    backend = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL_TOKENS])
    # Added tokens are found before normalization, so the roles keep their capitals.
    backend.add_tokens([AddedToken(word, normalized=False) for word in ROLE_TOKENS])
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace("colour", "color"),
            normalizers.Replace("?", " "),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", words.index("<s>"))]
    )
    # Joins words with a space each; no word starts with its prefix, so nothing is glued.
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",  # as batched generation needs it
        model_max_length=POSITIONS,
    )


def processor() -> LlavaProcessor:
    """Letterboxes a picture in the mean color, scales it to IMAGE_SIZE, and expands <image> to 144 tokens."""
    images = LlavaImageProcessorPil(
        do_pad=True,
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which "default" drops again
        chat_template=CHAT_TEMPLATE,
    )


def config(words: PreTrainedTokenizerFast) -> LlavaConfig:
    """The architecture; `words` gives the vocabulary's size and the special tokens' ids."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=MLP_WIDTH,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=HEADS,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=MLP_WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=len(words),
        max_position_embeddings=POSITIONS,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        initializer_range=0.1,  # near 1 / sqrt(width): with the usual 0.02 learning starts much later
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=VISUAL_TOKENS,
        vision_feature_layer=-1,  # with two layers there is none to spare
        vision_feature_select_strategy="default",
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def save(model: LlavaForConditionalGeneration, parts: LlavaProcessor, folder: Path) -> None:
    """Writes the folder that `from_pretrained` reads, chat template and generation settings included."""
    words = parts.tokenizer
    model.generation_config = GenerationConfig(
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        do_sample=False,
        max_new_tokens=8,
    )
    model.save_pretrained(folder)
    parts.save_pretrained(folder)
    for file in folder.iterdir():
        # Temporary files are made readable for their owner only; a published folder is for everyone.
        os.chmod(file, 0o644)
