"""SmolVLM and Idefics3: tiles between text, against Hugging Face's generate and an independent loop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from edgeprune.errors import UnsupportedModelError
from edgeprune.exporter.families import family_of, read_config
from tests.export.families import Image, Pair, Seen, asked, check_half_precision, noise
from tests.tiny import save_smolvlm

pytestmark = pytest.mark.usefixtures("width_first")

# (width, height): the longer edge becomes three tiles, the other one one, two and three.
WIDE, TALL, SQUARE = (90, 20), (31, 60), (30, 30)
CASES = {
    "three tiles": [WIDE],
    "six tiles": [TALL],
    "nine tiles": [SQUARE],
    "two of different size": [TALL, WIDE],
    "text only": [],
}


def pair_of(folder: Path, kind: str) -> Pair:
    model = save_smolvlm(folder / kind, kind)
    processors = {"smolvlm": SmolVLMImageProcessorPil, "idefics3": Idefics3ImageProcessorPil}
    processor = processors[kind].from_pretrained(model)

    def see(images: Sequence[Image]) -> Seen:
        found = processor([list(images)], return_row_col_info=True, return_tensors="pt")
        texts = [
            get_image_prompt_string(rows, columns, 9, "<fake_token_around_image>", "<image>", "<global-img>")
            for rows, columns in zip(found["rows"][0], found["cols"][0], strict=True)
        ]
        return Seen(found["pixel_values"], texts, {"pixel_attention_mask": found["pixel_attention_mask"]})

    return Pair(model, see)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair_of(tmp_path_factory.mktemp("smolvlm"), "smolvlm")


@pytest.mark.parametrize("name", CASES)
def test_unpruned_it_answers_as_hugging_face(pair: Pair, name: str) -> None:
    images = [noise(size) for size in CASES[name]]
    pair.check_unpruned(asked("what colour is the big star ?", len(images)), images)


@pytest.mark.parametrize("name", [name for name, sizes in CASES.items() if sizes])
def test_pruned_it_keeps_and_answers_as_the_independent_loop(pair: Pair, name: str) -> None:
    images = [noise(size) for size in CASES[name]]
    pair.check_pruned(asked("is the star small ?", len(images)), images)


def test_a_conversation_answers_as_hugging_face(pair: Pair) -> None:
    answered = {"role": "assistant", "content": [{"type": "text", "text": "the big box ."}]}
    messages = [*asked("what is the star ?", 1), answered, *asked("is the box small ?", 1)]
    pair.check_unpruned(messages, [noise(WIDE), noise(TALL)])


def test_a_batch_answers_as_one_by_one(pair: Pair) -> None:
    pair.check_batch([[noise(size) for size in sizes] for sizes in CASES.values()], "what is the box ?")


@pytest.mark.slow
def test_idefics3(tmp_path: Path) -> None:
    other = pair_of(tmp_path, "idefics3")
    images = [noise(size) for size in CASES["two of different size"]]
    other.check_unpruned(asked("is the star small ?", 2), images)
    other.check_pruned(asked("is the star small ?", 2), images)


@pytest.mark.slow
def test_every_command_takes_it(pair: Pair, tmp_path: Path) -> None:
    pair.check_commands(tmp_path, noise(WIDE))
    pair.check_comparison(tmp_path, noise(WIDE))


@pytest.mark.slow
def test_half_precision(pair: Pair, tmp_path: Path) -> None:
    check_half_precision(pair.folder, tmp_path)


@pytest.mark.slow
def test_long_replies(pair: Pair) -> None:
    pair.check_long_replies()


@pytest.mark.slow
def test_engines_build(pair: Pair) -> None:
    pair.check_engines()


def test_without_splitting_an_image_is_one_tile(tmp_path: Path) -> None:
    folder = save_smolvlm(tmp_path / "model", do_image_splitting=False)
    config = read_config(folder)
    program = family_of(config).image_program(folder, config)
    assert (program.cut, program.fixed_tokens) == (None, 9)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"scale_factor": 4}, "24 pixels in patches of 4, 4 of them joined, is not supported"),
        ("processor_config.json", {"image_seq_len": 4}, "image_seq_len 4 .* is not the 9 visual tokens"),
        (
            "preprocessor_config.json",
            {"max_image_size": {"longest_edge": 30}},
            "max_image_size .*30.* is not the vision tower's 24 pixels",
        ),
        (
            "preprocessor_config.json",
            {"size": {"height": 2, "width": 2}},
            "size .*'height'.* not supported",
        ),
    ],
)
def test_what_is_not_supported_is_named(
    tmp_path: Path, file: str, change: dict[str, object], message: str
) -> None:
    folder = save_smolvlm(tmp_path / "model")
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    config = read_config(folder)
    with pytest.raises(UnsupportedModelError, match=message):
        family_of(config).image_program(folder, config)
