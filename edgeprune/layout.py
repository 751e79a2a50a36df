"""Layouts: what the visual tokens of an image, and of a prompt, are.

An image becomes one or more blocks, each a grid of visual tokens that shows a box of the image: the whole of
it, a tile, a thumbnail. A box may reach outside the image; what lies there is padding. Between the blocks
stands text of the prompt. All that is known from the image's size alone, and from it follow the text that
the model reads, the padding mask, and where each token reads a bias curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import groupby, pairwise, product
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeprune.debias.curves import Coordinate
from edgeprune.debias.masks import PaddingMask, letterbox_valid_bilinear
from edgeprune.errors import InputError

_Element = TypeVar("_Element", bound=np.generic)

BlockKind = Literal["tile", "thumbnail", "frame"]
Newline = Literal["front", "rows", "end"]


@dataclass(frozen=True)
class Box:
    """A rectangle in shares of the image's height and width, exact. Outside 0 to 1 there is padding."""

    top: Fraction
    left: Fraction
    bottom: Fraction
    right: Fraction

    def part(self, row: int, column: int, grid: tuple[int, int]) -> Box:
        """One cell of the box, divided into a grid of (rows, columns)."""
        down, across = (self.bottom - self.top) / grid[0], (self.right - self.left) / grid[1]
        top, left = self.top + row * down, self.left + column * across
        return Box(top, left, top + down, left + across)


WHOLE = Box(Fraction(0), Fraction(0), Fraction(1), Fraction(1))


@dataclass(frozen=True)
class Block:
    """A rectangle of visual tokens, in row-major order.

    Attributes:
        grid: (rows, columns) of visual tokens.
        box: the part of the image that it shows.
        newline: where tokens stand that show nothing: one in front of the rows, one behind each, or one at
            the end of them; None for nowhere.
        kind: what it is of the image.
        tiles: (rows, columns) of the tiles that it is put together from.
    """

    grid: tuple[int, int]
    box: Box = WHOLE
    newline: Newline | None = None
    kind: BlockKind = "tile"
    tiles: tuple[int, int] = (1, 1)

    @property
    def row_of(self) -> NDArray[np.int64]:
        """The row that each token stands in, int64 [tokens]."""
        rows, columns = self.grid
        widths = np.full(rows, columns + (self.newline == "rows"), dtype=np.int64)
        if self.newline in ("front", "end"):
            widths[0 if self.newline == "front" else -1] += 1
        return np.repeat(np.arange(rows, dtype=np.int64), widths)

    @property
    def tokens(self) -> int:
        """Visual tokens of the block."""
        return math.prod(self.grid) + {"front": 1, "rows": self.grid[0], "end": 1, None: 0}[self.newline]

    def boxes(self) -> NDArray[np.float64]:
        """What each token shows, float64 [tokens, 4]: see `PromptLayout.boxes`."""
        rows, columns = self.grid
        down = np.array(_edges(self.box.top, self.box.bottom, rows), dtype=np.float64)
        across = np.array(_edges(self.box.left, self.box.right, columns), dtype=np.float64)
        boxes = np.empty((rows, columns, 4))
        boxes[..., 0], boxes[..., 2] = down[:-1, None], down[1:, None]
        boxes[..., 1], boxes[..., 3] = across[:-1], across[1:]
        return self.with_newlines(boxes, np.nan)

    def with_newlines(self, values: NDArray[_Element], newline: Any) -> NDArray[_Element]:
        """Of values of the grid's cells, [rows, columns, ...], those of the tokens, [tokens, ...]."""
        flat = values.reshape(-1, *values.shape[2:])
        if self.newline is None:
            return flat
        rows, columns = self.grid
        places = {
            "front": [0],
            "rows": [row * columns for row in range(1, rows + 1)],
            "end": [rows * columns],
        }
        before = np.array(places[self.newline], dtype=np.int64)
        inserted: NDArray[_Element] = np.insert(flat, before, newline, axis=0)
        return inserted

    def valid(self, mask: PaddingMask, size: tuple[int, int]) -> NDArray[np.float32]:
        """The padding mask of the block, float32 [tokens]: see `PromptLayout.valid`.

        Args:
            mask: the rule.
            size: (width, height) of the image in pixels.
        """
        valid = np.ones(self.grid, dtype=np.float32)
        if mask.kind == "share":
            valid[:] = _by_share(self, mask.threshold)
        elif mask.kind == "bilinear":
            valid[:] = _bilinear(self, size, mask.threshold)
        return self.with_newlines(valid, 1)


