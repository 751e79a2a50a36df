"""Loading images: the same pixels as Hugging Face's loading, and one clear message for what is none."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image as hf_load_image

from edgeprune.errors import InputError
from edgeprune.runtime import images
from edgeprune.runtime.image_formats import decoding_bytes
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


def test_grey_times_alpha_is_grey_beside_alpha() -> None:
    multiplied = modes()["LA"].convert("La")
    np.testing.assert_array_equal(load_image(multiplied), load_image(multiplied.convert("LA")))


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
    with pytest.raises(InputError, match=r"there is no image .*nowhere\.png: check the path"):
        load_image(tmp_path / "nowhere.png")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the image .* is a folder: expected a regular file"):
        load_image(tmp_path)


def test_unreadable_path() -> None:
    with pytest.raises(InputError, match=r"cannot be read .*: check its path and rights"):
        load_image("a\0b.png")


def test_address() -> None:
    with pytest.raises(InputError, match="is not a local file: download it first"):
        load_image("https://example.org/x.png")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: socket.socket(socket.AF_UNIX).bind(str(path))])
def test_what_reading_would_wait_for(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    make("x.png")
    with pytest.raises(InputError, match=r"the image x\.png (is a pipe: expected a regular|cannot be read)"):
        load_image("x.png")
    with pytest.raises(InputError, match="is a device: expected a regular file"):
        load_image("/dev/zero")


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 100 100
%%EndComments
showpage
%%EOF
"""
KINDS = {
    b"": "not an image but an empty file",
    b"no image at all": "not an image",
    EPS: "a PostScript or EPS drawing",
    b"%PDF-1.4 ": "a PDF document",
    b"8BPS\0\1": "a Photoshop document",
    b"\0\0\0\x1cftypheic\0\0\0\0": "a HEIC image",
    b"\0\0\0\x1cftypavif\0\0\0\0": "an AVIF image",
    b"\0\0\0\x1cftypisom\0\0\0\0": "a video",
    b"RIFF\0\0\0\0AVI LIST": "an AVI video",
    b"\x1aE\xdf\xa3": "a Matroska or WebM video",
    b'<?xml version="1.0"?>\n<svg/>': "an SVG drawing",
    b"\n<!DOCTYPE html>": "a web page",
    b"version https://git-lfs.github.com/spec/v1": "a pointer of Git LFS",
    b"PK\x03\x04": "a ZIP archive",
    b"P5 4 4 255\n" + bytes(16): "a PNM image",
    b"\0\0\1\0\1\0": "an icon",
    b"\x89PNG\r\n": "damaged at its beginning",
    b"\xff\xd8\xff": "damaged at its beginning",
}


@pytest.mark.parametrize(("data", "kind"), KINDS.items(), ids=KINDS.values())
def test_other_files_are_named(data: bytes, kind: str, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=rf"the bytes handed in is {kind}.*(; convert it, or|undamaged copy)"
    ):
        load_image(data)
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"x\.jpg is {kind}"):
        load_image(path)


@pytest.mark.parametrize("form", ["EPS", "PDF", "PPM", "ICO", "PCX", "TGA", "JPEG2000", "SGI", "DDS", "MSP"])
def test_other_formats_are_refused_whatever_their_names(form: str, tmp_path: Path) -> None:
    path = tmp_path / "holiday.jpg"
    Image.new("1" if form == "MSP" else "RGB", (32, 32)).save(path, form)
    with pytest.raises(InputError, match="expected JPEG, PNG, WebP, BMP, TIFF or GIF"):
        load_image(path)


