"""A model's image processor and tokenizer, as the bundle's image program and prompt.

What the runtime cannot reproduce exactly is refused here by name, never approximated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils.constants import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from edgeprune import json_file
from edgeprune.debias.masks import PaddingMask
from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.fields import first_fault, shown
from edgeprune.files import read_regular
from edgeprune.image_program import (
    GridTokens,
    ImageProgram,
    Letterbox,
    PixelValues,
    Stretch,
    TileFeed,
)
from edgeprune.image_sizes import FixedSize, ShortestEdge, SizeStep
from edgeprune.manifest import Prompt
from edgeprune.plans import method_by_name

TOKENIZER_NAME = "tokenizer.json"
CHAT_TEMPLATE_NAME = "chat_template.jinja"

_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class _Defaults:
    """What an image processor class does where its JSON says nothing; null there means none, or no."""

    size: dict[str, int]
    crop_size: dict[str, int] | None
    mean: Sequence[float]
    std: Sequence[float]
    # LLaVA's own class letterboxes before it resizes; elsewhere do_pad means something else.
    can_letterbox: bool = False


_CLIP_CROP = {"height": 224, "width": 224}
_SUPPORTED = {
    "CLIPImageProcessor": _Defaults({"shortest_edge": 224}, _CLIP_CROP, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "LlavaImageProcessor": _Defaults(
        {"shortest_edge": 224}, _CLIP_CROP, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, can_letterbox=True
    ),
    "SiglipImageProcessor": _Defaults(
        {"height": 224, "width": 224}, None, IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD
    ),
}
_WHAT_WORKS = (
    f"Supported: {', '.join(_SUPPORTED)}, with a fixed output size; resampling "
    f"{', '.join(_RESAMPLING.values())}; padding to a square by LlavaImageProcessor"
)


def read_image_program(folder: Path, image_size: tuple[int, int], grid: tuple[int, int]) -> ImageProgram:
    """The image program of a model folder, from processor_config.json or preprocessor_config.json.

    Args:
        folder: the model, in Hugging Face's layout.
        image_size: (height, width) of the vision tower's input.
        grid: (rows, cols) of visual tokens of an image.

    Raises:
        InputError: there is no such file, or it is not valid.
        UnsupportedModelError: a class or a setting that cannot be reproduced exactly.
    """
    raw = _image_processor_json(folder)
    name = _class_name(raw)
    if name not in _SUPPORTED:
        raise UnsupportedModelError(f"the image processor {name} is not supported. {_WHAT_WORKS}")
    defaults = _SUPPORTED[name]
    pads = bool(raw.get("do_pad", False))
    if pads and not defaults.can_letterbox:
        raise _unsupported(f"do_pad of {name}")
    resizes, rescales, normalizes = (
        bool(raw.get(f"do_{step}", True)) for step in ("resize", "rescale", "normalize")
    )
    crops = bool(raw.get("do_center_crop", defaults.crop_size is not None))
    resample = raw.get("resample", 3)
    if resizes and not (isinstance(resample, int) and resample in _RESAMPLING):
        raise _unsupported(f"resample {resample!r}")
    size = raw.get("size", defaults.size)
    if isinstance(size, int):
        # A bare number is the shortest edge, unless the file says that it stands for a square.
        square = raw.get("default_to_square", False)
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    by_edge = isinstance(size, dict) and set(size) == {"shortest_edge"}
    mean = raw.get("image_mean", defaults.mean)
    sizes: tuple[SizeStep, ...] = ()
    if resizes and by_edge:
        sizes = (ShortestEdge(edge=_positive("size", size["shortest_edge"])),)
    elif resizes:
        high, wide = _height_width("size", size)
        sizes = (FixedSize(height=high, width=wide),)
    color = _pad_color(mean) if pads and mean is not None else (0, 0, 0)
    pixels = PixelValues(
        resample=resample if resizes else 3,
        rescale_factor=_number("rescale_factor", raw.get("rescale_factor", 1 / 255)) if rescales else None,
        mean=_channels("image_mean", mean) if normalizes else None,
        std=_std(raw.get("image_std", defaults.std)) if normalizes else None,
    )
    try:
        return ImageProgram(
            fit=Letterbox(color=color) if pads else Stretch(),
            sizes=sizes,
            crop=_height_width("crop_size", raw.get("crop_size", defaults.crop_size)) if crops else None,
            pixels=pixels,
            feed=TileFeed(height=image_size[0], width=image_size[1]),
            tokens=GridTokens(rows=grid[0], columns=grid[1]),
        )
    except ValidationError as error:
        raise UnsupportedModelError(f"the image processor's {first_fault(error)}. {_WHAT_WORKS}") from error


def read_prompt(folder: Path, config: PretrainedConfig, into: Path) -> Prompt:
    """Writes the tokenizer and the chat template into a bundle, and describes them.

    The tokenizer is written as transformers loads it, which adds what tokenizer_config.json says to what
    tokenizer.json says.

    Args:
        folder: the model, in Hugging Face's layout.
        config: the model's config, with `image_token_id`.
        into: the bundle being written.

    Raises:
        InputError: the folder has no tokenizer.json, or it or a file beside it is not valid; the image
            token of processor and config differ; there is no end-of-sequence token.
        UnsupportedModelError: the vocabulary or the tokenizer has no token of the config's image_token_id.
    """
    tokenizer = _load_tokenizer(folder)
    processor = read_json(folder / "processor_config.json") or {}
    image_token_id, vocabulary = int(config.image_token_id), int(config.get_text_config().vocab_size)
    image_token = _image_token(tokenizer, image_token_id, vocabulary, processor, folder)
    template = _chat_template(folder, processor, tokenizer)
    bos, eos = _text(tokenizer.bos_token), _text(tokenizer.eos_token)
    eos_ids, pad_id = _eos_and_pad(folder, config, tokenizer)
    # Its own save() would hide a full disk's OSError in a plain Exception.
    (into / TOKENIZER_NAME).write_text(tokenizer.backend_tokenizer.to_str(pretty=True), encoding="utf-8")
    if template is not None:
        (into / CHAT_TEMPLATE_NAME).write_text(template, encoding="utf-8")
    return Prompt(
        tokenizer=TOKENIZER_NAME,
        chat_template=CHAT_TEMPLATE_NAME if template is not None else None,
        image_token=image_token,
        image_token_id=image_token_id,
        pad_token_id=pad_id,
        bos_token=bos,
        eos_token=eos,
        eos_token_ids=eos_ids,
        template_variables=_template_variables(template, tokenizer),
    )


def padding_mask_for(program: ImageProgram, method: str) -> PaddingMask:
    """How a method's padding mask is made; none where images are not letterboxed."""
    return method_by_name(method).padding_mask if program.letterboxes else PaddingMask(kind="none")


