"""LLaVA-NeXT and LLaVA-OneVision: LLaVA's parts, on the tiles of a canvas that are put together again."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    LlavaNextForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
)

from edgeprune.errors import UnsupportedModelError
from edgeprune.exporter.families.base import ModelParts
from edgeprune.exporter.families.llava import Llava, LlavaVision
from edgeprune.exporter.image_processor import pixel_values, read_canvas_program
from edgeprune.exporter.model_files import check_told
from edgeprune.exporter.video_processor import frame_size, read_video_program, sampling
from edgeprune.image_program import ImageProgram, PackedTokens
from edgeprune.layout import PromptLayout
from edgeprune.plans import TowerStage
from edgeprune.video_program import VideoProgram


class _PackedVision(nn.Module):
    """LLaVA's vision, and its tokens taken from all tiles as `edgeprune.vision_inputs` says."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision = LlavaVision(model)
        self.newline = model.model.image_newline

    def forward(
        self, pixel_values: torch.Tensor, index: torch.Tensor, weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        tokens = torch.cat([self.newline[None], self.vision(pixel_values)])
        if weight is None:
            return nn.functional.embedding(index[:, 0], tokens)
        # One after the other: all at once would be four times the memory of the visual tokens.
        packed = torch.zeros((), dtype=torch.float32, device=tokens.device)
        for tap in range(index.shape[1]):
            part = nn.functional.embedding(index[:, tap], tokens).to(torch.float32)
            packed = packed + weight[:, tap, None] * part
        return packed.to(tokens.dtype)


class LlavaNext(Llava):
    """See the module's description."""

    name = "llava_next"
    architecture = "LlavaNextForConditionalGeneration"
    model_class: type[PreTrainedModel] = LlavaNextForConditionalGeneration
    image_processor = "LlavaNextImageProcessor"

    def check(self, config: PretrainedConfig) -> None:
        super().check(config)
        height, width = self.image_size(config)
        if height != width:
            raise UnsupportedModelError(
                f"tiles of {height} x {width} pixels are not supported: expected square ones"
            )

    def parts(self, model: PreTrainedModel, tower: Sequence[TowerStage] = ()) -> ModelParts:
        assert not tower  # `tower_layers` is 0
        return ModelParts.of(model, _PackedVision(model))

    def tower_layers(self, config: PretrainedConfig) -> int:
        # Tiles are put together by rows and columns, so that a token merged away would leave a hole.
        return 0

    def image_program(self, folder: Path, config: PretrainedConfig) -> ImageProgram:
        rows, columns = self.grid(config)
        return read_canvas_program(
            folder,
            self.image_processor,
            self.image_size(config),
            PackedTokens(rows=rows, columns=columns, most=self.most_tiles(config)),
            [(int(high), int(wide)) for high, wide in config.image_grid_pinpoints],
        )

    def most_tiles(self, config: PretrainedConfig) -> int | None:
        """Tiles that an image may have as many visual tokens as; None for any number."""
        return None

    def image_arguments(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        layouts: Sequence[PromptLayout],
        config: PretrainedConfig,
    ) -> dict[str, Any]:
        sizes = [image.size[::-1] for layout in layouts for image in layout.images]
        return {"pixel_values": pixel_values, "image_sizes": torch.tensor(sizes)}


class LlavaOnevision(LlavaNext):
    """Images that are too large are resampled, and several of a prompt are one tile each."""

    name = "llava_onevision"
    architecture = "LlavaOnevisionForConditionalGeneration"
    model_class = LlavaOnevisionForConditionalGeneration
    image_processor = "LlavaOnevisionImageProcessor"

    def check(self, config: PretrainedConfig) -> None:
        super().check(config)
        if not re.fullmatch(r"anyres_max_[1-9]\d?", str(config.vision_aspect_ratio)):
            raise UnsupportedModelError(
                f"vision_aspect_ratio {config.vision_aspect_ratio!r} is not supported: expected "
                "anyres_max_ and a number of tiles, 1 to 99"
            )

    def image_program(self, folder: Path, config: PretrainedConfig) -> ImageProgram:
        check_told(folder, "num_image_tokens", math.prod(self.grid(config)))
        return super().image_program(folder, config)

    def most_tiles(self, config: PretrainedConfig) -> int | None:
        return int(str(config.vision_aspect_ratio).removeprefix("anyres_max_"))

    def video_program(self, folder: Path, config: PretrainedConfig) -> VideoProgram | None:
        def program(raw: dict[str, Any]) -> VideoProgram:
            return VideoProgram(
                sampling=sampling(raw),
                size=frame_size(raw),
                pixels=pixel_values(raw),
                pool=2,
                newline=True,
            )

        height, width = self.image_size(config)
        settings = {"size": {"height": height, "width": width}, "num_frames": 8}
        return read_video_program(folder, "LlavaOnevisionVideoProcessor", settings, program)

    def image_arguments(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        layouts: Sequence[PromptLayout],
        config: PretrainedConfig,
    ) -> dict[str, Any]:
        given = super().image_arguments(input_ids, pixel_values, layouts, config)
        counts = [len(layout.images) for layout in layouts if layout.images]
        return {**given, "batch_num_images": torch.tensor(counts)}