def test_no_other_program_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript to the `gs` of the PATH."""
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = tmp_path / "holiday.jpg"
    path.write_bytes(EPS)
    for source in (path, EPS, io.BytesIO(EPS), path.open("rb")):
        with pytest.raises(InputError, match="is a PostScript or EPS drawing: expected JPEG, PNG"):
            load_image(source)
    with pytest.raises(InputError, match=r"is opened from a EPS file: .*hand over a copy, as image\.copy"):
        load_image(Image.open(path))
    assert not started.exists()
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises((OSError, ValueError)):  # what such a `gs` gives is no image
        Image.open(path).load()
    assert started.exists(), "the test proves nothing"


def test_a_camera_s_jpeg_of_several_pictures() -> None:
    first, second = (Image.fromarray(noise(16, 16)).convert("L") for _ in range(2))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    expected = np.array(hf_load_image(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(load_image(data), expected)
    np.testing.assert_array_equal(load_image(Image.open(io.BytesIO(data))), expected)


def test_text_file_object() -> None:
    with pytest.raises(
        InputError, match="the file object StringIO gives text: expected a file that is opened"
    ):
        load_image(io.StringIO("text"))


def test_file_objects_that_only_read() -> None:
    class Stream:
        def __init__(self, data: bytes) -> None:
            self.read = io.BytesIO(data).read

    np.testing.assert_array_equal(load_image(Stream(encoded(Image.fromarray(noise())))), noise())
    closed = io.BytesIO(b"")
    closed.close()
    with pytest.raises(InputError, match=r"the file object BytesIO cannot be read .*: open it anew"):
        load_image(closed)


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
    with pytest.raises(InputError, match=f"the image's array {message}"):
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


# Bytes a pixel that each takes at its peak, as benchmarks/decoding_memory.py measures them.
COSTS = {
    "RGB": ("RGB", "PNG", {}, 7),
    "L": ("L", "PNG", {}, 4),
    "I;16": ("I;16", "PNG", {}, 5),
    "JPEG": ("RGB", "JPEG", {}, 7),
    "progressive": ("RGB", "JPEG", {"progressive": True, "subsampling": 0}, 10),
    "progressive 4:2:0": ("RGB", "JPEG", {"progressive": True, "subsampling": 2}, 7),
    "WebP": ("RGB", "WEBP", {}, 16),
    "GIF": ("P", "GIF", {}, 4),
    "BMP": ("RGB", "BMP", {}, 7),
    "TIFF": ("RGBA", "TIFF", {"compression": "tiff_lzw", "strip_size": 1 << 30}, 8),
    "TIFF, turned": (
        "RGBA",
        "TIFF",
        {"compression": "tiff_lzw", "strip_size": 1 << 30, "tiffinfo": {274: 6}},
        12,
    ),
}


@pytest.mark.parametrize(("mode", "form", "options", "cost"), COSTS.values(), ids=COSTS)
def test_decoding_is_bounded_in_bytes(
    mode: str, form: str, options: dict[str, Any], cost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(Image.new(mode, (400, 300)), form, **options)
    held = {"WEBP": 2 * len(data), "TIFF": len(data)}.get(form, 0)
    monkeypatch.setattr(images, "MAX_DECODING_BYTES", 400 * 300 * cost + held)
    assert load_image(data).shape in ((300, 400, 3), (400, 300, 3))
    monkeypatch.setattr(images, "MAX_DECODING_BYTES", 400 * 300 * cost + held - 1)
    if form == "JPEG":
        assert load_image(data).shape == (150, 200, 3)
        return
    with pytest.raises(
        InputError, match=r"too large \(\d+ x \d+ pixels, \d+ bytes to decode it\): expected at m"
    ):
        load_image(data)


def test_a_jpeg_in_several_scans_is_known_as_such() -> None:
    """Sequential, but each component in a scan of its own: libjpeg keeps all coefficients."""
    one = encoded(Image.new("RGB", (64, 64)), "JPEG", subsampling=0)
    start = one.index(b"\xff\xda")
    assert one[start : start + 5] == b"\xff\xda\x00\x0c\x03"
    several = one[:start] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + one[start + 14 :]
    costs = [decoding_bytes(Image.open(io.BytesIO(data)), 0) for data in (one, several)]
    assert costs == [64 * 64 * 7, 64 * 64 * 10]


def test_a_jpeg_far_too_large_is_shrunk_while_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(noise(80, 120)), "JPEG")
    monkeypatch.setattr(images, "MAX_PIXELS", 40 * 60)
    assert load_image(data).shape == (40, 60, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 40 * 60 - 1)
    assert load_image(data).shape == (20, 30, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 20)
    with pytest.raises(InputError, match=r"too large \(120 x 80 pixels"):
        load_image(data)
    opened = Image.open(io.BytesIO(data))
    with pytest.raises(InputError, match=r"the PIL image is too large \(120 x 80 pixels"):
        load_image(opened)
    assert opened.size == (120, 80)


def test_a_pil_image_that_is_decoded_already_costs_its_result_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_DECODING_BYTES", 1)
    for form in ("JPEG", "PNG", "TIFF"):
        opened = Image.open(io.BytesIO(encoded(Image.fromarray(noise()), form)))
        with pytest.raises(InputError, match="the PIL image is too large"):
            load_image(opened)
        opened.load()
        assert load_image(opened).shape == (6, 9, 3)


def test_a_file_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(noise()))
    monkeypatch.setattr(images, "MAX_FILE_BYTES", len(data) - 1)
    with pytest.raises(InputError, match=rf"is too large \({len(data)} bytes\): expected at most"):
        load_image(data)


def test_damaged_fields_of_a_tiff_are_no_warnings(recwarn: pytest.WarningsRecorder) -> None:
    """They are read one by one, when they are asked for: while opening, judging or decoding."""
    data = bytearray(encoded(Image.fromarray(noise()), "TIFF", tiffinfo={305: "x" * 40, 284: 1}))
    start = int.from_bytes(data[4:8], "little")
    outcomes = set()
    for field in range(int.from_bytes(data[start : start + 2], "little")):
        at = start + 2 + 12 * field
        altered = data[: at + 4] + b"\xff\xff\xff\x7f" + data[at + 8 :]
        try:
            load_image(bytes(altered))
            outcomes.add("read")
        except InputError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
    assert not recwarn.list


@pytest.mark.parametrize("size", [(3, 1 << 19), (1 << 19, 3), (1100, 1000)])
@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_bands_do_not_show(size: tuple[int, int], mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8), "RGBA")
    picture = picture if mode == "RGBA" else picture.convert("RGB").convert("P")
    np.testing.assert_array_equal(load_image(picture), convert_to_rgb(picture, return_numpy=True))


def saved_16_bit(values: np.ndarray, form: str) -> bytes:
    return encoded(Image.fromarray(values.astype(np.uint16)), form)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_shows_its_upper_byte(form: str) -> None:
    ramp = np.arange(65536).reshape(256, 256)
    for source in (saved_16_bit(ramp, form), Image.open(io.BytesIO(saved_16_bit(ramp, form)))):
        found = load_image(source)
        np.testing.assert_array_equal(found, np.repeat((ramp >> 8)[:, :, None], 3, axis=2))


def test_16_bit_grey_of_other_byte_orders_and_turned() -> None:
    values = np.arange(0, 60000, 1000, dtype=">u2").reshape(6, 10)
    big = Image.frombytes("I;16B", (10, 6), values.tobytes())
    np.testing.assert_array_equal(load_image(big)[:, :, 0], values >> 8)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(values.astype(np.uint16)), "PNG", exif=exif)
    np.testing.assert_array_equal(load_image(turned)[:, :, 0], np.rot90(values >> 8, -1))


def test_16_bit_grey_is_as_16_bit_colour() -> None:
    """Both go by the upper byte, colour by Pillow's own reading."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    values = np.arange(0, 65536, 911, dtype=">u2")[:72].reshape(8, 9)

    def png(colour: int, samples: np.ndarray) -> bytes:
        rows = b"".join(b"\0" + row.tobytes() for row in samples)
        header = struct.pack(">IIBBBBB", 9, 8, 16, colour, 0, 0, 0)
        parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + parts

    grey, colour = load_image(png(0, values)), load_image(png(2, np.repeat(values[:, :, None], 3, axis=2)))
    np.testing.assert_array_equal(grey, colour)
    assert grey.std() > 50


