"""Resizing with the same bytes everywhere: width first, then height, 8 bits between the two.

That is the order of Pillow up to 12.3, and of the processors that published models were trained with. Pillow
13 takes the height first where that shrinks more, which gives other bytes. So the two are two calls here.
They also make it possible to resize in bands, and of the padding and of what a crop cuts off nothing at all,
with the very same result: a letterboxed square (3 GB for a side of 2^15) never exists.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeprune.errors import InputError
from edgeprune.runtime.images import MAX_PIXELS

# An image with a longer side is not letterboxed: the square would have over 2^30 pixels, seconds of work
# for a strip that is hardly a pixel thin in the end.
MAX_LETTERBOX_SIDE = 1 << 15
_BAND_PIXELS = 1 << 22


def resize(
    image: NDArray[np.uint8],
    target: tuple[int, int],
    resample: int,
    *,
    canvas: tuple[int, int] | None = None,
    color: tuple[int, int, int] = (0, 0, 0),
    crop: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """An image centred on a canvas, resized, and cropped to its middle.

    Args:
        image: uint8 [H, W, 3].
        target: (height, width) that the canvas is resized to.
        resample: Pillow's number of the filter.
        canvas: (height, width) around the image, filled with `color`; None for the image's own size.
        color: red, green, blue.
        crop: (height, width) of the middle that is returned, black where it is larger; None for all.

    Returns:
        uint8 [h, w, 3], (h, w) being `crop`, or else `target`.

    Raises:
        InputError: the image is so large or elongated that what lies between would be huge.
    """
    height, width = image.shape[:2]
    full = canvas or (height, width)
    letterbox = full != (height, width)
    if letterbox and max(full) > MAX_LETTERBOX_SIDE:
        raise InputError(
            f"the image is {width} x {height} pixels: expected at most {MAX_LETTERBOX_SIDE} on the longer "
            "side, as the model pads images to a square; shrink or crop it first"
        )
    for between in (target, (full[0], target[1])):
        if between[0] * between[1] > MAX_PIXELS:
            raise InputError(
                f"the image is {width} x {height} pixels and would become {between[1]} x {between[0]} on "
                f"its way into the model: expected at most {MAX_PIXELS} pixels; crop it to a less elongated "
                "shape first"
            )
    crop = crop or target
    (rows, rows_at), (columns, columns_at) = map(_window, target, crop)
    narrow = _rows_resized(image, full, color if letterbox else None, target[1], columns, resample)
    result = np.zeros((*crop, 3), dtype=np.uint8)
    result[rows_at, columns_at] = _columns_resized(narrow, target[0], rows, resample)
    return result


def _window(have: int, want: int) -> tuple[slice, slice]:
    """The middle `want` of `have` pixels, and its place in a black image where those are fewer."""
    # Floor division also below zero: of an odd difference, the larger half comes first when padding.
    start = (have - want) // 2
    length = min(have, want)
    return slice(max(start, 0), max(start, 0) + length), slice(max(-start, 0), max(-start, 0) + length)


def _rows_resized(
    image: NDArray[np.uint8],
    full: tuple[int, int],
    color: tuple[int, int, int] | None,
    width: int,
    keep: slice,
    resample: int,
) -> NDArray[np.uint8]:
    """The image, centred in one of the size `full` and of this colour, its rows resized to `width`.

    Of the columns, only those in `keep` are returned.
    """
    (height, own), side = image.shape[:2], full[1]
    top, left = (full[0] - height) // 2, (side - own) // 2
    rows = np.empty((full[0], keep.stop - keep.start, 3), dtype=np.uint8)
    if color is not None:
        rows[:] = color
    step = min(height, max(1, _BAND_PIXELS // max(side, width)))
    band = np.empty((step, side, 3), dtype=np.uint8)
    band[:] = color or 0
    for start in range(0, height, step):
        part = image[start : start + step]
        if color is not None:
            band[: len(part), left : left + own] = part
            part = band[: len(part)]
        resized = _pillow_resize(part, (len(part), width), resample)
        rows[top + start : top + start + len(part)] = resized[:, keep]
    return rows


def _columns_resized(image: NDArray[np.uint8], height: int, keep: slice, resample: int) -> NDArray[np.uint8]:
    """The image with its columns resized to `height`; of the rows, only those in `keep`."""
    have, width = image.shape[:2]
    columns = np.empty((keep.stop - keep.start, width, 3), dtype=np.uint8)
    step = max(1, _BAND_PIXELS // max(have, height))
    for start in range(0, width, step):
        part = np.ascontiguousarray(image[:, start : start + step])
        columns[:, start : start + step] = _pillow_resize(part, (height, part.shape[1]), resample)[keep]
    return columns


def _pillow_resize(image: NDArray[np.uint8], size: tuple[int, int], resample: int) -> NDArray[np.uint8]:
    """One of `size` is the image's own: of two that change, Pillow's versions disagree on the order."""
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling(resample)))
