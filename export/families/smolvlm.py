"""SmolVLM, SmolVLM2 and Idefics3: tiles with rows and columns in the prompt, and a Llama text model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import (
    Idefics3ForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
    SmolVLMForConditionalGeneration,
)

from edgeprune.errors import UnsupportedModelError
from edgeprune.exporter.families.base import Family, ModelParts, check_text_config
from edgeprune.exporter.image_processor import read_split_program
from edgeprune.exporter.model_files import check_told, special_tokens
from edgeprune.image_program import ImageProgram, ImageText
from edgeprune.layout import PromptLayout
from edgeprune.plans import TowerStage


class _SplitVision(nn.Module):
    """Tower and connector, called as their own forwards call them on tiles without padding."""

    # Parts of a model that Hugging Face's classes have no types for.
    tower: Any
    connector: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_model
        self.connector = model.connector
        self.positions = _positions(self.tower.embeddings)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        places = torch.tensor(self.positions, device=pixel_values.device)
        hidden = patches + embeddings.position_embedding(places)
        hidden = self.tower.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
        features: torch.Tensor = self.connector(self.tower.post_layernorm(hidden))
        return features.flatten(0, 1)


def _positions(embeddings: Any) -> list[int]:
    """The entries of the table of positions that a tile without padding reads, by the embeddings' own code.

    They follow from floats, which need not hit every entry once.
    """
    side = embeddings.image_size // embeddings.patch_size
    read: list[torch.Tensor] = []

    def table(places: torch.Tensor) -> int:
        read.append(places)
        return 0

    stub = SimpleNamespace(
        patch_size=1,
        num_patches_per_side=embeddings.num_patches_per_side,
        patch_embedding=lambda pixels: pixels,
        position_embedding=table,
    )
    whole = torch.ones(1, side, side, dtype=torch.bool)
    type(embeddings).forward(stub, torch.zeros(1, 1, side, side), whole)
    return [int(place) for place in read[0][0]]


class SmolVLM(Family):
    """See the module's description."""

    name = "smolvlm"
    architecture = "SmolVLMForConditionalGeneration"
    model_class: type[PreTrainedModel] = SmolVLMForConditionalGeneration
    image_processor = "SmolVLMImageProcessor"

    def check(self, config: PretrainedConfig) -> None:
        check_text_config(config.text_config, {"llama": "Llama"})
        size, patch, factor = self._sizes(config)
        if size % patch or size // patch % factor:
            raise UnsupportedModelError(
                f"a vision tower of {size} pixels in patches of {patch}, {factor} of them joined, is not "
                "supported: expected whole numbers of each"
            )

    def parts(self, model: PreTrainedModel, tower: Sequence[TowerStage] = ()) -> ModelParts:
        assert not tower  # `tower_layers` is 0
        whole: Any = model
        return ModelParts(
            vision=_SplitVision(whole.model),
            text_model=whole.model.text_model,
            lm_head=whole.lm_head,
            image_token_id=whole.config.image_token_id,
        )

    def tower_layers(self, config: PretrainedConfig) -> int:
        # The connector joins neighbours, so that a token merged away would leave a hole.
        return 0

    def image_program(self, folder: Path, config: PretrainedConfig) -> ImageProgram:
        size, patch, factor = self._sizes(config)
        side = size // patch // factor
        check_told(folder, "image_seq_len", side * side)
        named = special_tokens(folder)
        around = named.get("fake_image_token", "<fake_token_around_image>")
        whole = around + named.get("global_image_token", "<global-img>")
        text = ImageText(
            tile=around + "<row_{row}_col_{column}>",
            row_end="\n",
            thumbnail="\n" + whole,
            whole=whole,
            suffix=around,
        )
        return read_split_program(folder, self.image_processor, size, side, text)

    def image_arguments(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        layouts: Sequence[PromptLayout],
        config: PretrainedConfig,
    ) -> dict[str, Any]:
        return {"pixel_values": pixel_values.unflatten(0, (len(layouts), -1))}

    def _sizes(self, config: PretrainedConfig) -> tuple[int, int, int]:
        """Pixels of a tile and of a patch, and patches that are joined, each way."""
        vision = config.vision_config
        return int(vision.image_size), int(vision.patch_size), int(config.scale_factor)


class Idefics3(SmolVLM):
    """What SmolVLM is made after."""

    name = "idefics3"
    architecture = "Idefics3ForConditionalGeneration"
    model_class = Idefics3ForConditionalGeneration
    image_processor = "Idefics3ImageProcessor"
