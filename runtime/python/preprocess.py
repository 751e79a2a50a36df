"""From a picture to the vision tower's input.

The steps of Hugging Face's image processors for CLIP, SigLIP and LLaVA (their Pillow variants) without
torch or transformers, with the same integer roundings, so that pixel values agree to float32. Where Pillow's
versions resize in different orders, ours is always the older one: width first, then height.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeprune.errors import InputError
from edgeprune.manifest import Preprocessing
from edgeprune.runtime.images import MAX_PIXELS

# A picture with a longer side is not letterboxed: the square would have over 2^30 pixels, seconds of work
# for a strip that is hardly a pixel thin in the end.
MAX_LETTERBOX_SIDE = 1 << 15
_BAND_PIXELS = 1 << 22


def preprocess(image: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.float32]:
    """A picture as the vision tower wants it.

    Args:
        image: uint8 [H, W, 3] in RGB, as `load_image` gives it.
        spec: the bundle's preprocessing.

    Returns:
        float32 [3, h, w] with (h, w) = `spec.image_size`.

    Raises:
        InputError: not such an array, or so elongated that an intermediate picture would be huge.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(
            f"the picture's array is {image.dtype} {list(image.shape)}: expected uint8 [height, width, 3]; "
            "load_image makes one"
        )
    pixels = _resized(image, spec)
    # Rescaling and normalising are functions of one byte: a table per channel gives the same floats.
    table = _table(spec)
    return np.stack([table[channel][pixels[:, :, channel]] for channel in range(3)])


def _target_size(height: int, width: int, spec: Preprocessing) -> tuple[int, int] | None:
    """(height, width) after resizing, or None where nothing is resized. The long edge is cut, not rounded."""
    if spec.resize_to is not None:
        return spec.resize_to
    edge = spec.resize_shortest_edge
    if edge is None:
        return None
    return (edge, int(edge * width / height)) if height < width else (int(edge * height / width), edge)


def _resized(image: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.uint8]:
    """The picture letterboxed, resized and cropped as `spec` says.

    Resizing goes width first, then height, each on its own and with bytes between the two: the order of
    Pillow up to 12.3, and of the processors that published models were trained with. Pillow 13 takes the
    height first where that shrinks more, which gives other bytes. So the two are two calls here. They also
    make it possible to resize in bands, and of the padding and of what the crop cuts off nothing at all,
    with the very same result: the letterboxed square (3 GB for a side of 2^15) never exists.
    """
    height, width = image.shape[:2]
    side = max(height, width)
    letterbox = spec.pad_to_square and height != width
    if letterbox and side > MAX_LETTERBOX_SIDE:
        raise InputError(
            f"the picture is {width} x {height} pixels: expected at most {MAX_LETTERBOX_SIDE} on the longer "
            "side, as the model pads pictures to a square; shrink or crop it first"
        )
    full = (side, side) if letterbox else (height, width)
    target = _target_size(*full, spec) or full
    for between in (target, (full[0], target[1])):
        if between[0] * between[1] > MAX_PIXELS:
            raise InputError(
                f"the picture is {width} x {height} pixels and would become {between[1]} x {between[0]} on "
                f"its way into the model: expected at most {MAX_PIXELS} pixels; crop it to a less elongated "
                "shape first"
            )
    crop = spec.center_crop or target
    (rows, rows_at), (columns, columns_at) = map(_window, target, crop)
    color = spec.pad_color if letterbox else None
    narrow = _rows_resized(image, full, color, target[1], columns, spec.resample)
    result = np.zeros((*crop, 3), dtype=np.uint8)
    result[rows_at, columns_at] = _columns_resized(narrow, target[0], rows, spec.resample)
    return result


def _window(have: int, want: int) -> tuple[slice, slice]:
    """The middle `want` of `have` pixels, and its place in a black picture where those are fewer."""
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
    """The picture, centred in one of the size `full` and of this colour, its rows resized to `width`.

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
    """The picture with its columns resized to `height`; of the rows, only those in `keep`."""
    have, width = image.shape[:2]
    columns = np.empty((keep.stop - keep.start, width, 3), dtype=np.uint8)
    step = max(1, _BAND_PIXELS // max(have, height))
    for start in range(0, width, step):
        part = np.ascontiguousarray(image[:, start : start + step])
        columns[:, start : start + step] = _pillow_resize(part, (height, part.shape[1]), resample)[keep]
    return columns


def _pillow_resize(image: NDArray[np.uint8], size: tuple[int, int], resample: int) -> NDArray[np.uint8]:
    """One of `size` is the picture's own: of two that change, Pillow's versions disagree on the order."""
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling(resample)))


def _table(spec: Preprocessing) -> NDArray[np.float32]:
    """float32 [3, 256]: the value of each byte in each channel, computed as Hugging Face computes it."""
    values = np.arange(256, dtype=np.float64)
    if spec.rescale_factor is not None:
        values = values * spec.rescale_factor
    table = np.broadcast_to(values.astype(np.float32), (3, 256))
    if spec.mean is not None and spec.std is not None:
        mean, std = np.array(spec.mean, dtype=np.float32), np.array(spec.std, dtype=np.float32)
        table = (table - mean[:, None]) / std[:, None]
    return table
