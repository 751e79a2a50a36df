"""LLaVA-1.5: a CLIP or SigLIP tower, a two-layer projector, and any supported text model."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration, PretrainedConfig, PreTrainedModel

from edgeprune.errors import UnsupportedModelError
from edgeprune.export.families.base import Family, ModelParts, check_text_config, supported

_TOWERS = ("clip_vision_model", "siglip_vision_model")


class _LlavaVision(nn.Module):
    """Tower, choice of hidden states, projector."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.layers = model.config.vision_feature_layer
        self.skip_class_token = model.config.vision_feature_select_strategy == "default"

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden = self.tower(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
        layers = [self.layers] if isinstance(self.layers, int) else list(self.layers)
        chosen = [hidden[layer][:, 1:] if self.skip_class_token else hidden[layer] for layer in layers]
        return self.projector(torch.cat(chosen, dim=-1) if len(chosen) > 1 else chosen[0])


class Llava(Family):
    name = "llava"
    architecture = "LlavaForConditionalGeneration"
    model_class = LlavaForConditionalGeneration

    def check(self, config: PretrainedConfig) -> None:
        tower = config.vision_config.model_type
        if tower not in _TOWERS:
            raise UnsupportedModelError(
                f"the vision tower {tower!r} is not supported; supported towers: {', '.join(_TOWERS)}. "
                f"{supported()}"
            )
        # Only CLIP has a class token in front of its patches; "full" would count it as a visual token
        # without a place in the picture.
        has_class_token = tower == "clip_vision_model"
        skips = config.vision_feature_select_strategy == "default"
        if has_class_token != skips:
            raise UnsupportedModelError(
                f"vision_feature_select_strategy {config.vision_feature_select_strategy!r} with {tower!r} is "
                f"not supported: every visual token must be a place in the picture. {supported()}"
            )
        check_text_config(config.text_config)

    def parts(self, model: PreTrainedModel) -> ModelParts:
        return ModelParts(
            vision=_LlavaVision(model),
            text_model=model.model.language_model,
            lm_head=model.lm_head,
            image_token_id=model.config.image_token_id,
        )

    def image_size(self, config: PretrainedConfig) -> tuple[int, int]:
        size = config.vision_config.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def grid(self, config: PretrainedConfig) -> tuple[int, int]:
        patch = config.vision_config.patch_size
        height, width = self.image_size(config)
        return height // patch, width // patch
