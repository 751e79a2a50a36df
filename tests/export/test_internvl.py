"""InternVL as its checkpoints lie on a disk, against Hugging Face's generate and an independent loop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.exporter.families import family_of, read_config
from tests.export.families import Image, Pair, Seen, asked, check_half_precision, noise
from tests.tiny import save_internvl

pytestmark = pytest.mark.usefixtures("width_first")

CONTEXT = "<IMG_CONTEXT>"
# (width, height): four tiles and a thumbnail, one tile, two tiles and a thumbnail.
WIDE, SQUARE, TALL = (96, 24), (30, 30), (25, 48)
CASES = {
    "cut into four": [WIDE],
    "not cut": [SQUARE],
    "cut into two": [TALL],
    "two of different size": [TALL, SQUARE],
    "text only": [],
}


def pair_of(folder: Path, kind: str) -> Pair:
    model = save_internvl(folder / "model", kind)
    processor = GotOcr2ImageProcessorPil.from_pretrained(model)

    def see(images: Sequence[Image]) -> Seen:
        found = processor(list(images), return_tensors="np")
        pixels = torch.from_numpy(np.asarray(found["pixel_values"], dtype=np.float32))
        return Seen(pixels, [f"<img>{CONTEXT * (9 * int(tiles))}</img>" for tiles in found["num_patches"]])

    return Pair(model, see)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair_of(tmp_path_factory.mktemp("internvl"), "qwen2")


@pytest.mark.parametrize("name", CASES)
def test_unpruned_it_answers_as_hugging_face(pair: Pair, name: str) -> None:
    images = [noise(size) for size in CASES[name]]
    pair.check_unpruned(asked("what colour is the big star ?", len(images)), images)


@pytest.mark.parametrize("name", [name for name, sizes in CASES.items() if sizes])
def test_pruned_it_keeps_and_answers_as_the_independent_loop(pair: Pair, name: str) -> None:
    images = [noise(size) for size in CASES[name]]
    pair.check_pruned(asked("is the star small ?", len(images)), images)


def test_a_batch_answers_as_one_by_one(pair: Pair) -> None:
    pair.check_batch([[noise(size) for size in sizes] for sizes in CASES.values()], "what is the box ?")


@pytest.mark.slow
def test_with_a_qwen3_text_model(tmp_path: Path) -> None:
    images = [noise(size) for size in CASES["two of different size"]]
    pair_of(tmp_path, "qwen3").check_unpruned(asked("is the star small ?", 2), images)


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


def test_images_are_stretched_so_nothing_is_padding(pair: Pair) -> None:
    assert pair.ours.manifest.padding_mask.kind == "none"
    assert pair.ours.manifest.plan.debias == ()
    assert pair.ours.manifest.image_tokens is None
    assert pair.ours.manifest.most_image_tokens == 45


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_seq_length": 16}, "image_seq_length 16 is not supported with tiles of 3 x 3"),
        ({"vision_feature_select_strategy": "full"}, "expected 'default' and one layer"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = save_internvl(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UnsupportedModelError, match=message):
        family_of(read_config(folder))


def test_a_tokenizer_without_the_ends_of_an_image_is_named(tmp_path: Path) -> None:
    folder = save_internvl(tmp_path / "model")
    names = json.loads((folder / "tokenizer_config.json").read_text())
    for key in ("start_image_token", "extra_special_tokens"):
        names.pop(key, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    config = read_config(folder)
    with pytest.raises(InputError, match="names no start_image_token and end_image_token"):
        family_of(config).image_program(folder, config)


def test_another_image_processor_is_named(tmp_path: Path) -> None:
    folder = save_internvl(tmp_path / "model")
    raw = json.loads((folder / "preprocessor_config.json").read_text())
    raw["image_processor_type"] = "OtherImageProcessor"
    (folder / "preprocessor_config.json").write_text(json.dumps(raw))
    config = read_config(folder)
    with pytest.raises(UnsupportedModelError, match="OtherImageProcessor is not supported here"):
        family_of(config).image_program(folder, config)
