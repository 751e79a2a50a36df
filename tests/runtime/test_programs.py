"""Image programs against Hugging Face's own image processors (their Pillow variants), to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from edgeprune.debias.masks import PaddingMask
from edgeprune.errors import InputError
from edgeprune.image_program import (
    CutTiles,
    GridTokens,
    ImageProgram,
    Letterbox,
    PatchFeed,
    PixelValues,
    TileFeed,
)
from edgeprune.image_sizes import FixedSize, LongestEdge, PixelBudget, ShortestEdge
from edgeprune.layout import PromptLayout
from edgeprune.runtime import resizing
from edgeprune.runtime.images import load_image
from edgeprune.runtime.programs import image_tiles, run_program
from edgeprune.vision_inputs import windows_of
from tests.programs import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LETTERBOX,
    internvl,
    llava,
    qwen,
    smolvlm,
)

pytestmark = pytest.mark.usefixtures("width_first")

# (width, height)
SIZES = {
    "square": (40, 40),
    "wide": (97, 40),
    "tall": (31, 80),
    "tiny": (1, 1),
    "tiny wide": (3, 2),
    "elongated wide": (700, 3),
    "elongated tall": (2, 901),
    "odd": (33, 32),
    "photo": (160, 120),
}


def noise(width: int, height: int) -> Image.Image:
    """Noise over a gradient: every rounding and every shift by a pixel shows."""
    rng = np.random.default_rng(width * 10007 + height)
    ramp = np.linspace(0, 200, num=width)[None, :, None] + np.zeros((height, 1, 3))
    return Image.fromarray((ramp + rng.integers(0, 56, size=(height, width, 3))).astype(np.uint8))


def clip_processor(side: int, **changes: Any) -> CLIPImageProcessorPil:
    crop = {"height": side, "width": side}
    return CLIPImageProcessorPil(**{"size": {"shortest_edge": side}, "crop_size": crop, **changes})


def llava_processor(side: int, **changes: Any) -> LlavaImageProcessorPil:
    crop = {"height": side, "width": side}
    fields = {"size": {"shortest_edge": side}, "crop_size": crop, "do_pad": True}
    return LlavaImageProcessorPil(**{**fields, **changes})


def internvl_processor(side: int, **changes: Any) -> GotOcr2ImageProcessorPil:
    fields: dict[str, Any] = {"crop_to_patches": True, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    return GotOcr2ImageProcessorPil(size={"height": side, "width": side}, **{**fields, **changes})


def smolvlm_processor(edge: int, side: int) -> SmolVLMImageProcessorPil:
    sizes = {"size": {"longest_edge": edge}, "max_image_size": {"longest_edge": side}}
    return SmolVLMImageProcessorPil(**sizes, return_row_col_info=True)


def assert_same(image: Image.Image, processor: Any, program: ImageProgram) -> None:
    """The same numbers, and a layout of as many blocks as there are tiles."""
    found = run_program(load_image(image), program)
    expected = np.stack(processor(image, return_tensors=None)["pixel_values"])
    expected = expected.reshape(-1, *expected.shape[-3:])  # SmolVLM's has an axis of prompts, too
    assert found.pixel_values.dtype == np.float32
    np.testing.assert_array_equal(found.pixel_values, expected)
    assert len(found.layout.blocks) == len(expected)
    assert found.layout.size == image.size


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("side", [336, 24])
def test_crop_of_llava_15(size: tuple[int, int], side: int) -> None:
    assert_same(noise(*size), clip_processor(side), llava(side))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("side", [336, 24])
def test_letterbox_of_llava_15(size: tuple[int, int], side: int) -> None:
    assert_same(noise(*size), llava_processor(side), llava(side, fit=LETTERBOX))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_modes(mode: str) -> None:
    image = noise(50, 37).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(noise(50, 37).convert("L"))
    assert_same(image, llava_processor(24), llava(24, fit=LETTERBOX))


@given(width=st.integers(1, 130), height=st.integers(1, 130), side=st.integers(1, 40), pad=st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_size(width: int, height: int, side: int, pad: bool) -> None:
    program = llava(side, cells=1, **({"fit": LETTERBOX} if pad else {}))
    assert_same(noise(width, height), llava_processor(side, do_pad=pad), program)


@pytest.mark.parametrize("resample", range(4))
def test_every_filter(resample: int) -> None:
    image = noise(97, 40)
    pixels = PixelValues(resample=resample, mean=CLIP_MEAN, std=CLIP_STD)
    assert_same(image, clip_processor(24, resample=resample), llava(24, pixels=pixels))
    letterboxed = llava(24, pixels=pixels, fit=LETTERBOX)
    assert_same(image, llava_processor(24, resample=resample), letterboxed)


@pytest.mark.parametrize("crop", [(30, 41), (24, 24), (25, 24), (13, 60), (90, 91), (7, 8)])
def test_crops_smaller_and_larger_than_the_image(crop: tuple[int, int]) -> None:
    processor = llava_processor(24, do_pad=False, crop_size={"height": crop[0], "width": crop[1]})
    program = llava(24, cells=1, crop=crop, feed=TileFeed(height=crop[0], width=crop[1]))
    assert_same(noise(59, 40), processor, program)


@pytest.mark.parametrize("crop", [(20, 24), (24, 13), (7, 8)])
def test_crops_of_letterboxed_images(crop: tuple[int, int]) -> None:
    processor = llava_processor(24, crop_size={"height": crop[0], "width": crop[1]})
    feed = TileFeed(height=crop[0], width=crop[1])
    assert_same(noise(59, 40), processor, llava(24, cells=1, crop=crop, feed=feed, fit=LETTERBOX))


def test_fixed_size_of_siglip() -> None:
    program = ImageProgram(
        sizes=(FixedSize(height=30, width=20),),
        pixels=PixelValues(mean=(0.5,) * 3, std=(0.5,) * 3),
        feed=TileFeed(height=30, width=20),
        tokens=GridTokens(rows=3, columns=2),
    )
    assert_same(noise(47, 40), SiglipImageProcessorPil(size={"height": 30, "width": 20}), program)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_steps_left_out(rescale: bool, normalize: bool) -> None:
    processor = clip_processor(24, do_rescale=rescale, do_normalize=normalize, rescale_factor=1 / 127)
    pixels = PixelValues(
        rescale_factor=1 / 127 if rescale else None,
        mean=CLIP_MEAN if normalize else None,
        std=CLIP_STD if normalize else None,
    )
    assert_same(noise(47, 40), processor, llava(24, pixels=pixels))


def test_no_resizing() -> None:
    assert_same(noise(47, 40), clip_processor(24, do_resize=False), llava(24, sizes=()))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("least", "most"), [(1, 12), (1, 1), (3, 6), (2, 40)])
def test_tiles_of_internvl(size: tuple[int, int], least: int, most: int) -> None:
    processor = internvl_processor(32, min_patches=least, max_patches=most)
    # Where one tile is the most, the processor cuts nothing.
    assert_same(noise(*size), processor, internvl(32, least, most))


@pytest.mark.parametrize("size", [(640, 480), (77, 333), (1900, 60), (448, 448)])
def test_tiles_of_internvl_in_its_own_size(size: tuple[int, int]) -> None:
    assert_same(noise(*size), internvl_processor(448), internvl())


@given(width=st.integers(1, 400), height=st.integers(1, 400), most=st.integers(1, 14))
@settings(max_examples=40, deadline=None)
def test_tiles_of_internvl_at_any_size(width: int, height: int, most: int) -> None:
    processor = internvl_processor(16, max_patches=most)
    assert_same(noise(width, height), processor, internvl(16, most=most))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("edge", "side"), [(128, 32), (91, 30), (32, 32), (100, 64)])
def test_tiles_of_smolvlm(size: tuple[int, int], edge: int, side: int) -> None:
    assert_same(noise(*size), smolvlm_processor(edge, side), smolvlm(edge, side))


@pytest.mark.parametrize("size", [(640, 480), (61, 900)])
def test_tiles_of_smolvlm_in_its_own_size(size: tuple[int, int]) -> None:
    assert_same(noise(*size), smolvlm_processor(2048, 512), smolvlm())


@given(
    width=st.integers(1, 400), height=st.integers(1, 400), edge=st.integers(8, 150), side=st.integers(12, 60)
)
@settings(max_examples=40, deadline=None)
def test_tiles_of_smolvlm_at_any_size(width: int, height: int, edge: int, side: int) -> None:
    assert_same(noise(width, height), smolvlm_processor(edge, side), smolvlm(edge, side))


def test_smolvlm_without_tiles() -> None:
    processor = smolvlm_processor(100, 32)
    processor.do_image_splitting = False
    program = smolvlm(
        32, 32, sizes=(LongestEdge(edge=100, even=True), FixedSize(height=32, width=32)), cut=None
    )
    assert_same(noise(70, 50), processor, program)


def assert_same_patches(size: tuple[int, int], program: ImageProgram, **settings: Any) -> None:
    """The same numbers, rows in the order of the program's windows, and as many tokens as the grid says."""
    image, feed = noise(*size), program.feed
    assert isinstance(feed, PatchFeed)
    budget = program.sizes[0]
    assert isinstance(budget, PixelBudget)
    limits = {"shortest_edge": budget.least, "longest_edge": budget.most}
    processor = Qwen2VLImageProcessorPil(patch_size=feed.size, size=limits, **settings)
    expected = processor(image, return_tensors="np")
    ((_, rows, columns),) = expected["image_grid_thw"].tolist()
    found = run_program(load_image(image), program)
    (block,) = found.layout.blocks
    assert block.grid == (rows // 2, columns // 2)
    order = np.concatenate(windows_of(block.grid, feed.window))
    squares = expected["pixel_values"].reshape(len(order), 4, -1)
    np.testing.assert_array_equal(found.pixel_values, squares[order])


@pytest.mark.parametrize(
    "size", [(5000, 25), (25, 5000), (1, 1), (3, 2), (640, 480), (33, 32), (31, 80), (2000, 1500)]
)
def test_patches_of_qwen2_5_vl(size: tuple[int, int]) -> None:
    assert_same_patches(size, qwen(most=1003520))


@pytest.mark.parametrize("size", [(640, 480), (33, 900)])
def test_patches_of_qwen3_vl(size: tuple[int, int]) -> None:
    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    program = qwen(
        16,
        65536,
        1 << 20,
        pixels=PixelValues(**half),
        feed=PatchFeed(size=16, frames=2, table=48),
    )
    assert_same_patches(size, program, image_mean=[0.5] * 3, image_std=[0.5] * 3)


@given(st.integers(1, 99), st.integers(1, 99), st.integers(2, 6), st.integers(1, 900), st.integers(900, 9000))
@settings(max_examples=40, deadline=None)
def test_patches_at_any_size(width: int, height: int, size: int, least: int, most: int) -> None:
    assert_same_patches((width, height), qwen(size, least, most, feed=PatchFeed(size=size, frames=2)))


@pytest.mark.parametrize("size", [(700, 3), (2, 901)])
def test_more_elongated_than_the_model_takes(size: tuple[int, int]) -> None:
    message = f"the image has {size[0]} x {size[1]} pixels: expected one at most 200"
    with pytest.raises(InputError, match=message):
        run_program(load_image(noise(*size)), qwen())
    with pytest.raises(ValueError, match="aspect ratio must be smaller than 200"):
        Qwen2VLImageProcessorPil()(noise(*size))


@pytest.mark.parametrize("size", [(70, 33), (33, 70)])
def test_sizes_follow_one_another(size: tuple[int, int]) -> None:
    """Only the first step starts from the letterbox, only behind the last one is cropped."""
    image = load_image(noise(*size))
    first = FixedSize(height=50, width=40)
    between = llava(sizes=(first,), crop=None, fit=LETTERBOX, feed=TileFeed(height=50, width=40))
    expected = resizing.resize(image_tiles(image, between)[0], (30, 28), 3, crop=(24, 24))
    program = llava(24, sizes=(first, FixedSize(height=30, width=28)), fit=LETTERBOX)
    np.testing.assert_array_equal(image_tiles(image, program)[0], expected)


def test_the_limit_of_the_longest_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "transformers.models.smolvlm.image_processing_pil_smolvlm.MAX_IMAGE_SIZE"
    monkeypatch.setattr(module, 77)
    program = smolvlm(100, 32, sizes=(LongestEdge(edge=100, even=True, limit=77), smolvlm().sizes[1]))
    for size in ((70, 33), (33, 70), (50, 50)):
        assert_same(noise(*size), smolvlm_processor(100, 32), program)


def test_tiles_are_the_parts_that_the_layout_says() -> None:
    """Each image shows its own position: a tile's first and last pixel are near the corners of its box."""
    width, height = 256, 192
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(height)[:, None], np.arange(width)[None]
    for first in (False, True):
        cut = CutTiles(thumbnail="first" if first else "last")
        program = internvl(64, cut=cut, pixels=PixelValues(rescale_factor=None))
        inputs = run_program(ramp, program)
        assert [block.kind for block in inputs.layout.blocks].index("thumbnail") == (0 if first else 12)
        for values, block in zip(inputs.pixel_values, inputs.layout.blocks, strict=True):
            box = block.box
            for pixel, share in (((0, 0), (box.top, box.left)), ((-1, -1), (box.bottom, box.right))):
                shown = values[:2, pixel[0], pixel[1]]
                np.testing.assert_allclose(shown, [float(share[0] * height), float(share[1] * width)], atol=4)


def test_a_thumbnail_of_a_letterboxed_image_is_letterboxed() -> None:
    white = np.full((10, 40, 3), 255, np.uint8)
    program = internvl(
        8,
        sizes=(FixedSize(height=16, width=16),),
        fit=Letterbox(),
        tokens=GridTokens(rows=8, columns=8),
        pixels=PixelValues(resample=0, rescale_factor=None),
    )
    inputs = run_program(white, program)
    valid = PromptLayout((inputs.layout,)).valid(PaddingMask(kind="share", threshold=0.5))
    assert inputs.pixel_values.shape == (5, 3, 8, 8)
    np.testing.assert_array_equal(valid.reshape(5, 8, 8), inputs.pixel_values[:, 0] / 255)


@pytest.mark.parametrize("kind", ["share", "bilinear"])
@pytest.mark.parametrize("size", [(64, 40), (40, 64), (96, 72), (64, 64), (640, 90)])
@pytest.mark.parametrize(("resized", "crop"), [(96, 96), (96, 64), (128, 64), (64, 64)])
def test_masks_mark_what_the_pixels_show(kind: Any, size: tuple[int, int], resized: int, crop: int) -> None:
    """A white image on black padding, with or without a crop behind: a token's mean is its valid share."""
    program = llava(
        crop,
        cells=8,
        fit=Letterbox(),
        sizes=(ShortestEdge(edge=resized),),
        pixels=PixelValues(resample=0, rescale_factor=None),
    )
    inputs = run_program(np.full((size[1], size[0], 3), 255, np.uint8), program)
    cell = crop // 8
    shown = inputs.pixel_values[0, 0].reshape(8, cell, 8, cell).mean(axis=(1, 3)).flatten() / 255
    valid = PromptLayout((inputs.layout,)).valid(PaddingMask(kind=kind, threshold=0.5))
    certain = np.abs(shown - 0.5) > 1.5 / cell
    assert certain.mean() > 0.5
    np.testing.assert_array_equal(valid[certain], shown[certain] > 0.5)


def test_tiles_keep_their_colours() -> None:
    image = np.asarray(noise(64, 48))
    tiles = image_tiles(image, llava(24, fit=LETTERBOX))
    assert tiles.dtype == np.uint8
    assert tiles.shape == (1, 24, 24, 3)
    np.testing.assert_array_equal(tiles[0, 0], np.full((24, 3), (122, 116, 104)))


@pytest.mark.parametrize("size", [(97, 40), (40, 97), (64, 64)])
def test_bands_do_not_show(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resizing, "_BAND_PIXELS", 700)
    assert_same(noise(*size), llava_processor(24), llava(24, fit=LETTERBOX))
    assert_same(noise(*size), smolvlm_processor(128, 32), smolvlm(128, 32))


def test_the_image_is_left_as_it_is() -> None:
    pixels = np.asarray(noise(20, 30))
    pixels.flags.writeable = False
    for program in (llava(24, fit=LETTERBOX), internvl(16)):
        run_program(pixels, program)


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"array is \w+ \[.*\]: expected uint8 \[height, width, 3\]"):
        run_program(array, llava())


