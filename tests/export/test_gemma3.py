"""Gemma 3 against Hugging Face's own generation, and against an independent loop where it is pruned."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from transformers import AutoTokenizer
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

from edgeprune import export
from edgeprune.bundle import read_manifest
from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.exporter.families import family_of, read_config
from tests.export.families import Image, Pair, Seen, asked, check_half_precision, noise
from tests.tiny import save_gemma3

pytestmark = pytest.mark.usefixtures("width_first")

WIDE, TALL, SMALL = (90, 40), (33, 70), (7, 5)
CASES = {
    "wide": [WIDE],
    "tall": [TALL],
    "small": [SMALL],
    "two of different size": [TALL, SMALL],
    "text only": [],
}


def seen_by(folder: Path) -> Callable[[Sequence[Image]], Seen]:
    images = Gemma3ImageProcessorPil.from_pretrained(folder)
    processor = Gemma3Processor(images, AutoTokenizer.from_pretrained(folder), image_seq_length=16)

    def see(shown: Sequence[Image]) -> Seen:
        # Of an array that is one pixel high it would not know the channels.
        pictures = [PIL.Image.fromarray(image) for image in shown]
        found = images(pictures, return_tensors="pt")
        texts = [processor.replace_image_token(found, number) for number in range(len(shown))]
        return Seen(found["pixel_values"], texts)

    return see


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = save_gemma3(tmp_path_factory.mktemp("gemma3") / "model")
    return Pair(folder, seen_by(folder), layer=3)  # behind a layer that sees all


@pytest.mark.parametrize("name", CASES)
def test_unpruned_it_answers_as_hugging_face(pair: Pair, name: str) -> None:
    images = [noise(size) for size in CASES[name]]
    pair.check_unpruned(asked("what is the big star ?", len(images)), images)


@pytest.mark.parametrize("name", [name for name, sizes in CASES.items() if sizes])
def test_pruned_it_keeps_and_answers_as_the_independent_loop(pair: Pair, name: str) -> None:
    """Prompt and reply are far longer than the windows."""
    images = [noise(size) for size in CASES[name]]
    pair.check_pruned(asked("is the box small ?", len(images)), images)


def test_a_conversation_answers_as_hugging_face(pair: Pair) -> None:
    messages = [
        *asked("what is the star ?", 1),
        {"role": "assistant", "content": [{"type": "text", "text": "the big box ."}]},
        *asked("is the box small ?", 1),
    ]
    pair.check_unpruned(messages, [noise(WIDE), noise(SMALL)])


def test_a_batch_answers_as_each_prompt_alone(pair: Pair) -> None:
    pair.check_batch([[noise(size) for size in sizes] for sizes in CASES.values()], "what is the box ?")


def test_images_keep_their_part(pair: Pair) -> None:
    pair.check_share_by_image([noise(size) for size in (WIDE, TALL, SMALL)])


def test_the_token_of_one_visual_token_is_no_image_place(pair: Pair) -> None:
    with pytest.raises(InputError, match="stands for one visual token: write <start_of_image> where"):
        pair.ours.generate("<image_soft_token> what ?", [noise(WIDE)])


@pytest.mark.slow
def test_every_command_takes_it(pair: Pair, tmp_path: Path) -> None:
    pair.check_commands(tmp_path, noise(WIDE))


@pytest.mark.slow
def test_half_precision(pair: Pair, tmp_path: Path) -> None:
    check_half_precision(pair.folder, tmp_path)


@pytest.mark.slow
def test_long_replies(pair: Pair) -> None:
    pair.check_long_replies()


@pytest.mark.slow
def test_engines_build(pair: Pair) -> None:
    pair.check_engines()


def test_a_layer_with_a_window_that_scores_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_gemma3(tmp_path / "model")
    bundle = export(folder, keep=0.3, layer=2, output=tmp_path / "out", verify=False)
    assert "by the attention of layer 1, which sees 9 tokens" in caplog.text
    assert "layer 2 sees all: prune before layer 3" in caplog.text
    manifest = read_manifest(bundle)
    assert (manifest.image_tokens, manifest.padding_mask.kind) == (16, "none")
    assert manifest.prompt.image_place == "<start_of_image>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_tokens_per_image": 15}, "expected a square whose side divides the patches"),
        ({"text_config": {"use_bidirectional_attention": True}}, "use_bidirectional_attention"),
        ({"text_config": {"attn_logit_softcapping": 50.0}}, "attn_logit_softcapping"),
        ({"vision_config": {"model_type": "clip_vision_model"}}, "'clip_vision_model' is not supported"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = save_gemma3(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for name, value in change.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=message):
        family_of(read_config(folder))


PAN_AND_SCAN: dict[str, Any] = {
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 16,
    "pan_and_scan_max_num_crops": 3,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}


@pytest.fixture(scope="module")
def scanning(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = save_gemma3(tmp_path_factory.mktemp("gemma3-crops") / "model", **PAN_AND_SCAN)
    return Pair(folder, seen_by(folder), layer=3)


@pytest.mark.parametrize("name", CASES)
def test_with_pan_and_scan_it_answers_as_hugging_face(scanning: Pair, name: str) -> None:
    images = [noise(size) for size in CASES[name]]
    scanning.check_unpruned(asked("what is the big star ?", len(images)), images)
    if images:
        scanning.check_pruned(asked("what is the big star ?", len(images)), images)


def test_crops_are_those_of_its_own_processor(scanning: Pair) -> None:
    see = seen_by(scanning.folder)
    program = scanning.ours.manifest.image_program
    for size in (WIDE, TALL, SMALL, (1, 1), (40, 40), (48, 40), (47, 40), (33, 16), (500, 17), (16, 800)):
        ours = scanning.ours.prepare(asked("what ?", 1), [noise(size)])
        seen = see([noise(size)])
        np.testing.assert_array_equal(ours.pixel_values, seen.pixel_values.numpy())
        (image,) = ours.layout.images
        assert image.text("<image_soft_token>") == seen.texts[0]
        assert len(ours.pixel_values) == program.rows(image) <= program.most_tiles


def test_a_processor_that_tells_other_tokens_is_named(tmp_path: Path) -> None:
    folder = save_gemma3(tmp_path / "model")
    (folder / "processor_config.json").write_text('{"image_seq_length": 15}', encoding="utf-8")
    config = read_config(folder)
    with pytest.raises(UnsupportedModelError, match=r"image_seq_length 15 .* is not the 16 visual tokens"):
        family_of(config).image_program(folder, config)


@pytest.mark.slow
def test_every_command_takes_crops(scanning: Pair, tmp_path: Path) -> None:
    scanning.check_commands(tmp_path, noise(WIDE))
    scanning.check_comparison(tmp_path, noise(WIDE), keep=0.6)
    scanning.check_engines()


@pytest.mark.parametrize("method", ["pyramiddrop", "sparsevlm"])
def test_a_method_that_counts_positions_anew_is_named(tmp_path: Path, method: str) -> None:
    folder = save_gemma3(tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match=f"has layers with windows .* by {method}"):
        export(folder, keep=0.3, method=method, layer=[1, 2, 3], output=tmp_path / "out")


def test_the_pixels_are_those_of_its_own_processor(pair: Pair) -> None:
    see = seen_by(pair.folder)
    for size in (WIDE, TALL, SMALL, (1, 1), (5000, 1), (3, 901)):
        ours = pair.ours.prepare(asked("what ?", 1), [noise(size)]).pixel_values
        np.testing.assert_array_equal(ours, see([noise(size)]).pixel_values.numpy())
