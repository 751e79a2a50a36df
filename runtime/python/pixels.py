"""From a PIL image to RGB bytes, without holding more of it at once than must be."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeprune.log import note

_WHITE = (255, 255, 255, 255)
# Images are turned into RGB in bands of so many pixels.
_BAND_PIXELS = 1 << 20
# Below so many levels of 65536 a grey image is as good as black.
_DARK = 1 << 12


def rgb(picture: Image.Image, orientation: int) -> NDArray[np.uint8]:
    """The pixels of a decoded image.

    Transparency is blended onto white. Grey of more than 8 bits becomes 8 bits as viewers show it: 16 bits
    by their upper byte, so that 65535 is white (as Pillow does with 16-bit RGB); 32-bit integers and floats,
    which have no white of their own, from their smallest value (black) to their largest (white), what is
    not a number being black. Every other mode goes by Pillow's `convert("RGB")`.

    Args:
        image: decoded; it is not changed.
        orientation: EXIF's number, 1 to 8; any other counts as 1.

    Returns:
        uint8 [H, W, 3], upright.
    """
    width, height = picture.size
    sideways = orientation in (5, 6, 7, 8)
    result = np.empty((width, height, 3) if sideways else (height, width, 3), dtype=np.uint8)
    stored = _as_stored(result, orientation)
    convert = _converter(picture)
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        band = picture if bottom - top == height else picture.crop((0, top, width, bottom))
        stored[top:bottom] = convert(band)
    return result


def _as_stored(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """A view of the upright image that lies as the image is stored."""
    turned = upright.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else upright
    down, across = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (-1, 1), 7: (-1, -1), 8: (1, -1)}.get(
        orientation, (1, 1)
    )
    return turned[::down, ::across]


def _converter(picture: Image.Image) -> Any:
    """What makes uint8 [h, w, 3] or [h, w, 1] of a band of this image."""
    key = picture.info.get("transparency")
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
        if _range(picture)[1] < _DARK:
            note(
                "a 16-bit grey image uses the darkest sixteenth of its range alone and is read as that "
                "dark: scale its values to 0..65535 first where they mean something brighter"
            )
        return lambda band: _upper_byte(np.asarray(band), key)
    if picture.mode in ("I", "F"):
        low, high = _range(picture)
        return lambda band: _stretched(np.asarray(band), low, high)
    if picture.mode == "La":  # grey times alpha, which Pillow converts to nothing but grey beside alpha
        return lambda band: _blended(band.convert("LA"))
    if "A" in picture.getbands() or key is not None:
        return _blended
    return lambda band: np.asarray(band if band.mode == "RGB" else band.convert("RGB"))


def _blended(band: Image.Image) -> NDArray[np.uint8]:
    white = Image.new("RGBA", band.size, _WHITE)
    return np.asarray(Image.alpha_composite(white, band.convert("RGBA")).convert("RGB"))


def _upper_byte(values: NDArray[Any], key: Any) -> NDArray[np.uint8]:
    grey = (values >> 8).astype(np.uint8)
    if isinstance(key, int):
        grey[values == key] = 255
    return grey[:, :, None]


def _range(picture: Image.Image) -> tuple[float, float]:
    """The smallest and the largest finite value."""
    width, height = picture.size
    rows = max(1, _BAND_PIXELS // width)
    low, high = np.inf, -np.inf
    for top in range(0, height, rows):
        values = np.asarray(picture.crop((0, top, width, min(top + rows, height))))
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return low, high


def _stretched(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    if not high > low:
        return np.zeros((*values.shape, 1), dtype=np.uint8)
    share = (np.clip(values.astype(np.float64), low, high) - low) / (high - low)
    return np.rint(np.nan_to_num(share) * 255).astype(np.uint8)[:, :, None]
