"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images of any size, read as patches; positions on three axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)
from transformers.utils.constants import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from edgeprune.errors import UnsupportedModelError
from edgeprune.exporter.attention import SEGMENTS_NAME, Segments
from edgeprune.exporter.decoder import layer_windows
from edgeprune.exporter.families.base import Family, ModelParts, check_text_config, supported
from edgeprune.exporter.image_processor import pixel_bounds, pixel_values, read_patch_program
from edgeprune.exporter.model_files import special_tokens
from edgeprune.exporter.video_processor import (
    read_video_program,
    sampling,
)
from edgeprune.image_program import ImageProgram, PatchFeed, PatchTokens
from edgeprune.image_sizes import PixelBudget
from edgeprune.layout import PromptLayout
from edgeprune.plans import TowerStage
from edgeprune.positions import GridPositions, PositionRule
from edgeprune.video_program import FramesBudget, FrameText, VideoProgram
from edgeprune.vision_inputs import windows_of


class _PatchTower(nn.Module):
    """The tower's parts, called as its own forward calls them, on what `edgeprune.vision_inputs` computes."""

    # Parts of a model that Hugging Face's classes have no types for.
    tower: Any

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(
        self,
        pixel_values: torch.Tensor,
        patch_position: torch.Tensor,
        block_slots: torch.Tensor,
        block_place: torch.Tensor,
    ) -> torch.Tensor:
        blocks = Segments(block_slots, block_place, pixel_values.shape[1])
        hidden = self._embed(pixel_values)
        rotary = self.tower.rotary_pos_emb(hidden, patch_position.flatten(0, 1))
        for layer in self.tower.blocks:
            hidden = self._layer(layer, hidden, blocks, rotary)
        embeds: torch.Tensor = self.tower.merger(hidden)
        return embeds

    def _embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        # A convolution over one patch is a product, which every precision and every engine has.
        convolution = self.tower.patch_embed.proj
        return F.linear(pixel_values.flatten(0, 1), convolution.weight.flatten(1), convolution.bias)

    def _layer(self, layer: Any, hidden: torch.Tensor, segments: Segments, rotary: Any) -> torch.Tensor:
        with _segmented(self.tower.config):
            after: torch.Tensor = layer(hidden, cu_seqlens=segments, max_seqlen=1, position_embeddings=rotary)
        return after


class _WindowTower(_PatchTower):
    """Rows come window by window, so that nothing is sorted in the graph."""

    def forward(  # type: ignore[override]  # as the vision graph's inputs are
        self,
        pixel_values: torch.Tensor,
        patch_position: torch.Tensor,
        block_slots: torch.Tensor,
        block_place: torch.Tensor,
        window_slots: torch.Tensor,
        window_place: torch.Tensor,
        token_row: torch.Tensor,
    ) -> torch.Tensor:
        patches, whole = pixel_values.shape[1], self.tower.fullatt_block_indexes
        blocks = Segments(block_slots, block_place, patches)
        windows = Segments(window_slots, window_place, patches)
        hidden = self._embed(pixel_values)
        rotary = self.tower.rotary_pos_emb(hidden, patch_position.flatten(0, 1))
        for number, layer in enumerate(self.tower.blocks):
            hidden = self._layer(layer, hidden, blocks if number in whole else windows, rotary)
        embeds: torch.Tensor = self.tower.merger(hidden)[token_row]
        return embeds


