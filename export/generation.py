"""A checkpoint's own way to choose tokens, from where `generate` would take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgeprune.errors import InputError
from edgeprune.exporter.model_files import read_json
from edgeprune.fields import shown
from edgeprune.log import note
from edgeprune.manifest import OF_DRAWING, Generation

NAME = "generation_config.json"

# What cannot be followed, with the values that do nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "diversity_penalty": (0,),
    "typical_p": (1,),
    "top_h": (),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "penalty_alpha": (0,),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "bad_words_ids": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "exponential_decay_length_penalty": (),
    "sequence_bias": ([], {}),
    "guidance_scale": (1,),
    "stop_strings": ([],),
    "watermarking_config": (),
    "renormalize_logits": (False,),
    "remove_invalid_values": (False,),
    "dola_layers": (),
    "constraints": ([],),
    "force_words_ids": ([],),
    "token_healing": (False,),
    "max_time": (),
}


def read_generation(folder: Path) -> Generation:
    """The defaults of a model folder; those of transformers where it has none. Notes what is not supported.

    Raises:
        InputError: a file is not valid, or a value is out of range.
    """
    raw, file = _values(folder)
    acting = [name for name, neutral in _NEUTRAL.items() if name in raw and raw[name] not in neutral]
    if acting:
        note(
            f"{file} sets {', '.join(acting)}, which is not supported: replies are chosen without it, and "
            "may differ from those of Hugging Face's generate"
        )
    known = {name: raw[name] for name in Generation.model_fields if name in raw}
    if known.get("temperature") == 0:  # as some checkpoints say that they take the likeliest token
        known |= {"temperature": 1.0, "do_sample": False}
    if not known.get("do_sample"):
        # Of no effect, whatever they are; they become one where somebody asks to draw.
        known = {
            name: value for name, value in known.items() if name not in OF_DRAWING or _is_valid(name, value)
        }
    try:
        return Generation.model_validate(known)
    except ValidationError as error:
        fault = error.errors()[0]
        name = fault["loc"][0] if fault["loc"] else "its values"
        raise InputError(
            f"{folder / file} has {name} {shown(repr(known.get(str(name))))} ({fault['msg']}): correct or "
            "remove it"
        ) from error


def _is_valid(name: str, value: Any) -> bool:
    try:
        Generation.model_validate({name: value})
    except ValidationError:
        return False
    return True


def _values(folder: Path) -> tuple[dict[str, Any], str]:
    """What is set (null is not), and the file that sets it.

    Without a generation_config.json it is the config's, as in checkpoints from before that file was, and of
    its parts the outer one before the text model's.
    """
    raw, file = read_json(folder / NAME), NAME
    if raw is None:
        file = "config.json"
        outer = read_json(folder / file) or {}
        text = outer.get("text_config")
        raw = {**(text if isinstance(text, dict) else {}), **_set(outer)}
    return _set(raw), file


def _set(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
