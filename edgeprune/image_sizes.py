"""Size steps: the size that an image is resized to, as a rule that goes by the size it has.

Floats are computed in the order in which the published processors compute them: another order rounds
otherwise.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from edgeprune.errors import InputError
from edgeprune.fields import Flag, Part, Pixels

# Published models cut an image into some 40 tiles; keeps a wrong number from asking for all memory.
MOST_TILES = 256
Tiles = Annotated[int, Field(strict=True, ge=1, le=MOST_TILES)]
Area = Annotated[int, Field(strict=True, ge=1, le=1 << 30)]
# As the published processors of such models have it.
MOST_ELONGATED = 200


class _SizeStep(Part):
    """A rule for the next size."""

    def target(self, height: int, width: int, tile: tuple[int, int]) -> tuple[int, int]:
        """The next (height, width), from the one before and that of a tile, in pixels."""
        raise NotImplementedError


class FixedSize(_SizeStep):
    """Resize to this size."""

    kind: Literal["fixed"] = "fixed"
    height: Pixels
    width: Pixels

    def target(self, height: int, width: int, tile: tuple[int, int]) -> tuple[int, int]:
        return self.height, self.width


class ShortestEdge(_SizeStep):
    """Resize so that the shorter edge has this length; the longer one is cut to whole pixels."""

    kind: Literal["shortest_edge"] = "shortest_edge"
    edge: Pixels

    def target(self, height: int, width: int, tile: tuple[int, int]) -> tuple[int, int]:
        edge = self.edge
        return (edge, int(edge * width / height)) if height < width else (int(edge * height / width), edge)


class LongestEdge(_SizeStep):
    """Resize so that the longer edge has this length; the shorter one is cut to whole pixels.

    Attributes:
        edge: of the longer edge.
        even: whether an odd shorter edge grows by one.
        limit: where the longer edge is still longer than this, it is shortened to this likewise.
    """

    kind: Literal["longest_edge"] = "longest_edge"
    edge: Pixels
    even: Flag = False
    limit: Pixels | None = None

    @property
    def longest(self) -> int:
        """The longest that an edge becomes."""
        longest = self.edge + (self.edge % 2 if self.even else 0)
        return longest if self.limit is None else min(longest, self.limit)

    def target(self, height: int, width: int, tile: tuple[int, int]) -> tuple[int, int]:
        height, width = self._scaled(height, width, self.edge, self.even)
        if self.limit is not None and max(height, width) > self.limit:
            height, width = self._scaled(height, width, self.limit, even=False)
        return height, width

    @staticmethod
    def _scaled(height: int, width: int, edge: int, even: bool) -> tuple[int, int]:
        ratio = width / height
        short = int(edge / ratio) if width >= height else int(edge * ratio)
        short = max(short + (short % 2 if even else 0), 1)
        return (short, edge) if width >= height else (edge, short)


class AspectTiles(_SizeStep):
    """Resize to whole tiles, `least` to `most` of them, in rows and columns of nearly the image's shape.

    Of arrangements that come as near, the one with more tiles is taken as long as the image has over half as
    many pixels as its tiles.
    """

    kind: Literal["aspect_tiles"] = "aspect_tiles"
    least: Tiles = 1
    most: Tiles

    @model_validator(mode="after")
    def _some(self) -> AspectTiles:
        if self.least > self.most:
            raise ValueError(f"at least {self.least} tiles and at most {self.most}: there is no such number")
        return self

    def target(self, height: int, width: int, tile: tuple[int, int]) -> tuple[int, int]:
        grids = [
            (columns, rows)
            for columns in range(1, self.most + 1)
            for rows in range(1, self.most // columns + 1)
            if columns * rows >= self.least
        ]
        ratio, nearest, best = width / height, math.inf, (1, 1)
        for columns, rows in sorted(grids, key=math.prod):
            distance = abs(ratio - columns / rows)
            if distance < nearest:
                nearest, best = distance, (columns, rows)
            elif distance == nearest and width * height > 0.5 * tile[0] * tile[1] * columns * rows:
                best = (columns, rows)
        return best[1] * tile[0], best[0] * tile[1]


class TileMultiples(_SizeStep):
    """Resize both edges up to whole tiles: the longer edge first, then the shorter one in its proportion."""

    kind: Literal["tile_multiples"] = "tile_multiples"

    def target(self, height: int, width: int, tile: tuple[int, int]) -> tuple[int, int]:
        ratio = width / height
        if width >= height:
            width = whole_tiles(width, tile[1])
            height = whole_tiles(int(width / ratio), tile[0])
        else:
            height = whole_tiles(height, tile[0])
            width = whole_tiles(int(height * ratio), tile[1])
        return height, width


class PixelBudget(_SizeStep):
    """Resize both edges to whole tiles, in nearly the image's shape, to `least` to `most` pixels in all.

    Images more than `MOST_ELONGATED` times as long as wide are refused.
    """

    kind: Literal["pixel_budget"] = "pixel_budget"
    least: Area
    most: Area

    @model_validator(mode="after")
    def _some(self) -> PixelBudget:
        if self.least > self.most:
            raise ValueError(f"at least {self.least} pixels and at most {self.most}: there is no such number")
        return self

    def target(self, height: int, width: int, tile: tuple[int, int]) -> tuple[int, int]:
        if max(height, width) / min(height, width) > MOST_ELONGATED:
            raise InputError(
                f"the image has {width} x {height} pixels: expected one at most {MOST_ELONGATED} times as "
                "long as wide, as the model takes no other; crop it"
            )
        return within_budget(height, width, tile, self.least, self.most)

    def most_tiles(self, tile: int) -> int:
        """No image becomes more square tiles than this, whatever its shape; most become fewer."""
        # Beside the budget: one row of tiles, of the most elongated image; and what is rounded up to `least`,
        # along both edges, whose sum is the greatest for the most elongated image.
        row = tile * math.sqrt(MOST_ELONGATED * self.most)
        edges = math.sqrt(self.least) * (math.sqrt(MOST_ELONGATED) + 1 / math.sqrt(MOST_ELONGATED))
        grown = self.least + tile * edges + tile * tile
        return int(max(self.most, row, grown)) // (tile * tile)


class BestCanvas(_SizeStep):
    """Resize to the size of a canvas; the image keeps its shape and stands in its middle, black around it.

    Of the canvases, the one that shows the most of the image's pixels is taken, and of those that show as
    many the one with the fewest others.

    Attributes:
        canvases: (height, width) of each.
    """

    kind: Literal["best_canvas"] = "best_canvas"
    canvases: Annotated[tuple[tuple[Pixels, Pixels], ...], Field(min_length=1, max_length=MOST_TILES)]

    def target(self, height: int, width: int, tile: tuple[int, int]) -> tuple[int, int]:
        most, fewest, best = 0, math.inf, self.canvases[0]
        for high, wide in self.canvases:
            scale = min(wide / width, high / height)
            shown = min(int(width * scale) * int(height * scale), width * height)
            if shown > most or (shown == most and high * wide - shown < fewest):
                most, fewest, best = shown, high * wide - shown, (high, wide)
        return best

    @staticmethod
    def placed(height: int, width: int, canvas: tuple[int, int]) -> tuple[int, int, int, int]:
        """Where the image stands in its canvas, and how large: (top, left, height, width)."""
        down, across = canvas[0] / height, canvas[1] / width
        if across < down:
            high, wide = min(math.ceil(height * across), canvas[0]), canvas[1]
        else:
            high, wide = canvas[0], min(math.ceil(width * down), canvas[1])
        return (canvas[0] - high) // 2, (canvas[1] - wide) // 2, high, wide


SizeStep: TypeAlias = Annotated[
    FixedSize | ShortestEdge | LongestEdge | AspectTiles | TileMultiples | PixelBudget | BestCanvas,
    Field(discriminator="kind"),
]
"""A rule for the next size; `target` computes it."""


def within_budget(
    height: int,
    width: int,
    tile: tuple[int, int],
    least: int,
    most: int,
    counted: int = 1,
    frames: int = 1,
) -> tuple[int, int]:
    """Whole tiles in nearly an image's shape, with `least` to `most` pixels in all.

    Args:
        height, width: of the image, or of each of several frames.
        tile: (height, width) of a tile.
        least, most: pixels.
        counted: frames, as the budget counts them.
        frames: that there are.
    """
    high, wide = (round(edge / unit) * unit for edge, unit in zip((height, width), tile, strict=True))
    if counted * high * wide > most:
        beta = math.sqrt((frames * height * width) / most)
        high = max(tile[0], math.floor(height / beta / tile[0]) * tile[0])
        wide = max(tile[1], math.floor(width / beta / tile[1]) * tile[1])
    elif counted * high * wide < least:
        beta = math.sqrt(least / (frames * height * width))
        high = math.ceil(height * beta / tile[0]) * tile[0]
        wide = math.ceil(width * beta / tile[1]) * tile[1]
    return high, wide


def whole_tiles(size: int, tile: int) -> int:
    """The size, in pixels, rounded up to whole tiles."""
    return -(-size // tile) * tile
