"""Image programs, carried out: from an image to the vision graph's input.

The steps of Hugging Face's image processors (their Pillow variants) without torch or transformers, with the
same integer roundings, so that pixel values agree to float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import InputError
from edgeprune.image_program import CutCrops, ImageProgram, Letterbox, PatchFeed, PixelValues
from edgeprune.image_sizes import BestCanvas
from edgeprune.layout import ImageLayout
from edgeprune.runtime.resizing import resize
from edgeprune.vision_inputs import windows_of

Floats: TypeAlias = NDArray[np.float32] | NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class ImageInputs:
    """An image as the vision graph wants it.

    Attributes:
        pixel_values: float32 or float16, [tiles, 3, h, w], (h, w) being the program's `feed.size`; or, of a
            program that feeds patches, [visual tokens, patches of a square, values of a patch].
        layout: its visual tokens. Tiles are its blocks in order.
    """

    pixel_values: Floats
    layout: ImageLayout


def run_program(
    image: NDArray[np.uint8], program: ImageProgram, dtype: type[np.float32 | np.float16] = np.float32
) -> ImageInputs:
    """Carries out a program on an image.

    Args:
        image: uint8 [H, W, 3] in RGB, as `load_image` gives it.
        program: of the image, see `ImageProgram.of_prompt`.
        dtype: of the pixel values; float16 are those of float32, each rounded to the nearest.

    Raises:
        InputError: not such an array, or so elongated that an intermediate image would be huge.
    """
    tiles = image_tiles(image, program)
    # Rescaling and normalising are functions of one byte: a table per channel gives the same floats.
    table = cast(Floats, _table(program.pixels).astype(dtype))
    layout = program.layout(image.shape[1], image.shape[0])
    if isinstance(program.feed, PatchFeed):
        return ImageInputs(_patches([tiles[0]], table, program.feed, program.unit[0]), layout)
    return ImageInputs(_tiles(tiles, table), layout)


def run_frames(
    frames: Iterable[NDArray[np.uint8]],
    program: ImageProgram,
    dtype: type[np.float32 | np.float16] = np.float32,
) -> Floats:
    """Carries out a program on the frames of a video, one at a time.

    Args:
        frames: uint8 [H, W, 3] in RGB, all of one size, at least one.
        program: of each, see `VideoProgram.frame_program`.
        dtype: as for `run_program`.

    Returns:
        Their pixel values, as the vision graph reads them: tile by tile, or square by square. The last frame
        is repeated where patches hold several.

    Raises:
        InputError: as `run_program`.
    """
    table = cast(Floats, _table(program.pixels).astype(dtype))
    found: list[Floats] = []
    held: list[NDArray[np.uint8]] = []
    feed = program.feed
    for frame in frames:
        tiles = image_tiles(frame, program)
        if not isinstance(feed, PatchFeed):
            found.append(_tiles(tiles, table))
            continue
        held.append(tiles[0])
        if len(held) == feed.frames:
            found.append(_patches(held, table, feed, program.unit[0]))
            held = []
    if held and isinstance(feed, PatchFeed):
        held += [held[-1]] * (feed.frames - len(held))
        found.append(_patches(held, table, feed, program.unit[0]))
    return cast(Floats, np.concatenate(found))


def _tiles(tiles: NDArray[np.uint8], table: Floats) -> Floats:
    return np.stack([table[color][tiles[..., color]] for color in range(3)], axis=1)


def image_tiles(image: NDArray[np.uint8], program: ImageProgram) -> NDArray[np.uint8]:
    """What the vision graph sees of an image, the colours as they were.

    Args:
        image: uint8 [H, W, 3] in RGB.
        program: of the bundle.

    Returns:
        uint8 [tiles, h, w, 3], (h, w) being the program's `feed.size`; the whole resized image, [1, h, w, 3],
        of a program that feeds patches.

    Raises:
        InputError: as `run_program`.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(
            f"the image's array is {image.dtype} {list(image.shape)}: expected uint8 [height, width, 3]; "
            "load_image makes one"
        )
    resized = _resized(image, program)
    if program.cut is None:
        return resized[None]
    if isinstance(program.cut, CutCrops):
        boxes = program.cut.boxes(image.shape[1], image.shape[0])
        crops = [image[top:bottom, left:right] for top, left, bottom, right in boxes]
        # Of an image that is not cut the one crop is the image.
        return np.stack([resized, *(_resized(crop, program) for crop in (crops if len(crops) > 1 else []))])
    height, width = program.unit
    rows, columns = resized.shape[0] // height, resized.shape[1] // width
    tiles = resized.reshape(rows, height, columns, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)
    if program.cut.thumbnail is None or (len(tiles) == 1 and not program.cut.always):
        return tiles
    of_image = program.cut.thumbnail_of == "image"
    small = (
        _step(image, program, program.unit, first=True)
        if of_image
        else _step(resized, program, program.unit, first=False)
    )
    parts = [tiles, small[None]] if program.cut.thumbnail == "last" else [small[None], tiles]
    return np.concatenate(parts)


