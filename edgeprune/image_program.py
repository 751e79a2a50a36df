"""Image programs: how an image becomes the vision graph's input and its visual tokens, as data.

A program is a list of small steps, each of which the exporter reads from a model's own image processor and a
runtime carries out. What it makes of an image's pixels is `edgeprune.runtime.programs`; what its visual
tokens are follows from the image's size alone, and is here.

Sizes are in pixels, (height, width) in fields and (width, height) where an image's size is handed in.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from edgeprune.checks import check_count
from edgeprune.errors import InputError
from edgeprune.fields import Flag, Number, Part, Pixels, TokenText
from edgeprune.image_sizes import (
    MOST_TILES,
    AspectTiles,
    BestCanvas,
    FixedSize,
    LongestEdge,
    PixelBudget,
    ShortestEdge,
    SizeStep,
    TileMultiples,
    Tiles,
    whole_tiles,
)
from edgeprune.layout import WHOLE, Block, Box, ImageLayout
from edgeprune.packing import most_packed, resampled, unpadded

Byte = Annotated[int, Field(strict=True, ge=0, le=255)]
Filter = Annotated[int, Field(strict=True, ge=0, le=3)]
Deviation = Annotated[float, Field(strict=True, ge=1e-6, le=1e6)]
_MOST_STEPS = 8


class Stretch(Part):
    """The image is brought to another shape as the sizes say, by stretching it."""

    kind: Literal["stretch"] = "stretch"


class Letterbox(Part):
    """The image is centred in a square of its longer side, of one colour (red, green, blue)."""

    kind: Literal["letterbox"] = "letterbox"
    color: tuple[Byte, Byte, Byte] = (0, 0, 0)


Fit: TypeAlias = Annotated[Stretch | Letterbox, Field(discriminator="kind")]
"""What is done about an image's shape before it is resized."""


class CutTiles(Part):
    """The resized image is cut into tiles, row by row.

    Attributes:
        thumbnail: whether the whole image, resized to one tile, comes first or last, where there is more
            than one tile; null for no thumbnail.
        thumbnail_of: what it is made of: the image as it came, or as it was resized for the tiles.
        always: whether it comes also where there is one tile.
    """

    kind: Literal["tiles"] = "tiles"
    thumbnail: Literal["first", "last"] | None = None
    thumbnail_of: Literal["image", "resized"] = "image"
    always: Flag = False


class CutCrops(Part):
    """An elongated image is cut along its longer side, and each crop is resized as the image is, which comes
    first itself.

    Attributes:
        ratio: of the longer side to the shorter one, from which on an image is cut.
        least: pixels that each side of a crop has at least; where it would have fewer, nothing is cut.
        most: crops; at least 2 are made where that allows it.
    """

    kind: Literal["crops"] = "crops"
    ratio: Annotated[float, Field(strict=True, ge=1, le=1e6)]
    least: Pixels
    most: Tiles

    @property
    def thumbnail(self) -> Literal["first"]:
        """The whole image comes first."""
        return "first"

    @property
    def always(self) -> bool:
        """An image that is not cut comes once."""
        return False

    def crops(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of crops of an image; (1, 1) where it is not cut."""
        long, short = max(width, height), min(width, height)
        if long / short < self.ratio:
            return 1, 1
        count = min(long // self.least, math.floor(long / short + 0.5))
        count = min(self.most, max(2, count))
        if min(-(-long // count), short) < self.least:
            return 1, 1
        return (1, count) if width >= height else (count, 1)

    def boxes(self, width: int, height: int) -> list[tuple[int, int, int, int]]:
        """(top, left, bottom, right) of each crop, in pixels, the last one smaller than the others."""
        rows, columns = self.crops(width, height)
        high, wide = -(-height // rows), -(-width // columns)
        return [
            (row * high, column * wide, min(height, (row + 1) * high), min(width, (column + 1) * wide))
            for row in range(rows)
            for column in range(columns)
        ]


Cut: TypeAlias = Annotated[CutTiles | CutCrops, Field(discriminator="kind")]
"""How an image is divided."""


class PixelValues(Part):
    """From bytes to the numbers that a vision tower reads: byte * rescale_factor, minus mean, by std.

    `resample` is the filter of every resizing, by Pillow's number (0 nearest, 1 lanczos, 2 bilinear, 3
    bicubic). Resizing takes the width first and then the height, with 8 bits between them, as Pillow did
    until 12.3.
    """

    resample: Filter = 3
    rescale_factor: Number | None = 1 / 255
    mean: tuple[Number, Number, Number] | None = None
    std: tuple[Deviation, Deviation, Deviation] | None = None

    @model_validator(mode="after")
    def _both(self) -> PixelValues:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together: give both, or none")
        return self


class TileFeed(Part):
    """The vision graph reads tiles of one size, `pixel_values` [tiles, 3, height, width]."""

    kind: Literal["tiles"] = "tiles"
    height: Pixels
    width: Pixels

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of a tile."""
        return self.height, self.width


