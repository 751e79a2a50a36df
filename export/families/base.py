"""What the exporter needs to know of a model family. A new family is one new file beside this one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from edgeprune.errors import UnsupportedModelError
from edgeprune.exporter.precision.quantisers import find_quantization
from edgeprune.exporter.precision.stored import fill
from edgeprune.image_program import ImageProgram
from edgeprune.json_file import read_json
from edgeprune.layout import PromptLayout
from edgeprune.plans import TowerStage
from edgeprune.positions import PositionRule, SequentialPositions
from edgeprune.video_program import VideoProgram

# Text models whose decoder layers were checked against Hugging Face's generate, by their config's model_type.
TEXT_MODELS = {
    "llama": "Llama, Vicuna",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma": "Gemma",
    "phi3": "Phi-3",
}


@dataclass(frozen=True)
class ModelParts:
    """The pieces of a built model.

    Attributes:
        vision: pixel_values [tiles, 3, H, W] -> visual_embeds [V, D], packed over the tiles; where the tower
            merges tokens, also each token's place in its tile's grid, int64 [tiles, tokens left], ascending,
            and the scores of every merging stage, float32 [tiles, tokens that reach it]; scores to merge by
            instead may be given as a second argument.
        text_model: the decoder without head.
        lm_head: hidden states -> logits.
        image_token_id: the placeholder of one visual token in input_ids.
        two_way: whether the visual tokens of an image see each other whatever their order.
    """

    vision: nn.Module
    text_model: nn.Module
    lm_head: nn.Module
    image_token_id: int
    two_way: bool = False

    @classmethod
    def of(cls, model: Any, vision: nn.Module, two_way: bool = False) -> ModelParts:
        """Of a model whose decoder and head have their usual names."""
        return cls(
            vision=vision,
            text_model=model.model.language_model,
            lm_head=model.lm_head,
            image_token_id=model.config.image_token_id,
            two_way=two_way,
        )


class Family(ABC):
    """One architecture of vision-language models."""

    name: str
    architecture: str
    model_class: type[PreTrainedModel]

    @abstractmethod
    def check(self, config: PretrainedConfig) -> None:
        """Raises UnsupportedModelError, by name, for what this family cannot export faithfully."""

    @abstractmethod
    def parts(self, model: PreTrainedModel, tower: Sequence[TowerStage] = ()) -> ModelParts:
        """Takes a built model apart; its vision tower merges tokens at these stages."""

    @abstractmethod
    def tower_layers(self, config: PretrainedConfig) -> int:
        """Layers of the vision tower in front of the visual tokens; 0 where these come from several."""

    def tower_attention(self, model: PreTrainedModel, pixel_values: torch.Tensor, layer: int) -> torch.Tensor:
        """The vision tower's own attention to the image's places, [N, heads, rows, places]; asked for only
        where a stage merges in it.
        """
        raise AssertionError("no stage merges in this tower")

    @abstractmethod
    def image_program(self, folder: Path, config: PretrainedConfig) -> ImageProgram:
        """How an image becomes the vision graph's input and visual tokens.

        Raises:
            InputError: the processor's files are missing or not valid.
            UnsupportedModelError: a class or a setting that cannot be reproduced exactly.
        """

    def video_program(self, folder: Path, config: PretrainedConfig) -> VideoProgram | None:
        """How a video becomes the vision graph's input and visual tokens; None where the model takes none.

        Raises:
            InputError, UnsupportedModelError: as `image_program`.
        """
        return None

    def positions(self, config: PretrainedConfig) -> PositionRule:
        """Which position each token of a prompt has."""
        return SequentialPositions()

    def deepstack(self, config: PretrainedConfig) -> int:
        """Behind how many of the first language layers outputs of the vision tower are added."""
        return 0

    def image_place(self, folder: Path) -> str | None:
        """What stands in a chat template where an image goes; None for the image token itself."""
        return None

    def image_arguments(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        layouts: Sequence[PromptLayout],
        config: PretrainedConfig,
    ) -> dict[str, Any]:
        """What Hugging Face's own forward takes for the images of a batch.

        Args:
            input_ids: int64 [B, S].
            pixel_values: of all images, as the vision graph reads them, in the model's dtype.
            layouts: of each prompt of the batch.
            config: of the model.
        """
        return {"pixel_values": pixel_values}

    def build(self, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
        """The model with unset weights, in its final dtype, in eval mode."""
        # SigLIP's initialisation reads values, which tensors without memory do not have.
        with patch.object(PreTrainedModel, "initialize_weights", lambda _: None):
            return self.model_class._from_config(config, dtype=dtype, attn_implementation="eager").eval()

    def load(self, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
        """The model with its weights, as Hugging Face's own code loads and runs it, in eval mode.

        Of a quantised checkpoint the weights that it stands for, without the quantiser's library.
        """
        if find_quantization(folder, read_json(folder / "config.json")) is not None:
            model = self.build(AutoConfig.from_pretrained(folder), dtype)
            fill(model, folder)
            return model
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            return self.model_class.from_pretrained(
                folder, dtype=dtype, attn_implementation="eager", local_files_only=True
            ).eval()
        finally:
            if shown:
                logging.enable_progress_bar()


def supported() -> str:
    """One sentence with everything that can be exported."""
    from edgeprune.exporter.families import FAMILIES

    architectures = ", ".join(sorted(family.architecture for family in FAMILIES))
    texts = ", ".join(TEXT_MODELS.values())
    return f"Supported: {architectures}; text models of LlavaForConditionalGeneration are {texts}."


def check_text_config(config: Any, kinds: Mapping[str, str] = TEXT_MODELS) -> None:
    """Refuses text models, or features of theirs, that the pruned decoder does not reproduce.

    Args:
        config: of the text model.
        kinds: the model types that the family takes, with their names.

    Raises:
        UnsupportedModelError: names the model type or the feature, and lists what works.
    """
    kind = config.model_type
    if kind not in kinds:
        raise UnsupportedModelError(f"the text model {kind!r} is not supported. {supported()}")
    types = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if types:
        raise UnsupportedModelError(
            f"the text model {kind!r} has layers of {', '.join(sorted(types))}, which are not supported. "
            f"{supported()}"
        )
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if slides and getattr(config, "sliding_window", None) is None:
        raise UnsupportedModelError(
            f"the text model {kind!r} has layers of sliding_attention and no sliding_window: expected the "
            "size of their window; correct config.json"
        )
    for feature in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, feature, None):
            raise UnsupportedModelError(
                f"the text model {kind!r} uses {feature}, which is not supported. {supported()}"
            )
    ropes = getattr(config, "rope_parameters", None) or {}
    # Some models have others for layers with windows.
    for rope in (ropes,) if "rope_type" in ropes or not ropes else ropes.values():
        rope_type = rope.get("rope_type", "default")
        if rope_type not in ("default", "linear", "llama3"):
            # "dynamic" and "longrope" choose their frequencies by the length met at run time.
            raise UnsupportedModelError(
                f"the text model {kind!r} uses {rope_type!r} rotary scaling, which is not supported. "
                f"{supported()}"
            )
