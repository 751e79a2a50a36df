"""LLaVA-NeXT and LLaVA-OneVision: tiles put together, against Hugging Face's generate and our own loop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pictures
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from edgeprune.errors import UnsupportedModelError
from edgeprune.exporter.families import family_of, read_config
from edgeprune.layout import WHOLE
from edgeprune.runtime.programs import run_program
from tests.export.families import Image, Pair, Seen, asked, check_half_precision, noise
from tests.tiny import save_anyres

pytestmark = pytest.mark.usefixtures("width_first")

KINDS = ("llava_next", "llava_onevision")
WIDE, TALL, SQUARE = (90, 30), (31, 60), (70, 70)
CASES = {
    "wide": [WIDE],
    "tall": [TALL],
    "square": [SQUARE],
    "two of different size": [TALL, WIDE],
    "text only": [],
}


class Processor:
    """Hugging Face's own pixels and numbers of tokens, without what its processors want torchvision for."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.onevision = kind == "llava_onevision"
        self.images: Any = (
            LlavaOnevisionImageProcessorPil if self.onevision else LlavaNextImageProcessorPil
        ).from_pretrained(folder)
        self.counting: Any = object.__new__(LlavaOnevisionProcessor if self.onevision else LlavaNextProcessor)
        own = {"num_image_tokens": 36, "vision_aspect_ratio": "anyres_max_2"}
        self.counting.__dict__ |= {"image_processor": self.images, "patch_size": 4, **own}
        self.counting.num_additional_image_tokens = 0

    def __call__(self, images: Sequence[Image]) -> Seen:
        pictures: Any = [Pictures.fromarray(image) for image in images]
        several = self.onevision and len(pictures) > 1
        found = self.images([pictures] if self.onevision else pictures, return_tensors="pt")
        sizes = [(image.height, image.width) for image in pictures]
        counts = [37 if several else self.counting._get_number_of_features(*size, 24, 24) for size in sizes]
        further = {"image_sizes": torch.tensor(sizes)}
        if self.onevision:
            further["batch_num_images"] = torch.tensor([len(pictures)])
        texts = ["<image>" * count for count in counts]
        return Seen(found["pixel_values"], texts, further, self._valid(images))

    def _valid(self, images: Sequence[Image]) -> torch.Tensor:
        """Which tokens show the image: white images go the same way, and padding is what is not white."""
        white: Any = [Pictures.fromarray(np.full_like(image, 255)) for image in images]
        pixels = self.images([white] if self.onevision else white, return_tensors="pt")["pixel_values"]
        found = []
        for tiles, image in zip(pixels, images, strict=True):
            red = tiles[:, 0]
            shown = (red > (red.min() + red.max()) / 2).float() if red.min() < red.max() else red * 0 + 1
            cells = torch.nn.functional.avg_pool2d(shown, 4)
            size = image.shape[:2]
            if self.onevision and len(images) > 1:
                found += [cells[0].flatten(), torch.ones(1)]
                continue
            down, across = get_anyres_image_grid_shape(size, self.images.image_grid_pinpoints, 24)
            packed = cells[1 : 1 + down * across].reshape(down, across, 6, 6).transpose(1, 2)
            packed = unpad_image(packed.reshape(1, down * 6, across * 6), size)
            ratio = (packed.shape[1] * packed.shape[2] / 72) ** 0.5 if self.onevision else 0
            if ratio > 1.1:
                smaller = [int(side // ratio) for side in packed.shape[1:]]
                packed = torch.nn.functional.interpolate(packed[None], smaller, mode="bilinear")[0]
            rows = torch.cat([packed[0], torch.ones(packed.shape[1], 1)], dim=1)
            found += [cells[0].flatten(), rows.flatten()]
        return (torch.cat(found) >= 0.5).float()


def pair_of(folder: Path, kind: str, text: str = "llama") -> Pair:
    model = save_anyres(folder / kind, kind, text)
    return Pair(model, Processor(model, kind))


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    text = {"llava_next": "llama", "llava_onevision": "qwen2"}[request.param]
    return pair_of(tmp_path_factory.mktemp("anyres"), request.param, text)


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
def test_every_command_takes_it(pair: Pair, tmp_path: Path) -> None:
    pair.check_commands(tmp_path, noise(WIDE))
    # A thumbnail and one tile remain however small an image becomes.
    pair.check_comparison(tmp_path, noise(SQUARE), keep=0.8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(tmp_path: Path, kind: str) -> None:
    check_half_precision(save_anyres(tmp_path / kind, kind), tmp_path)


@pytest.mark.slow
def test_long_replies(pair: Pair) -> None:
    pair.check_long_replies()


@pytest.mark.slow
def test_engines_build(pair: Pair) -> None:
    pair.check_engines()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "size",
    [
        (24, 24),
        (100, 30),
        (30, 100),
        (1, 5000),
        (5000, 1),
        (1, 1),
        (901, 3),
        (2000, 1500),
        (47, 25),
        (10, 500),
    ],
)
def test_pixels_and_tokens_are_those_of_its_own_processor(
    models: dict[str, Path], kind: str, size: tuple[int, int]
) -> None:
    folder, image = models[kind], noise(size)
    config = read_config(folder)
    program = family_of(config).image_program(folder, config)
    wanted = Processor(folder, kind)([image])
    ours = run_program(image, program)
    np.testing.assert_array_equal(ours.pixel_values, wanted.pixel_values[0].numpy())
    assert ours.layout.tokens * "<image>" == wanted.texts[0]
    assert ours.layout.tokens <= program.most_tokens
    assert program.rows(ours.layout) == len(ours.pixel_values) <= program.most_tiles
    assert sum(len(block.boxes()) for block in ours.layout.blocks) == ours.layout.tokens


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: save_anyres(folder / kind, kind) for kind in KINDS}


def test_padding_between_image_and_canvas_is_padding(models: dict[str, Path]) -> None:
    folder = models["llava_next"]
    config = read_config(folder)
    program = family_of(config).image_program(folder, config)
    assert program.pads
    thumbnail, packed = program.layout(60, 40).blocks
    # The canvas of 48 x 48 shows it on 48 x 32 pixels: 8 of 12 rows of tokens, all of them without padding.
    assert (thumbnail.grid, packed.grid, packed.tiles) == ((6, 6), (8, 12), (2, 2))
    assert packed.box == WHOLE
    assert packed.boxes().shape == (8 * 13, 4)
    assert np.isnan(packed.boxes().reshape(8, 13, 4)[:, 12]).all()
    # On 48 x 29 pixels: 7.25 rows, of which as many are left out on both sides.
    packed = program.layout(60, 36).blocks[1]
    assert packed.grid == (8, 12)
    assert (packed.box.top < 0, packed.box.bottom > 1) == (True, True)


@pytest.mark.parametrize(
    ("kind", "file", "change", "message"),
    [
        (
            "llava_onevision",
            "config.json",
            {"vision_aspect_ratio": "pad"},
            "vision_aspect_ratio 'pad' is not supported: expected anyres_max_",
        ),
        (
            "llava_next",
            "config.json",
            {"vision_feature_select_strategy": "full"},
            "every visual token must be a place in the image",
        ),
        (
            "llava_next",
            "preprocessor_config.json",
            {"image_grid_pinpoints": [[24, 48]]},
            "image_grid_pinpoints are not those of config.json",
        ),
        (
            "llava_next",
            "preprocessor_config.json",
            {"crop_size": {"height": 20, "width": 20}},
            "crop_size .*20.* is not the vision tower's 24 pixels",
        ),
        (
            "llava_next",
            "preprocessor_config.json",
            {"image_processor_type": "OtherImageProcessor"},
            "OtherImageProcessor is not supported here. Supported: LlavaNextImageProcessor",
        ),
    ],
)
def test_what_is_not_supported_is_named(
    tmp_path: Path, kind: str, file: str, change: dict[str, Any], message: str
) -> None:
    folder = save_anyres(tmp_path / "model", kind)
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    config = read_config(folder)
    with pytest.raises(UnsupportedModelError, match=message):
        family_of(config).image_program(folder, config)


def test_a_processor_that_tells_other_tokens_is_named(tmp_path: Path) -> None:
    folder = save_anyres(tmp_path / "model", "llava_onevision")
    (folder / "processor_config.json").write_text('{"num_image_tokens": 35}', encoding="utf-8")
    config = read_config(folder)
    with pytest.raises(UnsupportedModelError, match=r"num_image_tokens 35 .* is not the 36 visual tokens"):
        family_of(config).image_program(folder, config)


def test_canvases_that_are_no_whole_tiles_are_named(tmp_path: Path) -> None:
    folder = save_anyres(tmp_path / "model")
    for file in ("config.json", "preprocessor_config.json"):
        raw = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps({**raw, "image_grid_pinpoints": [[24, 50]]}))
    config = read_config(folder)
    with pytest.raises(UnsupportedModelError, match="canvas of 24 x 50 pixels for tiles of 24 x 24"):
        family_of(config).image_program(folder, config)
