"""Model families that can be exported."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.export.families.base import Family, ModelParts, supported
from edgeprune.export.families.llava import Llava

FAMILIES: tuple[Family, ...] = (Llava(),)

__all__ = ["FAMILIES", "Family", "ModelParts", "family_of", "read_config", "supported"]


def read_config(folder: Path) -> PretrainedConfig:
    """The config of a local model folder.

    Raises:
        InputError: the folder has no config.json, or one that is not valid.
        UnsupportedModelError: transformers does not know the model type.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} is not a Hugging Face model folder: it has no config.json")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("it holds no JSON object")
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path} is not valid ({error}): download the model again") from error
    parts = [part for part in raw.values() if isinstance(part, dict) and "model_type" in part]
    for part in (raw, *parts):
        if (kind := part.get("model_type")) not in CONFIG_MAPPING:
            raise UnsupportedModelError(
                f"transformers knows no model_type {kind!r}, as {path} has it. {supported()}"
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
