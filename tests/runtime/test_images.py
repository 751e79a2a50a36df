"""Loading pictures: the same pixels as Hugging Face's loading, and one clear message for what is none."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image as hf_load_image

from edgeprune.errors import InputError
from edgeprune.runtime import images
from edgeprune.runtime.images import MAX_PIXELS, load_image


def noise(height: int = 6, width: int = 9, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(height * width)
    return rng.integers(0, 256, size=(height, width, channels), dtype=np.uint8)


def encoded(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + chunk(b"IEND", b"")
    )


def modes() -> dict[str, Image.Image]:
    rgb = Image.fromarray(noise())
    transparent = rgb.convert("P")
    transparent.info["transparency"] = 3
    keyed = rgb.convert("RGB")
    keyed.info["transparency"] = tuple(noise()[0, 0].tolist())
    return {
        "RGB": rgb,
        "L": rgb.convert("L"),
        "LA": Image.fromarray(noise(channels=2), "LA"),
        "RGBA": Image.fromarray(noise(channels=4), "RGBA"),
        "P": rgb.convert("P"),
        "P transparent": transparent,
        "RGB keyed": keyed,
        "CMYK": rgb.convert("CMYK"),
        "1": rgb.convert("1"),
    }


@pytest.mark.parametrize("mode", modes())
def test_every_mode_becomes_rgb_as_hugging_face_does(mode: str) -> None:
    picture = modes()[mode]
    before = picture.tobytes()
    found = load_image(picture)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, convert_to_rgb(picture, return_numpy=True))
    assert picture.tobytes() == before


def test_transparent_is_white() -> None:
    picture = Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    np.testing.assert_array_equal(load_image(picture), np.full((1, 2, 3), 255))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_as_hugging_face_does(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    path.write_bytes(encoded(Image.fromarray(noise()), exif=exif))
    expected = np.array(hf_load_image(str(path)))
    np.testing.assert_array_equal(load_image(path), expected)
    with Image.open(path) as picture:
        np.testing.assert_array_equal(load_image(picture), np.array(hf_load_image(picture)))
    assert expected.shape[:2] == ((9, 6) if orientation >= 5 else (6, 9))


def test_every_kind_of_source_gives_the_same(tmp_path: Path) -> None:
    pixels = noise()
    data = encoded(Image.fromarray(pixels))
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    with path.open("rb") as file:
        for source in (str(path), path, data, io.BytesIO(data), file, Image.fromarray(pixels), pixels):
            np.testing.assert_array_equal(load_image(source), pixels)
    np.testing.assert_array_equal(load_image(pixels[:, :, 0]), np.repeat(pixels[:, :, :1], 3, axis=2))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no picture .*nowhere\.png: check the path"):
        load_image(tmp_path / "nowhere.png")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder: give the path of an image file"):
        load_image(tmp_path)


def test_unreadable_path() -> None:
    with pytest.raises(InputError, match=r"cannot be read .*: check its path and rights"):
        load_image("a\0b.png")


def test_address() -> None:
    with pytest.raises(InputError, match="is not a local file: download it first"):
        load_image("https://example.org/x.png")


@pytest.mark.parametrize("data", [b"", b"no picture at all", b"%PDF-1.4 "])
def test_not_an_image(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the bytes handed in is not an image: expected JPEG, PNG"):
        load_image(data)
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"x\.jpg is not an image"):
        load_image(path)


def test_text_file_object() -> None:
    with pytest.raises(InputError, match="the file object StringIO is not a whole image"):
        load_image(io.StringIO("text"))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_truncated(form: str) -> None:
    data = encoded(Image.fromarray(noise(64, 64)), form)
    with pytest.raises(InputError, match=r"the bytes handed in (cannot be decoded|is not).*(damaged|image)"):
        load_image(data[: len(data) // 2])


def test_lazily_opened_truncated_pil_image() -> None:
    data = encoded(Image.fromarray(noise(64, 64)), "JPEG")
    with pytest.raises(InputError, match=r"the PIL image cannot be decoded .*truncated or damaged"):
        load_image(Image.open(io.BytesIO(data[: len(data) // 2])))


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_no_pixels(size: tuple[int, int]) -> None:
    message = f"has no pixels \\({size[0]} x {size[1]}\\): expected at least 1 x 1"
    with pytest.raises(InputError, match=f"the PIL image {message}"):
        load_image(Image.new("RGB", size))
    with pytest.raises(InputError, match=f"the picture's array {message}"):
        load_image(np.zeros((size[1], size[0], 3), np.uint8))


@pytest.mark.parametrize(
    "size", [(MAX_PIXELS + 1, 1), (12000, 12000), (60000, 60000), (2**31 - 1, 2**31 - 1)]
)
def test_huge_is_refused_before_it_is_decoded(
    size: tuple[int, int], recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(
        InputError, match=rf"too large .*expected at most {MAX_PIXELS} pixels.*; shrink or crop"
    ):
        load_image(png_claiming(*size))
    assert not recwarn.list


def test_the_limit_itself_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 54)
    assert load_image(noise(6, 9)).shape == (6, 9, 3)
    with pytest.raises(InputError, match=r"too large \(5 x 11 pixels\): expected at most 54"):
        load_image(noise(11, 5))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3)),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_other_arrays(array: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"array is \w+ \[.*\]: expected uint8 \[height, width, 3\]"):
        load_image(array)


def test_other_types() -> None:
    with pytest.raises(InputError, match="a picture of type int is not supported: expected a path, bytes"):
        load_image(3)