def _image_processor_json(folder: Path) -> dict[str, Any]:
    # The newer file first, as transformers does; older ones of that name hold no image processor.
    nested = (read_json(folder / "processor_config.json") or {}).get("image_processor")
    raw = nested if isinstance(nested, dict) else read_json(folder / "preprocessor_config.json")
    if raw is None:
        raise InputError(
            f"{folder} has no preprocessor_config.json, nor a processor_config.json with an image processor: "
            "expected a complete model folder; copy the missing file"
        )
    return raw


def _class_name(raw: dict[str, Any]) -> str:
    """The class without the suffix of its variant; all variants are to compute the same."""
    name = raw.get("image_processor_type")
    if name is None:
        old = str(raw.get("feature_extractor_type", "of no name"))
        name = old.replace("FeatureExtractor", "ImageProcessor")
    return str(name).removesuffix("Fast").removesuffix("Pil")


def _unsupported(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"the image processor's {what} is not supported. {_WHAT_WORKS}")


def _positive(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _unsupported(f"{key} {value!r}")
    return value


def _height_width(key: str, value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        value = (value, value)
    if isinstance(value, dict) and set(value) == {"height", "width"}:
        value = (value["height"], value["width"])
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise _unsupported(f"{key} {value!r}")
    return _positive(key, value[0]), _positive(key, value[1])


def _channels(key: str, value: Any) -> tuple[float, float, float]:
    numbers = [value] * 3 if isinstance(value, (int, float)) else value
    if not isinstance(numbers, (list, tuple)) or len(numbers) != 3:
        raise _unsupported(f"{key} {value!r}")
    return _number(key, numbers[0]), _number(key, numbers[1]), _number(key, numbers[2])


def _number(key: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _unsupported(f"{key} {value!r}")
    return float(value)


def _std(value: Any) -> tuple[float, float, float]:
    std = _channels("image_std", value)
    if 0 in std:
        raise _unsupported(f"image_std {value!r}")
    return std


def _pad_color(mean: Any) -> tuple[int, int, int]:
    # Cut, not rounded: int(0.48145466 * 255) is 122.
    red, green, blue = (int(channel * 255) for channel in _channels("image_mean", mean))
    if not all(0 <= channel <= 255 for channel in (red, green, blue)):
        raise _unsupported(f"image_mean {mean} as the colour of the padding")
    return red, green, blue


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    if not (folder / TOKENIZER_NAME).is_file():
        raise InputError(
            f"{folder} has no {TOKENIZER_NAME}: expected a fast tokenizer; make one with "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise many kinds
        raise InputError(f"the tokenizer in {folder} cannot be read ({error}): copy it again") from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UnsupportedModelError(
            f"the tokenizer {type(tokenizer).__name__} is not supported: expected one that runs on "
            f"{TOKENIZER_NAME}; export a model that has one"
        )
    return tokenizer


def _image_token(
    tokenizer: PreTrainedTokenizerBase,
    image_token_id: int,
    vocabulary: int,
    processor: dict[str, Any],
    folder: Path,
) -> str:
    if not 0 <= image_token_id < vocabulary:
        raise UnsupportedModelError(
            f"the config's image_token_id (or image_token_index) {image_token_id} is beyond the text model's "
            f"vocabulary of {vocabulary} tokens (vocab_size), so that no prompt can hold it: expected a "
            "token of its own; correct config.json, or resize the model's embeddings"
        )
    token = tokenizer.backend_tokenizer.id_to_token(image_token_id)
    if token is None or tokenizer.encode(token, add_special_tokens=False) != [image_token_id]:
        raise UnsupportedModelError(
            f"the config's image_token_id {image_token_id} is {token!r} to the tokenizer in {folder}: "
            "expected a token of its own; add it to the tokenizer"
        )
    named = processor.get("image_token")
    if named is not None and named != token:
        raise InputError(
            f"{folder / 'processor_config.json'} names the image token {named!r}, but the config's "
            f"image_token_id {image_token_id} is {token!r}: expected the same; correct one of them"
        )
    return str(token)


def _chat_template(folder: Path, processor: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The default template, from the places and in the order that transformers' processors look."""
    jinja = folder / CHAT_TEMPLATE_NAME
    candidates = (
        processor.get("chat_template"),
        (read_json(folder / "chat_template.json") or {}).get("chat_template"),
        _text_of(jinja) if jinja.is_file() else None,
        tokenizer.chat_template,
    )
    for template in candidates:
        found = template.get("default") if isinstance(template, dict) else template
        if found:
            return str(found)
    return None


def _template_variables(template: str | None, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Special tokens that a template reads by name, besides BOS and EOS, which every prompt has."""
    return {
        name: str(token)
        for name, token in tokenizer.special_tokens_map.items()
        if name not in ("bos_token", "eos_token") and re.search(rf"\b{re.escape(name)}\b", template or "")
    }


def _eos_and_pad(
    folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[tuple[int, ...], int]:
    """The ids that end a reply, as generate finds them, and the id that fills the shorter rows of a batch."""
    generation = read_json(folder / "generation_config.json") or {}
    text = config.get_text_config()
    configs = [getattr(part, "eos_token_id", None) for part in (config, text)]
    places = (generation.get("eos_token_id"), *configs, tokenizer.eos_token_id)
    eos = next((value for value in places if value is not None), None)
    if eos is None:
        raise InputError(
            f"neither generation_config.json, config.json nor the tokenizer in {folder} names an "
            "eos_token_id, so that a reply would never end: add it to generation_config.json"
        )
    ids = _token_ids("eos_token_id", eos, folder)
    for token in ids:
        if not 0 <= token < text.vocab_size:
            raise InputError(
                f"the model in {folder} names the eos_token_id {token}, beyond its text model's vocabulary "
                f"of {text.vocab_size} tokens, so that it could never end a reply: correct "
                "generation_config.json (or config.json, where that names none)"
            )
    # Some text configs carry a default that their vocabulary does not have; a padded row is embedded, too.
    pads = (generation.get("pad_token_id"), tokenizer.pad_token_id, getattr(config, "pad_token_id", None))
    found = (_token_ids("pad_token_id", pad, folder)[0] for pad in pads if pad is not None)
    return ids, next((pad for pad in found if 0 <= pad < text.vocab_size), ids[0])


def _token_ids(name: str, value: Any, folder: Path) -> tuple[int, ...]:
    """The ids that a setting names, each once."""
    ids = value if isinstance(value, (list, tuple)) else [value]
    if not ids or not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise InputError(
            f"the model in {folder} has the {name} {shown(repr(value))}: expected a token's id, a whole "
            "number, or a list of them; correct generation_config.json (or config.json, where that has none)"
        )
    return tuple(dict.fromkeys(ids))


def _text(token: Any) -> str | None:
    return None if token is None else str(token)


def _text_of(path: Path) -> str:
    try:
        return read_regular(path, "the chat template").decode("utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): copy it again") from error


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