@dataclass(frozen=True)
class ImageLayout:
    """The visual tokens of one image, or of a video.

    Attributes:
        size: (width, height) of the image, or of the video's frames, in pixels.
        blocks: in the order of their tokens.
        pieces: what the image's place in a prompt becomes: texts, and numbers of visual tokens.
        interval: seconds from one block of a video to the next; 0 for an image.

    Raises:
        ValueError: the pieces have another number of visual tokens than the blocks.
    """

    size: tuple[int, int]
    blocks: tuple[Block, ...]
    pieces: tuple[str | int, ...]
    interval: float = 0.0

    @classmethod
    def of(
        cls,
        size: tuple[int, int],
        blocks: tuple[Block, ...],
        pieces: Sequence[str | int],
        interval: float = 0.0,
    ) -> ImageLayout:
        """A layout of pieces some of which may be empty, or neighbours of one kind."""
        joined: list[str | int] = []
        for kind, run in groupby(filter(None, pieces), key=type):
            parts = list(run)
            tokens = sum(part for part in parts if isinstance(part, int))
            joined.append("".join(map(str, parts)) if kind is str else tokens)
        return cls(size, blocks, tuple(joined), interval)

    def __post_init__(self) -> None:
        pieces = sum(piece for piece in self.pieces if isinstance(piece, int))
        if pieces != self.tokens:
            raise ValueError(f"the pieces have {pieces} visual tokens, and the blocks {self.tokens}")

    @property
    def tokens(self) -> int:
        """Visual tokens of the image."""
        return sum(block.tokens for block in self.blocks)

    @property
    def runs(self) -> list[list[Block]]:
        """The blocks between whose tokens no text stands, together."""
        blocks, found = iter(self.blocks), []
        for piece in self.pieces:
            run: list[Block] = []
            while isinstance(piece, int) and sum(block.tokens for block in run) < piece:
                run.append(next(blocks))
            if run:
                found.append(run)
        return found

    @property
    def tiles(self) -> int:
        """Tiles that the image is cut into, a thumbnail included."""
        return sum(math.prod(block.tiles) for block in self.blocks)

    def text(self, image_token: str, left: Callable[[int], int] = lambda tokens: tokens) -> str:
        """What the image's place in a prompt becomes, with one image token for every visual token.

        Args:
            image_token: of the model.
            left: of so many visual tokens, how many leave the vision tower.
        """
        return "".join(
            piece if isinstance(piece, str) else image_token * left(piece) for piece in self.pieces
        )


@dataclass(frozen=True, eq=False)
class PromptLayout:
    """The visual tokens of a prompt, in the order in which the model reads them.

    Attributes:
        images: the layouts of its images, in order.
        taken: int64 [tokens], ascending, which of the images' visual tokens the prompt has, counted through
            all images; None for all of them.
    """

    images: tuple[ImageLayout, ...]
    taken: NDArray[np.int64] | None = None

    @property
    def tokens(self) -> int:
        """Visual tokens of the prompt."""
        return sum(image.tokens for image in self.images) if self.taken is None else len(self.taken)

    @cached_property
    def image_of(self) -> NDArray[np.int64]:
        """The number of the image that each visual token belongs to, int64 [tokens]."""
        counts = [image.tokens for image in self.images]
        return self._selected(np.repeat(np.arange(len(counts), dtype=np.int64), counts))

    @cached_property
    def block_of(self) -> NDArray[np.int64]:
        """The number of the block that each visual token belongs to, through all images, int64 [tokens]."""
        counts = [block.tokens for block in self._blocks]
        return self._selected(np.repeat(np.arange(len(counts), dtype=np.int64), counts))

    def boxes(self) -> NDArray[np.float64]:
        """What part of its image each visual token shows.

        Returns:
            float64 [tokens, 4], (top, left, bottom, right) in shares of the image's height and width, below
            0 or above 1 where it shows padding. NaN for a newline token, which shows nothing.
        """
        boxes = [np.empty((0, 4)), *(block.boxes() for block in self._blocks)]
        return self._selected(np.concatenate(boxes))

    def valid(self, mask: PaddingMask) -> NDArray[np.float32]:
        """The padding mask: what the visual tokens are. Whether a selection goes by it is the plan's.

        Args:
            mask: the rule.

        Returns:
            float32 [tokens], 1 where a token shows the image, 0 for padding; 1 for newline tokens, which
            carry the image's shape.

        Raises:
            InputError: the rule is "bilinear", and an image is padded otherwise than a letterbox is.
        """
        valid = [block.valid(mask, image.size) for image in self.images for block in image.blocks]
        return self._selected(np.concatenate([np.empty(0, dtype=np.float32), *valid]))

    def places(self, count: int, coordinate: Coordinate = "image") -> NDArray[np.int64]:
        """Which entry of a `curve_table` each visual token reads.

        The curve begins anew with every image, as published curves are fitted to one. Where the image's
        tokens are not as many as the curve's places, they are read by relative position: the first token
        at the first place, the last one at the last, those between at the nearest, halves rounded up. By
        cells, rows and columns of a block are read so, each by as many places as the square's side.

        Args:
            count: places of the curve, the table's entries without the first; 0 for no curve.
            coordinate: what the places are.

        Returns:
            int64 [tokens], 1 to count; 0, which is no bias, where count is 0.

        Raises:
            InputError: count is negative.
        """
        if count < 0:
            raise InputError(
                f"the bias curve has {count} places: expected 0 for none, or more; count its weights"
            )
        if count == 0:
            return np.zeros(self.tokens, dtype=np.int64)
        if coordinate == "cell":
            return self._cells(count)
        by_block = self.block_of if coordinate == "block" else self._row_of
        runs = self.image_of if coordinate == "image" else by_block
        _, first, lengths = np.unique(runs, return_index=True, return_counts=True)
        index = np.arange(len(runs), dtype=np.int64) - np.repeat(first, lengths)
        return 1 + _nearest(index, np.repeat(lengths, lengths).astype(np.int64) - 1, count)

    def _cells(self, count: int) -> NDArray[np.int64]:
        side = math.isqrt(count)  # a curve by cells has a square number of places
        found = [np.empty(0, dtype=np.int64)]
        for block in self._blocks:
            rows, columns = block.grid
            # A token that shows nothing is read as the last one of its row, or the first.
            row = block.row_of
            column = np.arange(len(row)) - np.searchsorted(row, row) - (block.newline == "front") * (row == 0)
            last = np.asarray(max(columns - 1, 0))
            across = _nearest(np.clip(column, 0, last), last, side)
            found.append(1 + _nearest(row, np.asarray(rows - 1), side) * side + across)
        return self._selected(np.concatenate(found))

    def take(self, places: Sequence[int] | NDArray[np.int64]) -> PromptLayout:
        """The layout of some of the visual tokens, such as those that a vision tower left.

        Args:
            places: int64 [fewer], ascending, of this layout's tokens.

        Raises:
            InputError: they do not ascend, or reach beyond the tokens.
        """
        index = np.asarray(places, dtype=np.int64)
        if index.ndim != 1 or (np.diff(index, prepend=-1) <= 0).any() or (index >= self.tokens).any():
            raise InputError(
                f"of {self.tokens} visual tokens some are to be taken that are not there, twice, or out of "
                "order: expected numbers that ascend, from 0 on; hand them in sorted"
            )
        return PromptLayout(self.images, index if self.taken is None else self.taken[index])

    @property
    def _blocks(self) -> list[Block]:
        return [block for image in self.images for block in image.blocks]

    @property
    def _row_of(self) -> NDArray[np.int64]:
        firsts = np.cumsum([0, *(block.grid[0] for block in self._blocks)])
        rows = [first + block.row_of for first, block in zip(firsts, self._blocks, strict=False)]
        return self._selected(np.concatenate([np.empty(0, dtype=np.int64), *rows]))

    def _selected(self, values: NDArray[_Element]) -> NDArray[_Element]:
        return values if self.taken is None else values[self.taken]