class PatchFeed(Part):
    """The vision graph reads an image of any size as squares of patches, `pixel_values` [visual tokens,
    patches of a square, values of a patch], and beside it what `edgeprune.vision_inputs` computes.

    Attributes:
        size: of a patch, in pixels, each way.
        frames: how often a patch holds its pixels; towers that see video read some frames at once.
        window: (rows and) columns of squares that see each other in most layers; null where all do.
        table: rows (and columns) of the learned positions that are interpolated; null for none.
    """

    kind: Literal["patches"] = "patches"
    size: Pixels
    frames: Annotated[int, Field(strict=True, ge=1, le=16)] = 1
    window: Annotated[int, Field(strict=True, ge=1, le=1024)] | None = None
    table: Pixels | None = None


class GridTokens(Part):
    """Each tile becomes a grid of visual tokens, in row-major order."""

    kind: Literal["grid"] = "grid"
    rows: Pixels
    columns: Pixels

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of a tile."""
        return self.rows, self.columns


class PackedTokens(Part):
    """Each tile becomes a grid; those of an image that was cut are put together to one, with a newline token
    behind each row, and the thumbnail stays as it is, in front. Rows and columns that show only padding are
    left out. An image that was not cut has one newline token behind its grid.

    Attributes:
        rows, columns: of a tile.
        most: tiles that an image may have as many visual tokens as; where it has over a fifth more, it is
            resampled to so many. null for no limit.
    """

    kind: Literal["packed"] = "packed"
    rows: Pixels
    columns: Pixels
    most: Tiles | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of a tile."""
        return self.rows, self.columns

    @property
    def limit(self) -> int | None:
        """Visual tokens that an image may have; None for any number."""
        return None if self.most is None else self.most * self.rows * self.columns


class PatchTokens(Part):
    """Each square of `side` x `side` patches becomes one visual token."""

    kind: Literal["patches"] = "patches"
    side: Annotated[int, Field(strict=True, ge=1, le=64)]


Feed: TypeAlias = Annotated[TileFeed | PatchFeed, Field(discriminator="kind")]
"""What the vision graph reads."""
TokenGrid: TypeAlias = Annotated[GridTokens | PackedTokens | PatchTokens, Field(discriminator="kind")]
"""What visual tokens come of that."""


class ImageText(Part):
    """The text around an image's visual tokens in the prompt.

    Attributes:
        prefix, suffix: in front of the image and behind it.
        tile: in front of each tile of an image that was cut; {row} and {column} become its own, from 1.
        first: in front of the first of them instead; null for the same.
        row_end: behind the last tile of each row.
        thumbnail: in front of the thumbnail.
        whole: in front of the only tile of an image that was not cut.
    """

    prefix: TokenText = ""
    tile: TokenText = ""
    first: TokenText | None = None
    row_end: TokenText = ""
    thumbnail: TokenText = ""
    whole: TokenText = ""
    suffix: TokenText = ""


