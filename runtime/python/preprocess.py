"""From a picture to the vision tower's input.

The steps of Hugging Face's image processors for CLIP, SigLIP and LLaVA (their Pillow variants) without
torch or transformers, with the same integer roundings, so that pixel values agree to float32.
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
    if spec.center_crop is not None:
        pixels = _center_cropped(pixels, spec.center_crop)
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
    if target[0] * target[1] > MAX_PIXELS:
        raise InputError(
            f"the picture is {width} x {height} pixels and would become {target[1]} x {target[0]} on its way "
            f"into the model: expected at most {MAX_PIXELS} pixels; crop it to a less elongated shape first"
        )
    if letterbox:
        return _letterboxed(image, spec.pad_color, target, spec.resample)
    return _pillow_resize(image, target, spec.resample)


def _letterboxed(
    image: NDArray[np.uint8], color: tuple[int, int, int], size: tuple[int, int], resample: int
) -> NDArray[np.uint8]:
    """The picture, centred in a square of `color`, resized to `size`.

    Pillow resizes the rows first and then the columns, each on its own and with bytes between the two. So
    the rows can be resized in bands and the padding rows skipped, with the very same result, while the
    square itself (3 GB for a side of 2^15) never exists.
    """
    height, width = image.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    rows = np.empty((side, size[1], 3), dtype=np.uint8)
    rows[:] = color
    step = min(height, max(1, _BAND_PIXELS // side))
    band = np.empty((step, side, 3), dtype=np.uint8)
    band[:] = color
    for start in range(0, height, step):
        part = image[start : start + step]
        band[: len(part), left : left + width] = part
        resized = _pillow_resize(band[: len(part)], (len(part), size[1]), resample)
        rows[top + start : top + start + len(part)] = resized
    return _pillow_resize(rows, size, resample)


def _pillow_resize(image: NDArray[np.uint8], size: tuple[int, int], resample: int) -> NDArray[np.uint8]:
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling(resample)))


def _center_cropped(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The middle of a picture; black is added around where it is smaller than `size`."""
    result = np.zeros((*size, 3), dtype=np.uint8)
    source, target = [], []
    for have, want in zip(image.shape[:2], size, strict=True):
        # Floor division also below zero: of an odd difference, the larger half comes first when padding.
        start = (have - want) // 2
        length = min(have, want)
        source.append(slice(max(start, 0), max(start, 0) + length))
        target.append(slice(max(-start, 0), max(-start, 0) + length))
    result[tuple(target)] = image[tuple(source)]
    return result


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