def _nearest(index: NDArray[np.int64], last: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Which of `count` places each index from 0 to `last` reads, from 0."""
    # Whole numbers, so that every implementation rounds alike; a token on its own reads the first place.
    found: NDArray[np.int64] = (2 * index * (count - 1) + last) // np.maximum(2 * last, 1)
    return found


def _edges(start: Fraction, stop: Fraction, cells: int) -> list[Fraction]:
    if not cells:
        return [start]
    return [start + (stop - start) * Fraction(index, cells) for index in range(cells + 1)]


def _shown(start: Fraction, stop: Fraction, cells: int) -> list[Fraction]:
    """How much of each cell lies inside the image, along one axis."""
    inside = [min(max(edge, Fraction(0)), Fraction(1)) for edge in _edges(start, stop, cells)]
    return [(after - before) * cells / (stop - start) for before, after in pairwise(inside)]


def _by_share(block: Block, threshold: float) -> NDArray[np.bool_]:
    """Where the padded share of a cell does not exceed the threshold, [rows, columns]."""
    down = _shown(block.box.top, block.box.bottom, block.grid[0])
    across = _shown(block.box.left, block.box.right, block.grid[1])
    # Most cells are alike; the share is rounded to a float once, when it is exact.
    passes = {pair: float(1 - pair[0] * pair[1]) <= threshold for pair in product(set(down), set(across))}
    passing = [passes[row, column] for row in down for column in across]
    return np.array(passing, dtype=np.bool_).reshape(block.grid)


def _bilinear(block: Block, size: tuple[int, int], threshold: float) -> NDArray[np.float32]:
    """The published rule of shrunken masks, [rows, columns]; it goes by pixels and not by shares alone."""
    box, (width, height) = block.box, size
    down, across = box.top < 0 or box.bottom > 1, box.left < 0 or box.right > 1
    if not (down or across):
        return np.ones(block.grid, dtype=np.float32)
    start, stop = (box.top, box.bottom) if down else (box.left, box.right)
    if (down and across) or start + stop != 1:
        raise InputError(
            "the padding mask is bilinear, and an image is padded on one side alone or on both axes: "
            "expected a letterbox; take the padding mask `share`"
        )
    short, long = (height, width) if down else (width, height)
    # The box shows this share of the square around the image: its pixels are cleared of fractions by it.
    scale = (stop - start) * short / long
    long, short = long * scale.numerator, short * scale.denominator
    width, height = (long, short) if down else (short, long)
    return letterbox_valid_bilinear(width, height, block.grid, threshold).reshape(block.grid)
