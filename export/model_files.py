"""The JSON files of a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeprune import json_file
from edgeprune.errors import InputError, UnsupportedModelError


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no such file.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    if not path.is_file():
        return None
    try:
        raw = json_file.read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): copy it again") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path} holds {type(raw).__name__}: expected a JSON object; copy it again")
    return raw


def check_told(folder: Path, key: str, tokens: int) -> None:
    """Refuses a processor_config.json that tells another number of visual tokens than config.json makes.

    Args:
        folder: the model, in Hugging Face's layout.
        key: of the number, where the file has it.
        tokens: of a tile.

    Raises:
        InputError: the file is not valid.
        UnsupportedModelError: the numbers differ.
    """
    told = (read_json(folder / "processor_config.json") or {}).get(key, tokens)
    if told != tokens:
        raise UnsupportedModelError(
            f"{key} {told!r} in processor_config.json is not the {tokens} visual tokens that config.json "
            "makes of a tile: correct one of them"
        )


def special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that a model's tokenizer_config.json gives names to, in either of its forms."""
    names = read_json(folder / "tokenizer_config.json") or {}
    extra = names.get("extra_special_tokens")
    named = {**names, **(extra if isinstance(extra, dict) else {})}
    return {name: token for name, token in named.items() if isinstance(token, str)}
