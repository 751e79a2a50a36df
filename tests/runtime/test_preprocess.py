"""Preprocessing against Hugging Face's own image processors, and the padding mask of real picture sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from edgeprune.debias.masks import PaddingMask, letterbox_valid, letterbox_valid_bilinear, visual_valid
from edgeprune.errors import InputError
from edgeprune.manifest import Preprocessing
from edgeprune.runtime import resizing as module
from edgeprune.runtime.images import load_image
from edgeprune.runtime.preprocess import preprocess

pytestmark = pytest.mark.usefixtures("width_first")

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = {
    "square": (40, 40),
    "wide": (97, 40),
    "tall": (31, 80),
    "tiny": (1, 1),
    "tiny wide": (3, 2),
    "elongated wide": (700, 3),
    "elongated tall": (2, 901),
    "odd": (33, 32),
}
SHARE = PaddingMask(kind="share", threshold=0.5)


def spec(side: int = 336, **changes: Any) -> Preprocessing:
    """LLaVA-1.5's preprocessing: shortest edge and centre crop of `side`."""
    fields: dict[str, Any] = {
        "resize_shortest_edge": side,
        "center_crop": (side, side),
        "mean": MEAN,
        "std": STD,
        "image_size": (side, side),
        "grid": (side // 14, side // 14) if side % 14 == 0 else (side // 4, side // 4),
    }
    return Preprocessing(**{**fields, **changes})


LETTERBOX: dict[str, Any] = {"pad_to_square": True, "pad_color": (122, 116, 104)}


def clip(side: int, **changes: Any) -> CLIPImageProcessorPil:
    crop = {"height": side, "width": side}
    return CLIPImageProcessorPil(**{"size": {"shortest_edge": side}, "crop_size": crop, **changes})


def llava(side: int, **changes: Any) -> LlavaImageProcessorPil:
    crop = {"height": side, "width": side}
    fields = {"size": {"shortest_edge": side}, "crop_size": crop, "do_pad": True}
    return LlavaImageProcessorPil(**{**fields, **changes})


def picture(width: int, height: int) -> Image.Image:
    """Noise over a gradient: every rounding and every shift by a pixel shows."""
    rng = np.random.default_rng(width * 10007 + height)
    ramp = np.linspace(0, 200, num=width)[None, :, None] + np.zeros((height, 1, 3))
    return Image.fromarray((ramp + rng.integers(0, 56, size=(height, width, 3))).astype(np.uint8))


def assert_same(image: Image.Image, processor: Any, ours: Preprocessing) -> None:
    expected = np.asarray(processor(image, return_tensors="np")["pixel_values"])[0]
    found = preprocess(load_image(image), ours)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("side", [336, 24])
def test_crop_of_llava_15(size: tuple[int, int], side: int) -> None:
    assert_same(picture(*size), clip(side), spec(side))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("side", [336, 24])
def test_letterbox(size: tuple[int, int], side: int) -> None:
    assert_same(picture(*size), llava(side), spec(side, **LETTERBOX))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_modes(mode: str) -> None:
    image = picture(50, 37).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(picture(50, 37).convert("L"))
    assert_same(image, llava(24), spec(24, **LETTERBOX))


@given(width=st.integers(1, 130), height=st.integers(1, 130), side=st.integers(1, 40), pad=st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_size(width: int, height: int, side: int, pad: bool) -> None:
    fields = LETTERBOX if pad else {}
    ours = spec(side, grid=(1, 1), **fields)
    assert_same(picture(width, height), llava(side, do_pad=pad), ours)


@pytest.mark.parametrize("resample", range(4))
def test_every_filter(resample: int) -> None:
    image = picture(97, 40)
    assert_same(image, clip(24, resample=resample), spec(24, resample=resample))
    assert_same(image, llava(24, resample=resample), spec(24, resample=resample, **LETTERBOX))


@pytest.mark.parametrize("crop", [(30, 41), (24, 24), (25, 24), (13, 60), (90, 91), (7, 8)])
@pytest.mark.parametrize("pad", [False, True])
def test_crops_smaller_and_larger_than_the_picture(crop: tuple[int, int], pad: bool) -> None:
    processor = llava(24, do_pad=pad, crop_size={"height": crop[0], "width": crop[1]})
    fields = LETTERBOX if pad else {}
    assert_same(picture(59, 40), processor, spec(24, center_crop=crop, image_size=crop, **fields))


def test_fixed_size_of_siglip() -> None:
    ours = Preprocessing(
        resize_to=(30, 20), mean=(0.5,) * 3, std=(0.5,) * 3, image_size=(30, 20), grid=(3, 2)
    )
    assert_same(picture(47, 40), SiglipImageProcessorPil(size={"height": 30, "width": 20}), ours)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_steps_left_out(rescale: bool, normalize: bool) -> None:
    processor = clip(24, do_rescale=rescale, do_normalize=normalize, rescale_factor=1 / 127)
    ours = spec(
        24, rescale_factor=1 / 127 if rescale else None, **({} if normalize else {"mean": None, "std": None})
    )
    assert_same(picture(47, 40), processor, ours)


def test_no_resizing() -> None:
    assert_same(picture(47, 40), clip(24, do_resize=False), spec(24, resize_shortest_edge=None))
    ours = spec(24, resize_shortest_edge=None, **LETTERBOX)
    assert_same(picture(47, 40), llava(24, do_resize=False), ours)


@pytest.mark.parametrize("size", [(97, 40), (40, 97), (64, 64)])
def test_bands_do_not_show(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BAND_PIXELS", 700)
    assert_same(picture(*size), llava(24), spec(24, **LETTERBOX))


def test_the_picture_is_left_as_it_is() -> None:
    pixels = np.asarray(picture(20, 30))
    pixels.flags.writeable = False
    preprocess(pixels, spec(24, **LETTERBOX))


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"array is \w+ \[.*\]: expected uint8 \[height, width, 3\]"):
        preprocess(array, spec())


def test_too_elongated_to_crop() -> None:
    strip = np.zeros((1, 600, 3), np.uint8)
    with pytest.raises(
        InputError, match=r"600 x 1 pixels and would become 201600 x 336 .*at most 67108864 pixels"
    ):
        preprocess(strip, spec())


def test_too_elongated_to_letterbox() -> None:
    strip = np.zeros((1, module.MAX_LETTERBOX_SIDE + 1, 3), np.uint8)
    with pytest.raises(InputError, match=r"is 32769 x 1 pixels: expected at most 32768 on the longer side"):
        preprocess(strip, spec(**LETTERBOX))
    with pytest.raises(InputError, match=r"is 1 x 9000 pixels and would become 9000 x 9000"):
        preprocess(np.zeros((9000, 1, 3), np.uint8), spec(resize_shortest_edge=None, **LETTERBOX))


def test_too_elongated_to_resize_the_width_first() -> None:
    """Between the two steps such a picture has its own height and the tower's width."""
    column = np.zeros((200_000, 1, 3), np.uint8)
    ours = spec(resize_shortest_edge=None, center_crop=None, resize_to=(336, 336))
    with pytest.raises(InputError, match=r"1 x 200000 pixels and would become 336 x 200000 on its way"):
        preprocess(column, ours)
    assert preprocess(column[:199_000], ours).shape == (3, 336, 336)


def test_no_mask_without_letterbox_or_without_the_wish() -> None:
    for ours, mask in ((spec(), SHARE), (spec(**LETTERBOX), PaddingMask(kind="none"))):
        valid = visual_valid(900, 10, ours, mask)
        assert valid.dtype == np.float32
        assert valid.shape == (576,)
        assert valid.all()


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (500, 500), (1000, 10), (10, 1000), (37, 101)])
def test_masks_are_those_of_the_picture_size(size: tuple[int, int]) -> None:
    ours = spec(**LETTERBOX)
    for threshold in (0.5, 0.01):
        found = visual_valid(*size, ours, PaddingMask(kind="share", threshold=threshold))
        np.testing.assert_array_equal(found, letterbox_valid(*size, (24, 24), threshold))
    found = visual_valid(*size, ours, PaddingMask(kind="bilinear", threshold=0.5))
    np.testing.assert_array_equal(found, letterbox_valid_bilinear(*size, (24, 24), 0.5))


