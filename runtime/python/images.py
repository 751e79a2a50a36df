"""Images, from wherever they come, as RGB arrays."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from edgeprune.errors import InputError
from edgeprune.files import open_regular
from edgeprune.runtime.image_formats import (
    DECODED,
    EXPECTED,
    FORMATS,
    HEAD_BYTES,
    JPEG,
    decoding_bytes,
    kind_of,
)
from edgeprune.runtime.pixels import rgb

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[np.uint8]"

# 67 megapixels: above the 50 of today's large camera sensors, and 0.2 GB as RGB, which the smallest board
# that runs a vision-language model can spare. A crafted file of some kB can claim far more.
MAX_PIXELS = 1 << 26
# What decoding may take beside the encoded image: 0.54 GB. Most formats reach `MAX_PIXELS` within it (a
# colour PNG or JPEG takes 7 bytes a pixel, 0.47 GB), WebP 33 megapixels (16 bytes), a progressive JPEG 53.
MAX_DECODING_BYTES = 1 << 29
# The largest encoded file: 67 megapixels of 4 bytes, not compressed, and its header.
MAX_FILE_BYTES = 300_000_000
_ORIENTATION = 0x0112
# Filters of warnings belong to the whole process.
_WARNINGS = threading.Lock()


def load_image(source: ImageLike) -> NDArray[np.uint8]:
    """Reads an image: JPEG, PNG, WebP, BMP, TIFF or GIF.

    The EXIF orientation is applied, transparency is blended onto white, and every other mode (palette,
    greyscale, CMYK, ...) becomes RGB, as Hugging Face's `load_image` and `do_convert_rgb` do; grey of 16 or
    32 bits is scaled to 8 as viewers do (see `pixels.rgb`), where Hugging Face cuts it off at white. Of an
    animation, the first frame is read. Damaged EXIF data counts as none.

    Decoding takes at most `MAX_DECODING_BYTES` beside the encoded image. The header tells what it will
    take. A JPEG that would take more is decoded at a half, a quarter or an eighth of its size; every other
    image that would is refused.

    Args:
        source: a path, an encoded file's bytes, a binary file object, a PIL image, or an array uint8
            [H, W, 3] (RGB) or [H, W] (grey). Objects handed in are left as they are.

    Returns:
        uint8 [H, W, 3]. It may share memory with an array that was handed in.

    Raises:
        InputError: the file is missing, unreadable or no regular file, is no image of these formats, is
            truncated, has no pixels, or is too large (found out before anything is decoded); or the array
            has another shape or dtype.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _from_pil(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(source), "the bytes handed in")
    if isinstance(source, (str, os.PathLike)):
        with opened(source) as file:
            return _decode(file, os.fsdecode(source))
    if hasattr(source, "read"):
        name = f"the file object {getattr(source, 'name', type(source).__name__)}"
        return _decode(seekable(source, name), name)
    raise InputError(
        f"an image of type {type(source).__name__} is not supported: expected a path, bytes, a binary file "
        "object, a PIL image or a uint8 array"
    )


@contextmanager
def opened(path: str | os.PathLike[str], kind: str = "image") -> Iterator[BinaryIO]:
    """A local file, open for reading; `kind` names it in messages.

    Raises:
        InputError: it is missing, unreadable or no regular file.
    """
    name = os.fsdecode(path)
    if name.startswith(("http://", "https://", "data:")):
        raise InputError(f"the {kind} {name[:80]} is not a local file: download it first and give its path")
    try:
        file = open_regular(path, f"the {kind}")
    except FileNotFoundError as error:
        raise InputError(f"there is no {kind} {name}: check the path") from error
    except (OSError, ValueError) as error:
        raise InputError(f"the {kind} {name} cannot be read ({error}): check its path and rights") from error
    with file:
        yield file


def seekable(file: BinaryIO, name: str) -> BinaryIO:
    """The file object itself, or its content where it cannot be read from its beginning."""
    if isinstance(file, io.TextIOBase):
        raise InputError(f"{name} gives text: expected a file that is opened for bytes, in mode 'rb'")
    try:
        file.seek(0)
        return file
    except (OSError, AttributeError):
        return io.BytesIO(file.read(MAX_FILE_BYTES + 1))
    except ValueError as error:
        raise InputError(f"{name} cannot be read ({error}): open it anew") from error


