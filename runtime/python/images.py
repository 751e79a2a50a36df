"""Pictures, from wherever they come, as RGB arrays."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from edgeprune.errors import InputError

Picture: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[np.uint8]"

# 67 megapixels: above the 50 of today's large camera sensors, and 0.2 GB as RGB, which the smallest board
# that runs a vision-language model can spare. A crafted file of some kB can claim far more.
MAX_PIXELS = 1 << 26


def load_image(source: Picture) -> NDArray[np.uint8]:
    """Reads a picture.

    The EXIF orientation is applied, transparency is blended onto white, and every other mode (palette,
    greyscale, CMYK, ...) becomes RGB, as Hugging Face's `load_image` and `do_convert_rgb` do. Of an
    animation, the first frame is read.

    Args:
        source: a path, an encoded file's bytes, a binary file object, a PIL image, or an array uint8
            [H, W, 3] (RGB) or [H, W] (grey). Objects handed in are left as they are.

    Returns:
        uint8 [H, W, 3]. It may share memory with an array that was handed in.

    Raises:
        InputError: the file is missing or unreadable, is not an image, is truncated, has no pixels or more
            than `MAX_PIXELS` (found out before anything is decoded), or the array has another shape or dtype.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the PIL image")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(source), "the bytes handed in")
    if isinstance(source, (str, os.PathLike)):
        with _opened(source) as file:
            return _decode(file, os.fspath(source))
    if hasattr(source, "read"):
        return _decode(source, f"the file object {getattr(source, 'name', type(source).__name__)}")
    raise InputError(
        f"a picture of type {type(source).__name__} is not supported: expected a path, bytes, a binary file "
        "object, a PIL image or a uint8 array"
    )


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    name = os.fspath(path)
    if name.startswith(("http://", "https://", "data:")):
        raise InputError(f"the picture {name[:80]} is not a local file: download it first and give its path")
    if Path(path).is_dir():
        raise InputError(f"the picture {name} is a folder: give the path of an image file")
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below; only the opening's errors are caught here
    except FileNotFoundError as error:
        raise InputError(f"there is no picture {name}: check the path") from error
    except (OSError, ValueError) as error:
        raise InputError(f"the picture {name} cannot be read ({error}): check its path and rights") from error
    with file:
        yield file


def _decode(file: BinaryIO, name: str) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures from its own limit on; the limit here is the lower one.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(file)
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large ({error}): {_how_to_shrink()}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not an image: expected JPEG, PNG, WebP or the like") from error
    except Exception as error:  # Pillow's plugins raise errors of many kinds on damaged headers
        raise InputError(f"{name} is not a whole image ({error}): use an undamaged copy") from error
    with picture:
        return _to_rgb(picture, name)


def _to_rgb(picture: Image.Image, name: str) -> NDArray[np.uint8]:
    # The header alone gives the size, so that nothing is decoded before it is judged.
    _check_size(*picture.size, name)
    try:
        upright = ImageOps.exif_transpose(picture)
        if "A" in upright.getbands() or upright.info.get("transparency") is not None:
            layer = upright.convert("RGBA")
            white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
            upright = Image.alpha_composite(white, layer)
        return np.array(upright.convert("RGB"))
    except Exception as error:  # as above, of damaged data; most often OSError "image file is truncated"
        raise InputError(
            f"{name} cannot be decoded ({error}): it is truncated or damaged; use an undamaged copy"
        ) from error


def _from_array(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    grey = array.ndim == 2
    if array.dtype != np.uint8 or not (grey or (array.ndim == 3 and array.shape[2] == 3)):
        raise InputError(
            f"the picture's array is {array.dtype} {list(array.shape)}: expected uint8 [height, width, 3] in "
            "RGB or uint8 [height, width]; convert it first"
        )
    _check_size(array.shape[1], array.shape[0], "the picture's array")
    return np.repeat(array[:, :, None], 3, axis=2) if grey else np.ascontiguousarray(array)


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise InputError(
            f"{name} has no pixels ({width} x {height}): expected at least 1 x 1; use another one"
        )
    if width * height > MAX_PIXELS:
        raise InputError(f"{name} is too large ({width} x {height} pixels): {_how_to_shrink()}")


def _how_to_shrink() -> str:
    return f"expected at most {MAX_PIXELS} pixels in all; shrink or crop it first"
