"""InternVL3 and 3.5 in Hugging Face's own form: tiles with a thumbnail, and a Qwen text model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import InternVLForConditionalGeneration, PretrainedConfig, PreTrainedModel

from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.exporter.families.base import Family, ModelParts, check_text_config, supported
from edgeprune.exporter.image_processor import read_tile_program
from edgeprune.exporter.model_files import special_tokens
from edgeprune.image_program import ImageProgram, ImageText
from edgeprune.plans import TowerStage

_TEXT_MODELS = ("qwen2", "qwen3")


class _InternVLVision(nn.Module):
    """Tower, pixel shuffle and projector, as `InternVLModel.get_image_features` calls them."""

    # Parts of a model that Hugging Face's classes have no types for.
    tower: Any
    projector: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.layer = model.config.vision_feature_layer
        self.ratio = model.config.downsample_ratio
        # Only the function: the model holds the decoder too.
        self.shuffle = type(model.model).pixel_shuffle

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        out = self.tower(pixel_values=pixel_values, output_hidden_states=self.layer != -1, return_dict=True)
        hidden = out.last_hidden_state if self.layer == -1 else out.hidden_states[self.layer]
        patches = hidden[:, 1:]
        side = int(patches.shape[1] ** 0.5)
        square = patches.reshape(patches.shape[0], side, side, patches.shape[2])
        packed = self.shuffle(self, square, scale_factor=self.ratio)
        features: torch.Tensor = self.projector(packed.reshape(packed.shape[0], -1, packed.shape[-1]))
        return features.flatten(0, 1)


class InternVL(Family):
    """See the module's description."""

    name = "internvl"
    architecture = "InternVLForConditionalGeneration"
    model_class = InternVLForConditionalGeneration

    def check(self, config: PretrainedConfig) -> None:
        if config.text_config.model_type not in _TEXT_MODELS:
            raise UnsupportedModelError(
                f"InternVL with the text model {config.text_config.model_type!r} is not supported; "
                f"supported: {', '.join(_TEXT_MODELS)}"
            )
        if config.vision_feature_select_strategy != "default" or not isinstance(
            config.vision_feature_layer, int
        ):
            raise UnsupportedModelError(
                f"vision_feature_select_strategy {config.vision_feature_select_strategy!r} with "
                f"vision_feature_layer {config.vision_feature_layer!r} is not supported: expected 'default' "
                f"and one layer. {supported()}"
            )
        rows, columns = self.grid(config)
        if rows != columns or rows * columns != config.image_seq_length:
            raise UnsupportedModelError(
                f"image_seq_length {config.image_seq_length} is not supported with tiles of {rows} x "
                f"{columns} visual tokens: expected a square of as many"
            )
        check_text_config(config.text_config)

    def parts(self, model: PreTrainedModel, tower: Sequence[TowerStage] = ()) -> ModelParts:
        assert not tower  # `tower_layers` is 0
        return ModelParts.of(model, _InternVLVision(model))

    def tower_layers(self, config: PretrainedConfig) -> int:
        # Pixel shuffle joins neighbours, so that a token merged away would leave a hole.
        return 0

    def image_program(self, folder: Path, config: PretrainedConfig) -> ImageProgram:
        named = special_tokens(folder)
        if not {"start_image_token", "end_image_token"} <= named.keys():
            raise InputError(
                f"{folder / 'tokenizer_config.json'} names no start_image_token and end_image_token: "
                "expected the tokenizer of an InternVL checkpoint in Hugging Face's form"
            )
        text = ImageText(prefix=named["start_image_token"], suffix=named["end_image_token"])
        return read_tile_program(folder, self.image_size(config), self.grid(config), text)

    def image_size(self, config: PretrainedConfig) -> tuple[int, int]:
        height, width = config.vision_config.image_size
        return int(height), int(width)

    def grid(self, config: PretrainedConfig) -> tuple[int, int]:
        (height, width), patch = self.image_size(config), config.vision_config.patch_size
        ratio = config.downsample_ratio
        return int(height // patch[0] * ratio), int(width // patch[1] * ratio)