def test_12_bits_in_16_stay_dark_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """The file says 65535 is white; a depth camera's 4095 may mean something else."""
    ramp = np.arange(4096).reshape(64, 64)
    assert load_image(saved_16_bit(ramp, "PNG")).max() == 15
    assert "scale its values to 0..65535 first" in caplog.text
    caplog.clear()
    load_image(saved_16_bit(ramp * 16, "PNG"))
    assert not caplog.text


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_grey_goes_from_its_smallest_value_to_its_largest(mode: str) -> None:
    values = np.linspace(-2000, 3000, num=60).reshape(6, 10).astype(np.int32 if mode == "I" else np.float32)
    expected = np.rint((values + 2000.0) / 5000 * 255)
    for source in (Image.fromarray(values), encoded(Image.fromarray(values), "TIFF")):
        np.testing.assert_array_equal(load_image(source), np.repeat(expected[:, :, None], 3, axis=2))
    assert not load_image(Image.new(mode, (4, 4), 7)).any()


def test_floats_that_are_no_numbers_are_black() -> None:
    values = np.array([[np.nan, 1, 2], [np.inf, -np.inf, 3]], dtype=np.float32)
    assert load_image(Image.fromarray(values))[:, :, 0].tolist() == [[0, 0, 128], [255, 0, 255]]
    assert not load_image(Image.fromarray(np.full((2, 2), np.nan, np.float32))).any()


BAD_EXIF = {
    "no TIFF": b"Exif\0\0this is none at all",
    "empty": b"Exif\0\0",
    "cut": b"Exif\0\0II*\0\x08\0\0\0\x40\0\x12\x01",
    "far": b"Exif\0\0MM\0*\xff\xff\xff\xf0",
    "odd type": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",
}


@pytest.mark.parametrize("exif", BAD_EXIF.values(), ids=BAD_EXIF)
@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_damaged_exif_is_none(
    form: str, exif: bytes, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    picture = Image.fromarray(noise(16, 24))
    options = {"lossless": True} if form == "WEBP" else {}
    expected = load_image(encoded(picture, form, **options))
    data = encoded(picture, form, exif=exif, **options)
    opened = Image.open(io.BytesIO(data))
    recwarn.clear()  # of Pillow's own opening
    np.testing.assert_array_equal(load_image(data), expected)
    np.testing.assert_array_equal(load_image(opened), expected)
    assert capfd.readouterr().err == ""
    assert not recwarn.list


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
    with pytest.raises(InputError, match="an image of type int is not supported: expected a path, bytes"):
        load_image(3)