def _decode(file: BinaryIO, name: str) -> NDArray[np.uint8]:
    size = file.seek(0, io.SEEK_END)
    if size > MAX_FILE_BYTES:
        raise InputError(f"{name} is too large ({size} bytes): {_how_to_shrink()}")
    file.seek(0)
    try:
        with _no_warnings():
            picture = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large ({error}): {_how_to_shrink()}") from error
    except UnidentifiedImageError as error:
        file.seek(0)
        kind = kind_of(file.read(HEAD_BYTES))
        raise InputError(f"{name} is {kind}: expected {EXPECTED}; convert it, or use a whole copy") from error
    except Exception as error:  # Pillow's plugins raise errors of many kinds on damaged headers
        raise InputError(f"{name} is not a whole image ({error}): use an undamaged copy") from error
    with picture:
        return _to_rgb(picture, name, size)


def _from_pil(picture: Image.Image) -> NDArray[np.uint8]:
    name = "the PIL image"
    if not isinstance(picture, ImageFile.ImageFile):
        _check_size(*picture.size, 0, name)
        return _decoded(picture, name)
    if picture.format not in DECODED:
        raise InputError(
            f"{name} is opened from a {picture.format} file: expected {EXPECTED}, or an image of no "
            "file; hand over a copy, as image.copy() makes one"
        )
    # Not drafted: that would change an object that is not ours. Without tiles it is decoded, unless a WebP.
    waiting = bool(picture.tile) or picture.format == "WEBP"
    _check_size(*picture.size, _cost(picture, 0, 1, name) if waiting else 0, name)
    return _decoded(picture, name)


def _to_rgb(picture: ImageFile.ImageFile, name: str, file_bytes: int) -> NDArray[np.uint8]:
    width, height = picture.size

    def fits(scale: int) -> bool:
        return _fits(-(-width // scale), -(-height // scale), _cost(picture, file_bytes, scale, name))

    scale = next(filter(fits, (1, 2, 4, 8) if picture.format in JPEG else (1,)), 1)
    if scale > 1:
        picture.draft(None, (max(1, width // scale), max(1, height // scale)))
    _check_size(*picture.size, 0 if scale > 1 else _cost(picture, file_bytes, 1, name), name)
    return _decoded(picture, name)


def _cost(picture: ImageFile.ImageFile, file_bytes: int, scale: int, name: str) -> int:
    try:
        with _no_warnings():
            return decoding_bytes(picture, file_bytes, scale)
    except Exception as error:  # fields of the header that are none
        raise InputError(f"{name} is not a whole image ({error}): use an undamaged copy") from error


def _decoded(picture: Image.Image, name: str) -> NDArray[np.uint8]:
    try:
        # TIFF reads its fields only now, and warns of them; the others need not wait for each other.
        with _no_warnings() if picture.format == "TIFF" else nullcontext():
            picture.load()
        return rgb(picture, _orientation(picture))
    except Exception as error:  # as above, of damaged data; most often OSError "image file is truncated"
        raise InputError(
            f"{name} cannot be decoded ({error}): it is truncated or damaged; use an undamaged copy"
        ) from error


def _orientation(picture: Image.Image) -> int:
    try:
        with _no_warnings():
            found = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # the pixels are whole all the same
        return 1
    return found if isinstance(found, int) else 1


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Pillow warns of large images, whose limit here is the lower one, and of damage that costs nothing."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _from_array(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    grey = array.ndim == 2
    if array.dtype != np.uint8 or not (grey or (array.ndim == 3 and array.shape[2] == 3)):
        raise InputError(
            f"the image's array is {array.dtype} {list(array.shape)}: expected uint8 [height, width, 3] in "
            "RGB or uint8 [height, width]; convert it first"
        )
    _check_size(array.shape[1], array.shape[0], 0, "the image's array")
    return np.repeat(array[:, :, None], 3, axis=2) if grey else np.ascontiguousarray(array)


def _fits(width: int, height: int, decoding: int) -> bool:
    return width * height <= MAX_PIXELS and decoding <= MAX_DECODING_BYTES


def _check_size(width: int, height: int, decoding: int, name: str) -> None:
    if width < 1 or height < 1:
        raise InputError(
            f"{name} has no pixels ({width} x {height}): expected at least 1 x 1; use another one"
        )
    if not _fits(width, height, decoding):
        cost = f", {decoding} bytes to decode it" if decoding else ""
        raise InputError(f"{name} is too large ({width} x {height} pixels{cost}): {_how_to_shrink()}")


def _how_to_shrink() -> str:
    return (
        f"expected at most {MAX_PIXELS} pixels in all, {MAX_DECODING_BYTES} bytes to decode them and "
        f"{MAX_FILE_BYTES} in the file; shrink or crop it first"
    )
