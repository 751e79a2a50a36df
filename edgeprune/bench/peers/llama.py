"""The language part of a model's folder as a plain Llama, for programs that read text alone."""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.bench.peers.peer import in_words
from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.files import write_text
from edgeprune.json_file import read_json

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
# In front of the decoder's names, as several releases of transformers wrote them.
_PREFIX = re.compile(r"(?:model\.)?language_model\.(?:model\.)?|model\.(?=embed_tokens|layers|norm)")
_HEAD = re.compile(r"(?:language_model\.)?(lm_head\.weight)")
# What has to be as here, for others would compute something else.
_PLAIN = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}


@dataclass(frozen=True)
class Llama:
    """A decoder of Llama's architecture.

    Attributes:
        config: its own part of the model's config.
        files: of each tensor, by its name in a plain Llama, the file and the name there.
    """

    config: dict[str, Any]
    files: dict[str, tuple[Path, str]]

    @property
    def head_dim(self) -> int:
        config = self.config
        return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor."""
        from safetensors import safe_open

        path, stored = self.files[name]
        with safe_open(path, "numpy") as file:
            return tuple(file.get_slice(stored).get_shape())

    def tensors(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Every tensor by its name in a plain Llama, one at a time, as float32."""
        from safetensors import safe_open

        for name, (path, stored) in self.files.items():
            with safe_open(path, "numpy") as file:
                yield name, np.ascontiguousarray(file.get_tensor(stored), dtype=np.float32)


def read_llama(model: Path) -> Llama:
    """The decoder in a model's folder.

    Raises:
        UnsupportedModelError: it is not of Llama's architecture, or stored in a way that is not read here.
        InputError: the folder is not a model's.
    """
    from safetensors import SafetensorError, safe_open

    try:
        whole = read_json(model / "config.json")
        config = dict(whole["text_config"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{model} is not the folder of a vision-language model ({error!r:.200}): expected a config.json "
            "with a text_config; name the folder that the bundle was exported from as `model`"
        ) from error
    config.setdefault("tie_word_embeddings", whole.get("tie_word_embeddings", False))
    for name, expected in _PLAIN.items():
        found = config.get(name, expected)
        if found != expected:
            raise UnsupportedModelError(
                f"the text model's {name} is {in_words(found)}: expected {expected!r}, as Llama has it"
            )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default":
        raise UnsupportedModelError(f"its rotary embedding is scaled ({rope['rope_type']!r}): expected none")
    files: dict[str, tuple[Path, str]] = {}
    try:
        for path in sorted(model.glob("*.safetensors")):
            with safe_open(path, "numpy") as file:
                for stored in file.keys():  # noqa: SIM118 - it is no dictionary
                    if plain := _plain_name(stored):
                        kind = file.get_slice(stored).get_dtype()
                        if kind not in ("F32", "F16"):
                            raise UnsupportedModelError(f"its {stored} is {kind}: expected F32 or F16")
                        files[plain] = path, stored
    except SafetensorError as error:
        raise InputError(f"a file of weights in {model} cannot be read ({error}): copy it again") from error
    tied = bool(config["tie_word_embeddings"])
    wanted = {*_names(config["num_hidden_layers"]), *([] if tied else ["lm_head.weight"])}
    if missing := wanted - files.keys():
        raise UnsupportedModelError(f"its {min(missing)} was not found: expected a Llama's tensors")
    return Llama(config, {name: files[name] for name in sorted(wanted)})


def _plain_name(stored: str) -> str | None:
    if match := _HEAD.fullmatch(stored):
        return match.group(1)
    match = _PREFIX.match(stored)
    return None if match is None else f"model.{stored[match.end() :]}"


_OF_LAYER = (
    *(f"self_attn.{which}_proj" for which in "qkvo"),
    *(f"mlp.{which}_proj" for which in ("gate", "up", "down")),
    "input_layernorm",
    "post_attention_layernorm",
)


def _names(layers: int) -> Iterator[str]:
    yield from ("model.embed_tokens.weight", "model.norm.weight")
    for layer in range(layers):
        yield from (f"model.layers.{layer}.{part}.weight" for part in _OF_LAYER)


def write_llama(llama: Llama, model: Path, folder: Path) -> None:
    """Writes the decoder as a folder of its own, in Hugging Face's layout, in fp32.

    Args:
        llama: the decoder.
        model: the folder it is from, whose tokenizer is taken along.
        folder: to write.
    """
    folder.mkdir(parents=True)
    for name in _TOKENIZER_FILES:
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)
    ends = {name: llama.config.get(name) for name in ("bos_token_id", "eos_token_id")}
    config = {**llama.config, "architectures": ["LlamaForCausalLM"], "dtype": "float32", **ends}
    write_text(folder / "config.json", json.dumps(config))
    write_text(folder / "generation_config.json", json.dumps(ends))
    header: dict[str, Any] = {}
    end = 0
    for name in llama.files:
        begin, end = end, end + 4 * math.prod(llama.shape(name))
        header[name] = {"dtype": "F32", "shape": llama.shape(name), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, values in llama.tensors():
            file.write(values.tobytes())
