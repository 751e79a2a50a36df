"""Video-LLaVA: LLaVA's parts with two towers, one for images and one for the frames of videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, VideoLlavaForConditionalGeneration

from edgeprune.errors import UnsupportedModelError
from edgeprune.exporter.families.base import ModelParts
from edgeprune.exporter.families.llava import Llava, LlavaVision
from edgeprune.exporter.image_processor import pixel_values
from edgeprune.exporter.video_processor import (
    frame_crop,
    frame_size,
    read_video_program,
    sampling,
)
from edgeprune.plans import TowerStage
from edgeprune.video_program import VideoProgram


class _TwoTowers(nn.Module):
    """Images lose their class token, frames keep it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.images = LlavaVision(model, model.model.image_tower)
        self.frames = LlavaVision(model, model.model.video_tower)
        self.frames.skip_class_token = False

    def forward(
        self, pixel_values: torch.Tensor, frame_values: torch.Tensor, token_row: torch.Tensor
    ) -> torch.Tensor:
        tokens = torch.cat([self.images(pixel_values), self.frames(frame_values)])
        return nn.functional.embedding(token_row, tokens)


class VideoLlava(Llava):
    """See the module's description."""

    name = "video_llava"
    architecture = "VideoLlavaForConditionalGeneration"
    model_class = VideoLlavaForConditionalGeneration

    def check(self, config: PretrainedConfig) -> None:
        super().check(config)
        if config.vision_config.model_type != "clip_vision_model":
            raise UnsupportedModelError(
                f"vision towers of {config.vision_config.model_type!r} are not supported here: expected "
                "clip_vision_model, whose class token stands in front of each frame"
            )

    def parts(self, model: PreTrainedModel, tower: Sequence[TowerStage] = ()) -> ModelParts:
        assert not tower  # `tower_layers` is 0
        return ModelParts.of(model, _TwoTowers(model))

    def tower_layers(self, config: PretrainedConfig) -> int:
        # Merging is published for one tower, and nobody knows what it does to frames.
        return 0

    def video_program(self, folder: Path, config: PretrainedConfig) -> VideoProgram | None:
        def program(raw: dict[str, Any]) -> VideoProgram:
            return VideoProgram(
                sampling=sampling(raw),
                size=frame_size(raw),
                crop=frame_crop(raw),
                pixels=pixel_values(raw),
                own_tower=True,
            )

        settings = {
            "size": {"shortest_edge": 224},
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
            "num_frames": 8,
        }
        return read_video_program(folder, "VideoLlavaVideoProcessor", settings, program)
