"""A model's tokenizer and chat template, as the bundle's prompt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.exporter.model_files import read_json
from edgeprune.fields import shown
from edgeprune.files import read_regular
from edgeprune.log import note
from edgeprune.manifest import Prompt

TOKENIZER_NAME = "tokenizer.json"
CHAT_TEMPLATE_NAME = "chat_template.jinja"


def read_prompt(
    folder: Path,
    config: PretrainedConfig,
    into: Path,
    image_place: str | None = None,
    videos: bool = False,
) -> Prompt:
    """Writes the tokenizer and the chat template into a bundle, and describes them.

    The tokenizer is written as transformers loads it, which adds what tokenizer_config.json says to what
    tokenizer.json says.

    Args:
        folder: the model, in Hugging Face's layout.
        config: the model's config, with `image_token_id`.
        into: the bundle being written.
        image_place: what stands in the chat template where an image goes; None for the image token.
        videos: whether the config's video token is a video's place; where there is none, a note says so.

    Raises:
        InputError: the folder has no tokenizer.json, or it or a file beside it is not valid; the image
            token of processor and config differ; there is no end-of-sequence token.
        UnsupportedModelError: the vocabulary or the tokenizer has no token of the config's image_token_id.
    """
    tokenizer = _load_tokenizer(folder)
    processor = read_json(folder / "processor_config.json") or {}
    image_token_id, vocabulary = int(config.image_token_id), int(config.get_text_config().vocab_size)
    image_token = _place_token("image", tokenizer, image_token_id, vocabulary, processor, folder)
    video_place = None
    if videos:
        try:
            token = int(config.video_token_id)
            video_place = _place_token("video", tokenizer, token, vocabulary, processor, folder)
        except UnsupportedModelError as error:
            note(f"the bundle will take no videos: {error}")
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
        image_place=image_place,
        video_place=video_place,
        pad_token_id=pad_id,
        bos_token=bos,
        eos_token=eos,
        eos_token_ids=eos_ids,
        template_variables=_template_variables(template, tokenizer),
    )


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


def _place_token(
    kind: str,
    tokenizer: PreTrainedTokenizerBase,
    token_id: int,
    vocabulary: int,
    processor: dict[str, Any],
    folder: Path,
) -> str:
    """The text of the token that stands for an image, or for a video."""
    if not 0 <= token_id < vocabulary:
        raise UnsupportedModelError(
            f"the config's {kind}_token_id (or {kind}_token_index) {token_id} is beyond the text model's "
            f"vocabulary of {vocabulary} tokens (vocab_size), so that no prompt can hold it: expected a "
            "token of its own; correct config.json, or resize the model's embeddings"
        )
    token = tokenizer.backend_tokenizer.id_to_token(token_id)
    if token is None or tokenizer.encode(token, add_special_tokens=False) != [token_id]:
        raise UnsupportedModelError(
            f"the config's {kind}_token_id {token_id} is {token!r} to the tokenizer in {folder}: "
            "expected a token of its own; add it to the tokenizer"
        )
    named = processor.get(f"{kind}_token")
    if named is not None and named != token:
        raise InputError(
            f"{folder / 'processor_config.json'} names the {kind} token {named!r}, but the config's "
            f"{kind}_token_id {token_id} is {token!r}: expected the same; correct one of them"
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
