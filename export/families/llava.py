"""LLaVA-1.5: a CLIP or SigLIP tower, a two-layer projector, and any supported text model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration, PretrainedConfig, PreTrainedModel

from edgeprune.errors import UnsupportedModelError
from edgeprune.exporter.families.base import Family, ModelParts, check_text_config, supported
from edgeprune.exporter.image_processor import read_image_program
from edgeprune.exporter.tower import MergingTower
from edgeprune.image_program import ImageProgram
from edgeprune.plans import TowerStage

_TOWERS = ("clip_vision_model", "siglip_vision_model")


def _skipped(config: PretrainedConfig) -> int:
    """Tokens in front of the image's: `Llava.check` has seen to it that this is a class token or none."""
    return int(config.vision_feature_select_strategy == "default")


class LlavaVision(nn.Module):
    """Tower, choice of hidden states, projector.

    Args:
        model: with a projector.
        tower: None for the model's own.
    """

    def __init__(self, model: PreTrainedModel, tower: nn.Module | None = None) -> None:
        super().__init__()
        self.tower = model.model.vision_tower if tower is None else tower
        self.projector = model.model.multi_modal_projector
        self.layers = model.config.vision_feature_layer
        self.skip_class_token = model.config.vision_feature_select_strategy == "default"

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden = self.tower(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
        layers = [self.layers] if isinstance(self.layers, int) else list(self.layers)
        chosen = [hidden[layer][:, 1:] if self.skip_class_token else hidden[layer] for layer in layers]
        return self.projector(torch.cat(chosen, dim=-1) if len(chosen) > 1 else chosen[0]).flatten(0, 1)


class _MergingLlavaVision(nn.Module):
    """A tower that merges, and the projector; the other outputs are those of `MergingTower`."""

    def __init__(self, model: PreTrainedModel, stages: Sequence[TowerStage], layers: int) -> None:
        super().__init__()
        self.tower = MergingTower(model.model.vision_tower, stages, layers, _skipped(model.config))
        self.projector = model.model.multi_modal_projector

    def forward(
        self, pixel_values: torch.Tensor, scores: Sequence[torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, ...]:
        hidden, place, own = self.tower(pixel_values, scores)
        return self.projector(hidden).flatten(0, 1), place, *own


class Llava(Family):
    """See the module's description."""

    name = "llava"
    architecture = "LlavaForConditionalGeneration"
    model_class: type[PreTrainedModel] = LlavaForConditionalGeneration

    def check(self, config: PretrainedConfig) -> None:
        tower = config.vision_config.model_type
        if tower not in _TOWERS:
            raise UnsupportedModelError(
                f"the vision tower {tower!r} is not supported; supported towers: {', '.join(_TOWERS)}. "
                f"{supported()}"
            )
        # Only CLIP has a class token in front of its patches; "full" would count it as a visual token
        # without a place in the image.
        has_class_token = tower == "clip_vision_model"
        skips = config.vision_feature_select_strategy == "default"
        if has_class_token != skips:
            raise UnsupportedModelError(
                f"vision_feature_select_strategy {config.vision_feature_select_strategy!r} with {tower!r} is "
                f"not supported: every visual token must be a place in the image. {supported()}"
            )
        check_text_config(config.text_config)

    def parts(self, model: PreTrainedModel, tower: Sequence[TowerStage] = ()) -> ModelParts:
        layers = self.tower_layers(model.config)
        vision = _MergingLlavaVision(model, tower, layers) if tower else LlavaVision(model)
        return ModelParts.of(model, vision)

    def tower_layers(self, config: PretrainedConfig) -> int:
        layer = config.vision_feature_layer
        if not isinstance(layer, int):
            return 0
        depth = int(config.vision_config.num_hidden_layers)
        return layer if layer >= 0 else depth + 1 + layer

    def tower_attention(self, model: PreTrainedModel, pixel_values: torch.Tensor, layer: int) -> torch.Tensor:
        attentions = model.model.vision_tower(pixel_values, output_attentions=True).attentions
        paid: torch.Tensor = attentions[layer][..., _skipped(model.config) :]
        return paid

    def image_program(self, folder: Path, config: PretrainedConfig) -> ImageProgram:
        return read_image_program(folder, self.image_size(config), self.grid(config))

    def image_size(self, config: PretrainedConfig) -> tuple[int, int]:
        """Height and width in pixels of the vision tower's input."""
        size = config.vision_config.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def grid(self, config: PretrainedConfig) -> tuple[int, int]:
        """Rows and columns of visual tokens of one image."""
        patch = config.vision_config.patch_size
        height, width = self.image_size(config)
        return height // patch, width // patch
