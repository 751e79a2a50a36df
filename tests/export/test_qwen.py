"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images of any size, against Hugging Face's own generate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.export.families import Image, Pair, Seen, asked, check_half_precision, noise
from tests.tiny import save_qwen

pytestmark = pytest.mark.usefixtures("width_first")

# (width, height), with visual tokens of 8 x 8 pixels and windows of 2 x 2 of them: ragged windows on one
# edge, on both, and a small image that grows.
WIDE, TALL, SMALL = (56, 24), (40, 72), (9, 11)
CASES = {
    "wide": [WIDE],
    "tall": [TALL],
    "small": [SMALL],
    "two of different size": [TALL, SMALL],
    "text only": [],
}


def seen_by(folder: Path) -> Callable[[Sequence[Image]], Seen]:
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)

    def see(images: Sequence[Image]) -> Seen:
        found = processor(list(images), return_tensors="pt")
        grids = found["image_grid_thw"]
        texts = ["<|image_pad|>" * int(grid.prod() // 4) for grid in grids]
        return Seen(found["pixel_values"], texts, {"image_grid_thw": grids})

    return see


def pair_of(folder: Path, kind: str, **options: Any) -> Pair:
    model = save_qwen(folder / kind, kind)
    return Pair(model, seen_by(model), **options)


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair_of(tmp_path_factory.mktemp("qwen"), "qwen2_5_vl")


@pytest.mark.parametrize("name", CASES)
def test_unpruned_it_answers_as_hugging_face(windowed: Pair, name: str) -> None:
    images = [noise(size) for size in CASES[name]]
    windowed.check_unpruned(asked("what is the big star ?", len(images)), images)


@pytest.mark.parametrize("name", [name for name, sizes in CASES.items() if sizes])
def test_pruned_it_keeps_and_answers_as_the_independent_loop(windowed: Pair, name: str) -> None:
    images = [noise(size) for size in CASES[name]]
    windowed.check_pruned(asked("is the box small ?", len(images)), images)


def test_a_conversation_answers_as_hugging_face(windowed: Pair) -> None:
    messages = [
        {"role": "system", "content": "small box ."},
        *asked("what is the star ?", 1),
        {"role": "assistant", "content": [{"type": "text", "text": "the big box ."}]},
        *asked("is the box small ?", 1),
    ]
    windowed.check_unpruned(messages, [noise(WIDE), noise(SMALL)])


def test_a_batch_answers_as_one_by_one(windowed: Pair) -> None:
    windowed.check_batch([[noise(size) for size in sizes] for sizes in CASES.values()], "what is the box ?")


def test_a_small_image_beside_large_ones_keeps_its_part(windowed: Pair) -> None:
    windowed.check_share_by_image([noise(size) for size in (WIDE, SMALL, TALL, SMALL)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_vl"])
def test_the_other_generations(tmp_path: Path, kind: str) -> None:
    pair = pair_of(tmp_path, kind)
    for sizes in CASES.values():
        images = [noise(size) for size in sizes]
        pair.check_unpruned(asked("what is the big star ?", len(images)), images)
        if images:
            pair.check_pruned(asked("is the box small ?", len(images)), images)
    pair.check_long_replies()


@pytest.mark.slow
@pytest.mark.parametrize("layer", [1, 2])
def test_pruned_before_and_at_the_last_level_of_deepstack(tmp_path: Path, layer: int) -> None:
    """Three levels are added behind layers 0 to 2; the default, before layer 3, comes behind all."""
    pair = pair_of(tmp_path, "qwen3_vl", layer=layer)
    images = [noise(TALL), noise(SMALL)]
    pair.check_pruned(asked("is the box small ?", 2), images)


@pytest.mark.slow
def test_every_command_takes_it(windowed: Pair, tmp_path: Path) -> None:
    windowed.check_commands(tmp_path, noise(WIDE))
    windowed.check_comparison(tmp_path, noise(WIDE))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_half_precision(tmp_path: Path, kind: str) -> None:
    check_half_precision(save_qwen(tmp_path / "model", kind, spread=0.15), tmp_path)


@pytest.mark.slow
def test_long_replies(windowed: Pair) -> None:
    windowed.check_long_replies()


@pytest.mark.slow
def test_engines_build(windowed: Pair) -> None:
    windowed.check_engines()
