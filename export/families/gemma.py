"""Gemma 3: a fixed number of visual tokens, windows in most layers, and images that attend both ways."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Gemma3ForConditionalGeneration, PretrainedConfig, PreTrainedModel

from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.exporter.families.base import Family, ModelParts, check_text_config, supported
from edgeprune.exporter.image_processor import read_crops, read_image_program
from edgeprune.exporter.model_files import check_told, special_tokens
from edgeprune.image_program import ImageProgram, ImageText
from edgeprune.layout import PromptLayout
from edgeprune.plans import TowerStage


class _GemmaVision(nn.Module):
    """Tower and projector, as `Gemma3Model.get_image_features` calls them."""

    # Parts of a model that Hugging Face's classes have no types for.
    tower: Any
    projector: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden = self.tower(pixel_values=pixel_values, return_dict=True).last_hidden_state
        side, window = self.projector.tokens_per_side, self.projector.kernel_size
        # As its pooling, which ONNX has not in bfloat16.
        squares = hidden.unflatten(1, (side, window, side, window)).mean((2, 4)).flatten(0, 2)
        normed = self.projector.mm_soft_emb_norm(squares)
        return torch.matmul(normed, self.projector.mm_input_projection_weight)


class Gemma3(Family):
    """See the module's description."""

    name = "gemma3"
    architecture = "Gemma3ForConditionalGeneration"
    model_class = Gemma3ForConditionalGeneration

    def check(self, config: PretrainedConfig) -> None:
        if config.vision_config.model_type != "siglip_vision_model":
            raise UnsupportedModelError(
                f"Gemma 3 with the vision tower {config.vision_config.model_type!r} is not supported: "
                f"expected 'siglip_vision_model'. {supported()}"
            )
        side = math.isqrt(config.mm_tokens_per_image)
        patches = config.vision_config.image_size // config.vision_config.patch_size
        if side * side != config.mm_tokens_per_image or patches % side:
            raise UnsupportedModelError(
                f"mm_tokens_per_image {config.mm_tokens_per_image} of {patches} x {patches} patches is not "
                "supported: expected a square whose side divides the patches'"
            )
        if config.text_config.use_bidirectional_attention:
            raise UnsupportedModelError(
                f"use_bidirectional_attention of the text model is not supported. {supported()}"
            )
        check_text_config(config.text_config, {"gemma3_text": "Gemma 3"})

    def parts(self, model: PreTrainedModel, tower: Sequence[TowerStage] = ()) -> ModelParts:
        assert not tower  # `tower_layers` is 0
        return ModelParts.of(model, _GemmaVision(model), two_way=True)

    def tower_layers(self, config: PretrainedConfig) -> int:
        # The projector takes means of neighbours, where a token merged away would leave a hole.
        return 0

    def image_place(self, folder: Path) -> str | None:
        return _ends(folder)[0]

    def image_arguments(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        layouts: Sequence[PromptLayout],
        config: PretrainedConfig,
    ) -> dict[str, Any]:
        is_image: Any = input_ids == config.image_token_id
        return {"pixel_values": pixel_values, "token_type_ids": is_image.to(torch.int64)}

    def image_program(self, folder: Path, config: PretrainedConfig) -> ImageProgram:
        size, side = config.vision_config.image_size, math.isqrt(config.mm_tokens_per_image)
        check_told(folder, "image_seq_length", side * side)
        start, end = _ends(folder)
        before, behind, cut = f"\n\n{start}", f"{end}\n\n", read_crops(folder)
        text = ImageText(prefix=before, suffix=behind)
        if cut is not None:
            # Each crop is an image of its own between these words, as in the checkpoint's processor.
            text = ImageText(
                whole=before,
                thumbnail=f"Here is the original image {before}",
                first=f"{behind} and here are some crops to help you see better {before}",
                tile=f"{behind} {before}",
                suffix=behind,
            )
        return read_image_program(folder, (size, size), (side, side), text, cut)


def _ends(folder: Path) -> tuple[str, str]:
    """What stands before and behind an image's tokens."""
    named = special_tokens(folder)
    if not {"boi_token", "eoi_token"} <= named.keys():
        raise InputError(
            f"{folder / 'tokenizer_config.json'} names no boi_token and eoi_token: expected the tokenizer of "
            "a Gemma 3 checkpoint"
        )
    return named["boi_token"], named["eoi_token"]
