"""Model families that can be exported."""

from __future__ import annotations

from pathlib import Path

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.exporter.families.base import Family, ModelParts, supported
from edgeprune.exporter.families.gemma import Gemma3
from edgeprune.exporter.families.internvl import InternVL
from edgeprune.exporter.families.llava import Llava
from edgeprune.exporter.families.llava_next import LlavaNext, LlavaOnevision
from edgeprune.exporter.families.qwen import Qwen2VL, Qwen3VL, Qwen25VL
from edgeprune.exporter.families.smolvlm import Idefics3, SmolVLM
from edgeprune.exporter.families.video_llava import VideoLlava
from edgeprune.exporter.precision.quantisers import read_quantization
from edgeprune.fields import shown
from edgeprune.json_file import read_json

FAMILIES: tuple[Family, ...] = (
    Llava(),
    LlavaNext(),
    LlavaOnevision(),
    InternVL(),
    SmolVLM(),
    Idefics3(),
    Qwen2VL(),
    Qwen25VL(),
    Qwen3VL(),
    Gemma3(),
    VideoLlava(),
)

__all__ = ["FAMILIES", "Family", "ModelParts", "family_of", "read_config", "supported"]


def read_config(folder: Path) -> PretrainedConfig:
    """The config of a local model folder.

    Raises:
        InputError: the folder has no config.json, or one that is not valid.
        UnsupportedModelError: transformers does not know the model type, or the weights are quantised in a
            form that no bundle holds.
    """
    _refuse_adapter(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} is not a Hugging Face model folder: it has no config.json")
    try:
        raw = read_json(path)
        if not isinstance(raw, dict):
            raise ValueError("it holds no JSON object")
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not valid ({error}): download the model again") from error
    read_quantization(folder, raw)
    parts = [part for part in raw.values() if isinstance(part, dict) and "model_type" in part]
    for part in (raw, *parts):
        if not isinstance(kind := part.get("model_type"), str) or kind not in CONFIG_MAPPING:
            if "auto_map" in raw:
                raise UnsupportedModelError(
                    f"{folder} has the model_type {shown(repr(kind))} and brings code of its own, "
                    "which is never run: convert it to Hugging Face's form, or take the checkpoint that is "
                    f"in it already, whose name often ends with 'hf'. {supported()}"
                )
            raise UnsupportedModelError(
                f"transformers knows no model_type {shown(repr(kind))}, as {path} has it. {supported()}"
            )
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # transformers has no one exception for a value that cannot be
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not valid ({reason}): download the model again") from error


def family_of(config: PretrainedConfig) -> Family:
    """The family of a config, which has been checked to be exportable.

    Raises:
        UnsupportedModelError: names what is not supported and lists what is.
    """
    architectures = config.architectures or []
    for family in FAMILIES:
        if family.architecture in architectures or (not architectures and family.name == config.model_type):
            family.check(config)
            return family
    named = ", ".join(architectures) or f"model_type {config.model_type!r}"
    raise UnsupportedModelError(f"the architecture {named} is not supported. {supported()}")


def _refuse_adapter(folder: Path) -> None:
    """Where peft is installed, transformers would load an adapter on top of what else is in the folder."""
    for name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).exists():
            raise UnsupportedModelError(
                f"{folder} holds an adapter (LoRA or another of PEFT's, by its {name}), not a whole model: "
                "merge the adapter first, with merge_and_unload() and save_pretrained(), and export that"
            )