@pytest.mark.parametrize("kind", ["share", "bilinear"])
@pytest.mark.parametrize("size", [(64, 40), (40, 64), (96, 72), (64, 64), (640, 90)])
@pytest.mark.parametrize(("resized", "crop"), [(96, 96), (96, 64), (128, 64), (64, 64)])
def test_masks_mark_what_the_pixels_show(kind: str, size: tuple[int, int], resized: int, crop: int) -> None:
    """A white picture on black padding, with or without a crop behind: a token's mean is its valid share."""
    ours = Preprocessing(
        pad_to_square=True,
        resize_shortest_edge=resized,
        resample=0,
        center_crop=(crop, crop),
        image_size=(crop, crop),
        grid=(8, 8),
    )
    white = np.full((size[1], size[0], 3), 255, np.uint8)
    cell = crop // 8
    shown = preprocess(white, ours)[0].reshape(8, cell, 8, cell).mean(axis=(1, 3)).flatten()
    valid = visual_valid(*size, ours, PaddingMask(kind=kind, threshold=0.5))
    certain = np.abs(shown - 0.5) > 1.5 / cell
    assert certain.mean() > 0.5
    np.testing.assert_array_equal(valid[certain], shown[certain] > 0.5)


def test_masks_follow_a_stretched_square() -> None:
    """Height and width of the resized square may differ; padding stays a share of its own axis."""
    ours = Preprocessing(pad_to_square=True, resize_to=(48, 24), image_size=(48, 24), grid=(8, 4))
    valid = visual_valid(64, 32, ours, PaddingMask(kind="bilinear")).reshape(8, 4)
    np.testing.assert_array_equal(valid[:, 0], [0, 0, 1, 1, 1, 1, 0, 0])
    valid = visual_valid(32, 64, ours, SHARE).reshape(8, 4)
    np.testing.assert_array_equal(valid[0], [0, 1, 1, 0])


def test_mask_of_no_size() -> None:
    with pytest.raises(InputError, match="expected a number of pixels above 0"):
        visual_valid(0, 10, spec(**LETTERBOX), SHARE)
