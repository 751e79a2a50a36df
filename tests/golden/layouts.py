"""Image programs and what they make of images of several sizes, all in whole numbers."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from edgeprune.debias.curves import Coordinate
from edgeprune.debias.masks import PaddingMask
from edgeprune.image_program import (
    AmongSeveral,
    CutCrops,
    CutTiles,
    GridTokens,
    ImageProgram,
    ImageText,
    Letterbox,
    PackedTokens,
    PixelValues,
    TileFeed,
)
from edgeprune.image_sizes import (
    AspectTiles,
    BestCanvas,
    FixedSize,
    LongestEdge,
    ShortestEdge,
    TileMultiples,
)
from edgeprune.layout import PromptLayout
from edgeprune.runtime.programs import image_tiles
from edgeprune.vision_inputs import vision_inputs

_FEED, _TOKENS = TileFeed(height=16, width=16), GridTokens(rows=4, columns=4)
PROGRAMS = {
    "shortest edge and crop": ImageProgram(
        sizes=(ShortestEdge(edge=18),), crop=(16, 16), feed=_FEED, tokens=_TOKENS
    ),
    "letterbox": ImageProgram(
        fit=Letterbox(color=(122, 116, 104)),
        sizes=(FixedSize(height=16, width=16),),
        pixels=PixelValues(resample=2),
        feed=_FEED,
        tokens=_TOKENS,
    ),
    "tiles in the image's shape": ImageProgram(
        sizes=(AspectTiles(most=6),),
        cut=CutTiles(thumbnail="last"),
        feed=_FEED,
        tokens=_TOKENS,
        text=ImageText(prefix="<img>", suffix="</img>"),
    ),
    "whole tiles": ImageProgram(
        sizes=(LongestEdge(edge=50, even=True, limit=60), TileMultiples()),
        cut=CutTiles(thumbnail="first", thumbnail_of="resized"),
        pixels=PixelValues(resample=1),
        feed=_FEED,
        tokens=_TOKENS,
        text=ImageText(
            tile="<row_{row}_col_{column}>",
            row_end="\n",
            thumbnail="<global>",
            whole="<whole>",
            suffix="<end>",
        ),
    ),
    "letterboxed tiles": ImageProgram(
        fit=Letterbox(),
        sizes=(ShortestEdge(edge=32),),
        cut=CutTiles(),
        pixels=PixelValues(resample=0),
        feed=_FEED,
        tokens=_TOKENS,
    ),
    "tiles put together": ImageProgram(
        sizes=(BestCanvas(canvases=((16, 16), (16, 32), (32, 16), (48, 48), (16, 80))),),
        cut=CutTiles(thumbnail="first", always=True),
        feed=_FEED,
        tokens=PackedTokens(rows=4, columns=4, most=2),
        several=AmongSeveral(fit=Letterbox(color=(1, 2, 3)), sizes=(FixedSize(height=16, width=16),)),
    ),
    "put together, in all their tokens": ImageProgram(
        sizes=(BestCanvas(canvases=((16, 32), (32, 16), (32, 32))),),
        cut=CutTiles(),
        feed=_FEED,
        tokens=PackedTokens(rows=4, columns=4),
    ),
}
PROGRAMS["crops"] = ImageProgram(
    sizes=(FixedSize(height=16, width=16),),
    cut=CutCrops(ratio=1.2, least=6, most=3),
    feed=_FEED,
    tokens=_TOKENS,
    text=ImageText(thumbnail="<whole>", first="<first>", tile="<crop>", whole="<only>", suffix="<end>"),
)
PROGRAMS["one of several"] = PROGRAMS["tiles put together"].of_prompt(2)
# (width, height)
SIZES = ((16, 16), (40, 17), (13, 31), (7, 100), (97, 33), (1, 1))
CURVE_PLACES: tuple[tuple[Coordinate, int], ...] = (("image", 11), ("block", 11), ("row", 7), ("cell", 9))


def gradient(width: int, height: int) -> np.ndarray:
    """An image that needs no file, uint8 [height, width, 3]: (7 x + 13 y + 50 c) mod 256, c the channel."""
    row, column, channel = np.ogrid[:height, :width, :3]
    return ((7 * column + 13 * row + 50 * channel) % 256).astype(np.uint8)


def layout_case(name: str, program: ImageProgram, width: int, height: int) -> dict[str, Any]:
    """What a program makes of a gradient."""
    layout = program.layout(width, height)
    prompt = PromptLayout((layout,))
    tiles = image_tiles(gradient(width, height), program)
    masks = [PaddingMask(kind="share", threshold=0.5), PaddingMask(kind="share", threshold=0.01)]
    if name == "letterbox":
        masks.append(PaddingMask(kind="bilinear", threshold=0.5))
    packed = vision_inputs(program, [layout])
    return {
        **{f"{key}_sha256": hashlib.sha256(value.tobytes()).hexdigest() for key, value in packed.items()},
        "name": name,
        "width": width,
        "height": height,
        "targets": [list(target) for target in program.targets(width, height)],
        "tile_grid": list(program.tile_grid(width, height)),
        "tiles_sha256": hashlib.sha256(tiles.tobytes()).hexdigest(),
        "pieces": list(layout.pieces),
        "padding_masks": [
            {**mask.model_dump(), "valid": prompt.valid(mask).astype(int).tolist()} for mask in masks
        ],
        "curve_places": [
            {"places": count, "coordinate": coordinate, "of": prompt.places(count, coordinate).tolist()}
            for coordinate, count in CURVE_PLACES
        ],
    }


def layout_cases() -> list[dict[str, Any]]:
    """Every program with every size; the first case of a program holds the program itself."""
    found = []
    for name, program in PROGRAMS.items():
        for number, size in enumerate(SIZES):
            case = layout_case(name, program, *size)
            found.append({**case, "image_program": program.model_dump(mode="json")} if number == 0 else case)
    return found