class _DeepstackTower(_PatchTower):
    """Positions are interpolated from a table, and some layers' outputs go to the language model too."""

    def forward(  # type: ignore[override]  # as the vision graph's inputs are
        self,
        pixel_values: torch.Tensor,
        patch_position: torch.Tensor,
        block_slots: torch.Tensor,
        block_place: torch.Tensor,
        table_index: torch.Tensor,
        table_weight: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        blocks = Segments(block_slots, block_place, pixel_values.shape[1])
        hidden = self._embed(pixel_values)
        entries = self.tower.pos_embed(table_index.flatten(0, 1)) * table_weight.flatten(0, 1).unsqueeze(2)
        hidden = hidden + entries.sum(1).to(hidden.dtype)
        rotary = self.tower.rotary_pos_emb(hidden, patch_position.flatten(0, 1))
        levels, taken = [], list(self.tower.deepstack_visual_indexes)
        for number, layer in enumerate(self.tower.blocks):
            hidden = self._layer(layer, hidden, blocks, rotary)
            if number in taken:
                levels.append(self.tower.deepstack_merger_list[taken.index(number)](hidden))
        return (self.tower.merger(hidden), *levels)


@contextmanager
def _segmented(config: Any) -> Iterator[None]:
    """A tower's layers attend within segments. Its own forward, which is compared with, stays as it is."""
    before = config._attn_implementation
    config._attn_implementation = SEGMENTS_NAME
    try:
        yield
    finally:
        config._attn_implementation = before


class _Qwen(Family):
    """What the generations have in common."""

    text_model: str
    tower: type[_PatchTower] = _PatchTower

    def check(self, config: PretrainedConfig) -> None:
        vision, text = config.vision_config, config.text_config
        if vision.in_channels != 3:
            raise UnsupportedModelError(
                f"a vision tower of {vision.in_channels} channels is not supported: expected 3"
            )
        check_text_config(text, {self.text_model: self.name})
        if any(layer_windows(text)):
            raise UnsupportedModelError(
                f"the text model {text.model_type!r} has layers with windows, which is not supported here: "
                f"they count tokens, and this model's positions do not. {supported()}"
            )

    def parts(self, model: PreTrainedModel, tower: Sequence[TowerStage] = ()) -> ModelParts:
        assert not tower  # `tower_layers` is 0
        return ModelParts.of(model, self.tower(model.model.visual))

    def tower_layers(self, config: PretrainedConfig) -> int:
        # A merged token would leave a hole in the square of patches that becomes one visual token.
        return 0

    def positions(self, config: PretrainedConfig) -> PositionRule:
        return GridPositions()

    def image_program(self, folder: Path, config: PretrainedConfig) -> ImageProgram:
        feed = PatchFeed(
            size=config.vision_config.patch_size,
            frames=config.vision_config.temporal_patch_size,
            window=self.window(config),
            table=self.table(config),
        )
        return read_patch_program(folder, feed, PatchTokens(side=config.vision_config.spatial_merge_size))

    def video_program(self, folder: Path, config: PretrainedConfig) -> VideoProgram | None:
        frames = int(config.vision_config.temporal_patch_size)

        def program(raw: dict[str, Any]) -> VideoProgram:
            least, most = pixel_bounds(raw)
            return VideoProgram(
                sampling=sampling(raw, multiple=frames),
                size=PixelBudget(least=least, most=most),
                pixels=pixel_values(raw),
            )

        # Two frames a second, as the released code has it: transformers leaves that to whoever calls it.
        settings = {
            "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28},
            "fps": 2,
            "min_frames": 4,
        }
        return read_video_program(folder, "Qwen2VLVideoProcessor", settings, program)

    def window(self, config: PretrainedConfig) -> int | None:
        """Rows and columns of visual tokens of a window; None where every layer sees the whole image."""
        return None

    def table(self, config: PretrainedConfig) -> int | None:
        """Rows and columns of the learned table of positions; None where there is none."""
        return None

    def image_arguments(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        layouts: Sequence[PromptLayout],
        config: PretrainedConfig,
    ) -> dict[str, Any]:
        side, window = config.vision_config.spatial_merge_size, self.window(config)
        grids = [block.grid for layout in layouts for image in layout.images for block in image.blocks]
        first, rows = 0, []
        for grid in grids:
            order = torch.cat([torch.from_numpy(of_window) for of_window in windows_of(grid, window)])
            rows.append(first + order.argsort())
            first += len(order)
        return {
            "pixel_values": pixel_values[torch.cat(rows)].flatten(0, 1) if rows else None,
            "image_grid_thw": torch.tensor([[1, rows * side, columns * side] for rows, columns in grids]),
        }


class Qwen2VL(_Qwen):
    """Every layer of the tower sees the whole image."""

    name = "qwen2_vl"
    architecture = "Qwen2VLForConditionalGeneration"
    model_class = Qwen2VLForConditionalGeneration
    text_model = "qwen2_vl_text"


class Qwen25VL(_Qwen):
    """Most layers of the tower see windows; Cosmos-Reason1 is this."""

    name = "qwen2_5_vl"
    architecture = "Qwen2_5_VLForConditionalGeneration"
    model_class = Qwen2_5_VLForConditionalGeneration
    text_model = "qwen2_5_vl_text"
    tower = _WindowTower

    def positions(self, config: PretrainedConfig) -> PositionRule:
        return GridPositions(per_second=float(config.vision_config.tokens_per_second))

    def window(self, config: PretrainedConfig) -> int | None:
        vision = config.vision_config
        return int(vision.window_size // vision.spatial_merge_size // vision.patch_size)


class Qwen3VL(_Qwen):
    """Some of the tower's layers are added behind the first language layers; Cosmos-Reason2 is this."""

    name = "qwen3_vl"
    architecture = "Qwen3VLForConditionalGeneration"
    model_class = Qwen3VLForConditionalGeneration
    text_model = "qwen3_vl_text"
    tower = _DeepstackTower

    def video_program(self, folder: Path, config: PretrainedConfig) -> VideoProgram | None:
        frames, named = int(config.vision_config.temporal_patch_size), special_tokens(folder)
        start, end = (named.get(f"vision_{which}_token", f"<|vision_{which}|>") for which in ("start", "end"))

        def program(raw: dict[str, Any]) -> VideoProgram:
            least, most = pixel_bounds(raw)
            return VideoProgram(
                sampling=sampling(raw, ends=True),
                size=FramesBudget(least=least, most=most, multiple=frames),
                pixels=pixel_values(raw, mean=IMAGENET_STANDARD_MEAN, std=IMAGENET_STANDARD_STD),
                text=FrameText(prefix="<{seconds} seconds>" + start, suffix=end),
            )

        settings = {
            "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 768 * 32 * 32},
            "fps": 2,
            "min_frames": 4,
        }
        return read_video_program(folder, "Qwen3VLVideoProcessor", settings, program)

    def table(self, config: PretrainedConfig) -> int | None:
        return int(config.vision_config.num_position_embeddings**0.5)

    def deepstack(self, config: PretrainedConfig) -> int:
        return len(config.vision_config.deepstack_visual_indexes)