class AmongSeveral(Part):
    """What is done instead with the images of a prompt that has several: each becomes one tile.

    Attributes:
        fit, sizes: as of `ImageProgram`.
    """

    fit: Fit = Stretch()
    sizes: Annotated[tuple[SizeStep, ...], Field(max_length=_MOST_STEPS)] = ()


class ImageProgram(Part):
    """How an image becomes the vision graph's input and its visual tokens. The steps run in this order.

    Attributes:
        fit: what is done about its shape.
        sizes: the sizes that it is resized to, one after the other.
        crop: (height, width) of its middle, with a black margin where that is larger; null for no crop.
        cut: into tiles; null where it is one.
        pixels: from bytes to numbers.
        feed: what the vision graph reads.
        tokens: what it makes of that.
        text: around the visual tokens.
        several: what is done instead with the images of a prompt that has several; null for the same.

    Raises:
        ValueError: not every image would come out as the vision graph reads it, or as many tiles as one
            can say beforehand.
    """

    fit: Fit = Stretch()
    sizes: Annotated[tuple[SizeStep, ...], Field(max_length=_MOST_STEPS)] = ()
    crop: tuple[Pixels, Pixels] | None = None
    cut: Cut | None = None
    pixels: PixelValues = PixelValues()
    feed: Feed
    tokens: TokenGrid
    text: ImageText = ImageText()
    several: AmongSeveral | None = None

    @model_validator(mode="after")
    def _fits_the_feed(self) -> ImageProgram:
        if self.several is not None and (fault := self._several()._whole_fault()):
            raise ValueError(f"among several images, {fault} is not supported")
        if self.feed.kind == "patches" or self.tokens.kind == "patches":
            fault = self._patches_fault()
        else:
            fault = self._whole_fault() if self.cut is None else self._tiles_fault()
        if fault := self._canvas_fault() or fault:
            raise ValueError(f"{fault} is not supported")
        if self.grid is not None and any(c > p for c, p in zip(self.grid, self.unit, strict=True)):
            raise ValueError(f"the grid {self.grid} has more cells than a tile has pixels, {self.unit}")
        return self

    @property
    def unit(self) -> tuple[int, int]:
        """(height, width) in pixels of what an image is divided into: a tile, or the square of a token."""
        if isinstance(self.feed, TileFeed):
            return self.feed.size
        side = self.tokens.side if isinstance(self.tokens, PatchTokens) else 1
        return (self.feed.size * side,) * 2

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The axes of `pixel_values` behind the first: of a tile, or of the patches of a visual token."""
        if isinstance(self.feed, TileFeed):
            return (3, *self.feed.size)
        return ((self.unit[0] // self.feed.size) ** 2, 3 * self.feed.frames * self.feed.size**2)

    @property
    def grid(self) -> tuple[int, int] | None:
        """(rows, columns) of visual tokens of a tile; None where images are not cut into tiles."""
        return None if isinstance(self.tokens, PatchTokens) else self.tokens.grid

    @property
    def pads(self) -> bool:
        """Whether images are padded, so that some visual tokens show padding."""
        alone = self._letterboxes or self.best_canvas is not None
        return alone or (self.several is not None and self._several().pads)

    @property
    def best_canvas(self) -> BestCanvas | None:
        """The step that puts images onto a canvas, which is then the only one; None where there is none."""
        return next((step for step in self.sizes if isinstance(step, BestCanvas)), None)

    @property
    def _letterboxes(self) -> bool:
        return isinstance(self.fit, Letterbox)

    def of_prompt(self, images: int) -> ImageProgram:
        """The program of each image of a prompt that has so many."""
        return self if self.several is None or images < 2 else self._several()

    def _several(self) -> ImageProgram:
        assert self.several is not None
        return self.model_copy(
            update={"fit": self.several.fit, "sizes": self.several.sizes, "cut": None, "several": None}
        )

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens of a tile, or of the square that becomes one."""
        return 1 if self.grid is None else math.prod(self.grid)

    @property
    def most_tiles(self) -> int:
        """The most tiles that one image becomes, a thumbnail included; or squares of patches."""
        most = self._most_parts() if self.cut is not None or self.grid is None else 1
        if most is None:
            raise AssertionError("a program whose tiles have no bound is refused")
        return most + self._has_thumbnail(most)

    def _has_thumbnail(self, tiles: int) -> bool:
        return self.cut is not None and self.cut.thumbnail is not None and (tiles > 1 or self.cut.always)

    @property
    def most_tokens(self) -> int:
        """The most visual tokens that one image becomes; an image alone, where it matters."""
        if not isinstance(self.tokens, PackedTokens):
            return self.most_tiles * self.tokens_per_tile
        if self.cut is None:
            return self.tokens_per_tile + 1
        base = self.tokens_per_tile if self._has_thumbnail(1) else 0
        return base + max(most_packed(grid, self.tokens.limit) for grid in self._packed_grids())

    def most_of_prompt(self, images: int) -> tuple[int, int]:
        """The most tiles (or squares of patches), and the most visual tokens, of up to so many images."""
        if not images:
            return 0, 0
        each = self.of_prompt(images)
        return max(self.most_tiles, images * each.most_tiles), max(
            self.most_tokens, images * each.most_tokens
        )

    @property
    def fixed_tokens(self) -> int | None:
        """Visual tokens of every image, where they are as many for all; None where they are not."""
        last = self.sizes[-1] if self.sizes else None
        alike = isinstance(last, AspectTiles) and last.least == last.most
        whole = self.cut is None and self.grid is not None
        if isinstance(self.cut, CutCrops):
            return None
        return self.most_tokens if whole or self._resized() or alike else None

    def within(self, pixels: int) -> ImageProgram:
        """The program whose images are resized to at most so many pixels, where they are to a budget of them.

        Raises:
            InputError: they are not, or that is less than one visual token's, or more than the program's own.
        """
        check_count("max_pixels", pixels)
        *earlier, last = self.sizes or (None,)
        if not isinstance(last, PixelBudget):
            raise InputError(
                "`max_pixels` was given, and this model's images have no budget of pixels: leave it out"
            )
        if not math.prod(self.unit) <= pixels <= last.most:
            raise InputError(
                f"`max_pixels` is {pixels}, and this model takes images of {math.prod(self.unit)} to "
                f"{last.most} pixels: give a number between"
            )
        budget = PixelBudget(least=min(last.least, pixels), most=pixels)
        return self.model_copy(update={"sizes": (*earlier, budget)})

    def shrunken(self, width: int, height: int, tokens: int) -> ImageProgram | None:
        """The program that resizes an image to less, until it has at most so many visual tokens.

        Of the sizes that this program could have been made for, a smaller budget of pixels, fewer tiles or a
        shorter edge, the one with the most tokens up to `tokens`; the least one where all have more. None
        where every image has as many visual tokens, whatever its size.
        """
        if self.fixed_tokens is not None:
            return None
        if isinstance(self.cut, CutCrops):
            # The image as a whole is the least.
            cuts = [None, *(self.cut.model_copy(update={"most": n}) for n in range(2, self.cut.most + 1))]
            programs = [self.model_copy(update={"cut": cut}) for cut in cuts]
            return _closest([(one.layout(width, height).tokens, one) for one in programs], tokens)
        number, step = next(
            (number, step) for number, step in enumerate(self.sizes) if not isinstance(step, TileMultiples)
        )

        def variant(step: SizeStep) -> tuple[int, ImageProgram]:
            program = self.model_copy(
                update={"sizes": (*self.sizes[:number], step, *self.sizes[number + 1 :])}
            )
            return program.layout(width, height).tokens, program

        if isinstance(step, PixelBudget):
            unit = math.prod(self.unit)
            budgets = range(1, min(tokens, step.most // unit) + 1)
            # Images are only made smaller: one below the least would be enlarged, to more than asked for.
            fitting = bisect_right(
                budgets,
                tokens,
                key=lambda most: variant(PixelBudget(least=unit, most=most * unit))[0],
            )
            return variant(PixelBudget(least=unit, most=max(1, fitting) * unit))[1]
        steps: list[SizeStep] = []
        if isinstance(step, AspectTiles):
            tiles = range(1, step.most + 1)
            steps = [AspectTiles(least=min(step.least, most), most=most) for most in tiles]
        elif isinstance(step, BestCanvas):
            areas = sorted({math.prod(canvas) for canvas in step.canvases})
            steps = [
                BestCanvas(canvases=tuple(one for one in step.canvases if math.prod(one) <= area))
                for area in areas
            ]
        elif isinstance(step, LongestEdge):
            edges = range(max(self.unit), step.edge + 1, max(self.unit))
            steps = [step.model_copy(update={"edge": edge}) for edge in edges]
        return _closest([variant(one) for one in steps], tokens)

    def canvas(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) that an image is fitted to before it is resized: its own, or the square's."""
        return (max(width, height),) * 2 if self._letterboxes else (height, width)

    def targets(self, width: int, height: int) -> list[tuple[int, int]]:
        """The sizes (height, width) that an image is resized to, one for each of `sizes`."""
        found = [self.canvas(width, height)]
        for step in self.sizes:
            found.append(step.target(*found[-1], self.unit))
        return found[1:]

    def tile_grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of tiles that an image is cut into, or of squares of patches."""
        if self.cut is None and self.grid is not None:
            return 1, 1
        if isinstance(self.cut, CutCrops):
            return self.cut.crops(width, height)
        high, wide = self.targets(width, height)[-1]
        return high // self.unit[0], wide // self.unit[1]

    def rows(self, image: ImageLayout) -> int:
        """Rows of `pixel_values` that an image becomes: its tiles, or its squares of patches."""
        return image.tokens if self.grid is None else image.tiles

    def layout(self, width: int, height: int) -> ImageLayout:
        """The visual tokens of an image of this size, in pixels; alone in its prompt, where that matters.

        Raises:
            InputError: the size is not two whole numbers above 0, or one that the model takes no image of.
        """
        for name, size in (("width", width), ("height", height)):
            if not (size > 0 and math.isfinite(size) and size == int(size)):
                raise InputError(
                    f"the image's {name} is {size}: expected a whole number of pixels above 0; "
                    "check the image"
                )
        width, height = int(width), int(height)
        rows, columns = grid = self.tile_grid(width, height)
        shown, tokens = self._shown(width, height), self.tokens_per_tile
        if self.grid is None:
            around: list[str | int] = [self.text.prefix, rows * columns, self.text.suffix]
            return ImageLayout.of((width, height), (Block(grid, shown),), around)
        if isinstance(self.tokens, PackedTokens):
            packed = self._packed(width, height, self.tokens)
            found = sum(block.tokens for block in packed)
            around = [self.text.prefix, found, self.text.suffix]
            return ImageLayout.of((width, height), packed, around)
        thumbnail = (
            self.cut.thumbnail if self.cut is not None and self._has_thumbnail(rows * columns) else None
        )
        blocks: list[Block] = []
        pieces: list[str | int] = []
        crops = self.cut.boxes(width, height) if isinstance(self.cut, CutCrops) else []
        for row in range(rows):
            for column in range(columns):
                part = shown.part(row, column, grid)
                if crops:
                    top, left, bottom, right = crops[row * columns + column]
                    part = Box(
                        Fraction(top, height),
                        Fraction(left, width),
                        Fraction(bottom, height),
                        Fraction(right, width),
                    )
                blocks.append(Block(self.grid, part))
                pieces += [self._tile_text(row, column, grid), tokens]
            pieces += [self.text.row_end if rows * columns > 1 else ""]
        if thumbnail is not None:
            small = [Block(self.grid, shown, kind="thumbnail")]
            title: list[str | int] = [self.text.thumbnail, tokens]
            last = thumbnail == "last"
            blocks, pieces = (blocks + small, pieces + title) if last else (small + blocks, title + pieces)
        return ImageLayout.of((width, height), tuple(blocks), [self.text.prefix, *pieces, self.text.suffix])

    def _packed(self, width: int, height: int, tokens: PackedTokens) -> tuple[Block, ...]:
        """The blocks of an image whose tiles are put together."""
        shown, tiles = self._shown(width, height), self.tile_grid(width, height)
        if self.cut is None:
            return (Block(tokens.grid, shown, newline="end"),)
        whole = tiles[0] * tokens.rows, tiles[1] * tokens.columns
        left = unpadded(width, height, whole)
        first = shown.part(left.top, left.left, whole)
        down, across = first.bottom - first.top, first.right - first.left
        box = Box(first.top, first.left, first.top + down * left.grid[0], first.left + across * left.grid[1])
        packed = Block(resampled(left.grid, tokens.limit), box, newline="rows", tiles=tiles)
        if not self._has_thumbnail(math.prod(tiles)):
            return (packed,)
        return Block(tokens.grid, WHOLE, kind="thumbnail"), packed

    def _packed_grids(self) -> list[tuple[int, int]]:
        """The grids of all canvases, put together."""
        rows, columns = self.grid or (0, 0)
        canvases = () if self.best_canvas is None else self.best_canvas.canvases
        return [(high // self.unit[0] * rows, wide // self.unit[1] * columns) for high, wide in canvases]

    def _tile_text(self, row: int, column: int, grid: tuple[int, int]) -> str:
        if grid == (1, 1):
            return self.text.whole
        if row == column == 0 and self.text.first is not None:
            return self.text.first
        return self.text.tile.replace("{row}", str(row + 1)).replace("{column}", str(column + 1))

    def _shown(self, width: int, height: int) -> Box:
        """The part of the image that the vision graph sees, before it is cut.

        A crop of half a pixel beside the middle counts as one of the middle.
        """
        canvas = self.canvas(width, height)
        target = (self.targets(width, height) or [canvas])[-1]
        if self.best_canvas is not None:
            above, before, high, wide = BestCanvas.placed(height, width, target)
            return Box(
                Fraction(-above, high),
                Fraction(-before, wide),
                Fraction(target[0] - above, high),
                Fraction(target[1] - before, wide),
            )
        edges = []
        for own, around, resized, cropped in zip(
            (height, width), canvas, target, self.crop or target, strict=True
        ):
            share = Fraction(cropped, resized) * Fraction(around, own)
            edges.append(((1 - share) / 2, (1 + share) / 2))
        (top, bottom), (left, right) = edges
        return Box(top, left, bottom, right)

    def _whole_fault(self) -> str | None:
        """Why an image that is not cut does not always come out as one tile, or with padding unknown."""
        resized, size = self._resized(), self.unit
        output = self.crop or resized
        if output is None:
            return "output size, which depends on the image,"
        if output != size:
            return f"output of {output[0]} x {output[1]} pixels for a vision tower of {size[0]} x {size[1]}"
        if self._letterboxes and resized is None:
            return "do_pad without do_resize"
        # The margin of such a crop would be padding that the padding mask does not know.
        if self._letterboxes and resized and any(c > r for c, r in zip(output, resized, strict=True)):
            return f"crop_size {output} around padded images of size {resized}"
        return None

    def _canvas_fault(self) -> str | None:
        """Why images on canvases, or whose tiles are put together, are not as this program says."""
        canvas_step = self.best_canvas
        packed = isinstance(self.tokens, PackedTokens) and self.cut is not None
        if canvas_step is None:
            return "putting tiles together that are not cut from a canvas" if packed else None
        if not isinstance(self.cut, CutTiles) or len(self.sizes) > 1 or self._letterboxes:
            return "canvas beside another step, or without tiles,"
        if packed and self.cut.thumbnail == "last":
            return "thumbnail behind tiles that are put together"
        for canvas in canvas_step.canvases:
            if any(side % tile for side, tile in zip(canvas, self.unit, strict=True)):
                return "canvas of {} x {} pixels for tiles of {} x {}".format(*canvas, *self.unit)
        return None

    def _tiles_fault(self) -> str | None:
        """Why an image that is cut does not always come out as whole tiles, of a number known beforehand."""
        resized, size = self._resized(), self.unit
        if self.crop is not None:
            return "crop_size beside tiles"
        if isinstance(self.cut, CutCrops) and (resized != size or self._letterboxes):
            return "cut of crops that are not stretched to one tile"
        if resized is not None and any(side % tile for side, tile in zip(resized, size, strict=True)):
            return f"size of {resized[0]} x {resized[1]} pixels for tiles of {size[0]} x {size[1]}"
        most = self._most_parts()
        if most is None:
            return "number of tiles, which has no bound or is no whole number,"
        if most > MOST_TILES:
            return f"number of tiles, up to {most} with {MOST_TILES} allowed,"
        return None

    def _patches_fault(self) -> str | None:
        """Why an image is not always whole squares of patches, of a number known beforehand."""
        if self.feed.kind != self.tokens.kind:
            return f"feed of {self.feed.kind} with tokens by {self.tokens.kind}"
        if self.crop is not None or self.cut is not None or self._letterboxes or self.several is not None:
            return "crop, cut, letterbox or another way with several images beside patches"
        resized, size = self._resized(), self.unit
        if resized is not None and any(side % unit for side, unit in zip(resized, size, strict=True)):
            return f"size of {resized[0]} x {resized[1]} pixels for squares of {size[0]} x {size[1]}"
        return "number of patches, which has no bound," if self._most_parts() is None else None

    def _resized(self) -> tuple[int, int] | None:
        """(height, width) that every image is resized to; None where that depends on the image."""
        found: tuple[int, int] | None = None
        square = self._letterboxes
        for step in self.sizes:
            if isinstance(step, FixedSize):
                found = step.height, step.width
            elif found is not None:
                found = step.target(*found, self.unit)
            elif square and isinstance(step, (ShortestEdge, LongestEdge)):
                # These go by the shape alone, which is that of any square.
                found = step.target(1, 1, self.unit)
            square = False
        return found

    def _most_parts(self) -> int | None:
        """The most tiles that an image is cut into, without a thumbnail; None where there is no bound."""
        if isinstance(self.cut, CutCrops):
            return self.cut.most
        if resized := self._resized():
            return (resized[0] // self.unit[0]) * (resized[1] // self.unit[1])
        *earlier, last = self.sizes or (None,)
        if isinstance(last, AspectTiles):
            return last.most
        if isinstance(last, BestCanvas):
            return max(math.prod(canvas) for canvas in last.canvases) // math.prod(self.unit)
        before = earlier[-1] if earlier else None
        square = self.unit[0] == self.unit[1]
        if isinstance(last, PixelBudget):
            return last.most_tiles(self.unit[0]) if square else None
        if isinstance(last, TileMultiples) and isinstance(before, LongestEdge) and square:
            return (whole_tiles(before.longest, self.unit[0]) // self.unit[0]) ** 2
        return None


def _closest(found: Sequence[tuple[int, ImageProgram]], tokens: int) -> ImageProgram:
    """Of programs and their visual tokens, the one with the most up to `tokens`, or else with the least."""
    return max(found, key=lambda pair: (pair[0] <= tokens, pair[0] if pair[0] <= tokens else -pair[0]))[1]
