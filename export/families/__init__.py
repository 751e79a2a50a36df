"""Model families that can be exported."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.export.families.base import Family, ModelParts, supported
from edgeprune.export.families.llava import Llava

FAMILIES: tuple[Family, ...] = (Llava(),)

__all__ = ["FAMILIES", "Family", "ModelParts", "family_of", "read_config", "supported"]


def read_config(folder: Path) -> PretrainedConfig:
    """The config of a local model folder.

    Raises:
        InputError: the folder has no readable config.json.
        UnsupportedModelError: transformers does not know the model type.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a Hugging Face model folder: it has no config.json")
    try:
        return AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError) as error:
        kind, _ = PretrainedConfig.get_config_dict(folder)
        raise UnsupportedModelError(
            f"transformers cannot read the config of {folder} (model_type {kind.get('model_type')!r}). "
            f"{supported()}"
        ) from error
    except OSError as error:
        raise InputError(f"{folder / 'config.json'} is not valid JSON: {error}") from error


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
