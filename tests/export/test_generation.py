"""A checkpoint's own defaults for choosing tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeprune.errors import InputError
from edgeprune.exporter.generation import read_generation
from edgeprune.manifest import Generation


def folder(path: Path, **values: Any) -> Path:
    (path / "generation_config.json").write_text(json.dumps(values))
    return path


def test_without_a_file_it_is_what_transformers_takes(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    theirs = GenerationConfig._get_default_generation_params()
    found = read_generation(tmp_path)
    for name in ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size"):
        assert getattr(found, name) == theirs[name], name
    assert found.min_p == 0


def test_the_file_s_values_are_taken_and_null_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
        "min_p": 0.05,
        "repetition_penalty": 1.05,
        "no_repeat_ngram_size": 3,
    }
    others = {"eos_token_id": [1, 2], "max_length": 4096, "typical_p": 1.0, "suppress_tokens": None}
    assert read_generation(folder(tmp_path, **values, **others)) == Generation(**values)
    assert read_generation(folder(tmp_path, top_k=None, temperature=0)) == Generation()
    assert not caplog.messages


@pytest.mark.parametrize(
    ("outer", "text"),
    [
        ({"repetition_penalty": 1.3, "do_sample": True, "temperature": 0.2}, {}),
        ({}, {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "top_k": 7}),
        ({"repetition_penalty": 1.3, "top_k": None}, {"repetition_penalty": 1.2, "top_k": 7, "top_p": None}),
    ],
)
def test_without_a_file_the_config_s_values_are_taken_as_in_transformers(
    outer: dict[str, Any], text: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import GenerationConfig

    config = {**outer, "text_config": {"model_type": "llama", **text}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = GenerationConfig.from_model_config(config).to_dict()
    said = {name: theirs[name] for name in Generation.model_fields if theirs.get(name) is not None}
    assert len(said) > 1
    assert read_generation(tmp_path) == Generation(**said)
    assert read_generation(folder(tmp_path, eos_token_id=2)) == Generation()


def test_what_the_config_sets_and_is_not_supported_is_said_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_beams": 3, "text_config": {"max_time": 1.5}}))
    read_generation(tmp_path)
    assert "config.json sets num_beams, max_time, which is not supported" in caplog.text


def test_what_is_not_supported_is_said_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_generation(folder(tmp_path, num_beams=4, suppress_tokens=[5], typical_p=0.9, min_length=0))
    assert caplog.messages == [
        "generation_config.json sets num_beams, typical_p, suppress_tokens, which is not supported: replies "
        "are chosen without it, and may differ from those of Hugging Face's generate"
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": "hot", "do_sample": True}, "has temperature 'hot'"),
        (
            {"top_p": 1.5, "do_sample": True},
            r"has top_p 1.5 \(Input should be less than or equal to 1\): correct or remove it",
        ),
        ({"repetition_penalty": -1}, "has repetition_penalty -1"),
        ({"do_sample": [1]}, "has do_sample"),
        ({"temperature": 10**400, "do_sample": True}, r"has temperature 1000+\.\.\. \(Input should be"),
    ],
)
def test_a_value_out_of_range_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_generation(folder(tmp_path, **values))


def test_what_has_no_effect_is_not_judged(tmp_path: Path) -> None:
    """As transformers ignores it: values of drawing where nothing is drawn."""
    assert read_generation(folder(tmp_path, top_k=-1, top_p=0, temperature=0.7)) == Generation(
        temperature=0.7
    )
    with pytest.raises(InputError, match="has top_k -1"):
        read_generation(folder(tmp_path, top_k=-1, do_sample=True))
