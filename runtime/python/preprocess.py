"""From a picture to the vision tower's input.

The steps of Hugging Face's image processors for CLIP, SigLIP and LLaVA (their Pillow variants) without
torch or transformers, with the same integer roundings, so that pixel values agree to float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import InputError
from edgeprune.manifest import Preprocessing
from edgeprune.runtime.resizing import resize


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
    """The picture letterboxed, resized and cropped as `spec` says."""
    height, width = image.shape[:2]
    full = (max(height, width),) * 2 if spec.pad_to_square else (height, width)
    target = _target_size(*full, spec) or full
    return resize(image, target, spec.resample, canvas=full, color=spec.pad_color, crop=spec.center_crop)


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