def _resized(image: NDArray[np.uint8], program: ImageProgram) -> NDArray[np.uint8]:
    """The image after fit, sizes and crop."""
    height, width = image.shape[:2]
    targets = program.targets(width, height) or [program.canvas(width, height)]
    if program.best_canvas is not None:
        top, left, high, wide = BestCanvas.placed(height, width, targets[0])
        canvas = np.zeros((*targets[0], 3), dtype=np.uint8)
        canvas[top : top + high, left : left + wide] = resize(image, (high, wide), program.pixels.resample)
        return canvas
    for number, target in enumerate(targets):
        last = number == len(targets) - 1
        image = _step(image, program, target, first=number == 0, crop=program.crop if last else None)
    return image


def _step(
    image: NDArray[np.uint8],
    program: ImageProgram,
    target: tuple[int, int],
    *,
    first: bool,
    crop: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """One resizing; the first one starts from the square that the image is fitted to."""
    fit, resample = program.fit, program.pixels.resample
    if first and isinstance(fit, Letterbox):
        canvas = program.canvas(image.shape[1], image.shape[0])
        return resize(image, target, resample, canvas=canvas, color=fit.color, crop=crop)
    return resize(image, target, resample, crop=crop)


def _patches(images: Sequence[NDArray[np.uint8]], table: Floats, feed: PatchFeed, square: int) -> Floats:
    """Squares of patches, window by window: [tokens, patches of a square, 3 * frames * size * size], of
    images, uint8 [height, width, 3], that are whole squares of so many pixels, by a table of values [3, 256].

    One image stands for all frames of a patch; else there are as many.
    """
    side = square // feed.size
    rows, columns = images[0].shape[0] // square, images[0].shape[1] // square
    order = np.concatenate(windows_of((rows, columns), feed.window))
    values = np.empty((len(order), side * side, 3, feed.frames, feed.size**2), dtype=table.dtype)
    for number, image in enumerate(images):
        parts = image.reshape(rows, side, feed.size, columns, side, feed.size, 3)
        parts = parts.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, side * side, 3, feed.size**2)
        parts = parts[order]
        # Of one image all frames; else the frame of this number.
        frame = slice(None) if len(images) == 1 else slice(number, number + 1)
        for color in range(3):
            values[:, :, color, frame] = table[color][parts[:, :, color]][:, :, None]
    return values.reshape(len(order), side * side, -1)


def _table(pixels: PixelValues) -> NDArray[np.float32]:
    """float32 [3, 256]: the value of each byte in each channel, computed as Hugging Face computes it."""
    values = np.arange(256, dtype=np.float64)
    if pixels.rescale_factor is not None:
        values = values * pixels.rescale_factor
    table = np.broadcast_to(values.astype(np.float32), (3, 256))
    if pixels.mean is not None and pixels.std is not None:
        mean, std = np.array(pixels.mean, dtype=np.float32), np.array(pixels.std, dtype=np.float32)
        table = (table - mean[:, None]) / std[:, None]
    return table