def test_too_elongated_to_crop() -> None:
    strip = np.zeros((1, 600, 3), np.uint8)
    with pytest.raises(
        InputError, match=r"600 x 1 pixels and would become 201600 x 336 .*at most 67108864 pixels"
    ):
        run_program(strip, llava())


def test_too_elongated_to_letterbox() -> None:
    strip = np.zeros((1, resizing.MAX_LETTERBOX_SIDE + 1, 3), np.uint8)
    with pytest.raises(InputError, match=r"is 32769 x 1 pixels: expected at most 32768 on the longer side"):
        run_program(strip, llava(fit=LETTERBOX))
    with pytest.raises(InputError, match=r"is 1 x 9000 pixels and would become 9000 x 9000"):
        resizing.resize(np.zeros((9000, 1, 3), np.uint8), (9000, 9000), 3, canvas=(9000, 9000))


def test_too_elongated_to_resize_the_width_first() -> None:
    """Between the two steps such an image has its own height and the tower's width."""
    column = np.zeros((200_000, 1, 3), np.uint8)
    program = llava(sizes=(FixedSize(height=336, width=336),), crop=None)
    with pytest.raises(InputError, match=r"1 x 200000 pixels and would become 336 x 200000 on its way"):
        run_program(column, program)
    assert run_program(column[:199_000], program).pixel_values.shape == (1, 3, 336, 336)
