"""Images of the second reader: image programs, written from docs/bundle.md alone; see `reader`."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import groupby
from typing import Any

import numpy as np

Size = tuple[int, int]
_REACH = {1: 3.0, 2: 1.0, 3: 2.0}


def _filter(number: int, x: float) -> float:
    y = abs(x)
    if number == 2:
        return 1 - y if y < 1 else 0.0
    if number == 3:
        if y < 1:
            return 1.5 * y**3 - 2.5 * y**2 + 1
        return -0.5 * y**3 + 2.5 * y**2 - 4 * y + 2 if y < 2 else 0.0

    def sinc(v: float) -> float:
        return math.sin(math.pi * v) / (math.pi * v) if v else 1.0

    return sinc(x) * sinc(x / 3) if -3 <= x < 3 else 0.0


def _resize_last(image: np.ndarray, m: int, number: int) -> np.ndarray:
    """The last axis brought to m pixels."""
    n = image.shape[-1]
    if n == m:
        return image
    scale = n / m
    if number == 0:
        taken, at = [], scale / 2
        for _ in range(m):
            taken.append(int(at))
            at += scale
        return image[..., taken]
    f = max(scale, 1.0)
    reach = f * _REACH[number]
    result = np.empty((*image.shape[:-1], m), dtype=np.uint8)
    for x in range(m):
        centre = (x + 0.5) * scale
        start, stop = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), n)
        weights = [_filter(number, (p - centre + 0.5) / f) for p in range(start, stop)]
        total = sum(weights)
        whole = [int(w / total * 2**22 + (0.5 if w / total >= 0 else -0.5)) for w in weights]
        value = (image[..., start:stop].astype(np.int64) * np.array(whole)).sum(axis=-1) + 2**21
        result[..., x] = np.clip(value >> 22, 0, 255)
    return result


def resize(image: np.ndarray, size: Size, number: int) -> np.ndarray:
    """uint8 [height, width, 3], the width first."""
    planes = image.transpose(2, 0, 1)
    planes = _resize_last(planes, size[1], number)
    planes = _resize_last(planes.swapaxes(1, 2), size[0], number).swapaxes(1, 2)
    return planes.transpose(1, 2, 0)


def _up(size: int, tile: int) -> int:
    return -(-size // tile) * tile


def next_size(step: dict[str, Any], h: int, w: int, feed: Size) -> Size:
    """The size that a step resizes to."""
    kind, (th, tw) = step["kind"], feed
    if kind == "fixed":
        return step["height"], step["width"]
    if kind == "shortest_edge":
        edge = step["edge"]
        return (edge, int(edge * w / h)) if h < w else (int(edge * h / w), edge)
    if kind == "longest_edge":
        size = _longest(h, w, step["edge"], step["even"])
        limit = step["limit"]
        return _longest(*size, limit, False) if limit is not None and max(size) > limit else size
    if kind == "best_canvas":
        best: tuple[int, float] = (0, math.inf)
        canvas = tuple(step["canvases"][0])
        for high, wide in step["canvases"]:
            s = min(wide / w, high / h)
            shown = min(int(w * s) * int(h * s), w * h)
            if (-shown, high * wide - shown) < (-best[0], best[1]):
                best, canvas = (shown, high * wide - shown), (high, wide)
        return canvas
    if kind == "tile_multiples":
        ratio = w / h
        if w >= h:
            w = _up(w, tw)
            return _up(int(w / ratio), th), w
        h = _up(h, th)
        return h, _up(int(h * ratio), tw)
    every = [(c, r) for c in range(1, step["most"] + 1) for r in range(1, step["most"] + 1)]
    fitting = [(c, r) for c, r in every if step["least"] <= c * r <= step["most"]]
    best, nearest = (1, 1), math.inf
    for c, r in sorted(fitting, key=lambda one: (one[0] * one[1], one[0])):
        distance = abs(w / h - c / r)
        if distance < nearest or (distance == nearest and w * h > 0.5 * th * tw * c * r):
            best, nearest = (c, r), distance
    return best[1] * th, best[0] * tw


def _longest(h: int, w: int, edge: int, even: bool) -> Size:
    ratio = w / h
    short = int(edge / ratio) if w >= h else int(edge * ratio)
    short = max(short + (short % 2 if even else 0), 1)
    return (short, edge) if w >= h else (edge, short)


def curve_place(tokens: int, places: int) -> list[int]:
    """Of one image, block or row."""
    last = tokens - 1
    return [1 + (2 * i * (places - 1) + last) // max(2 * last, 1) for i in range(tokens)]


class SeenImage:
    """An image after an image program: its tiles, the text in its place, its visual tokens' boxes."""

    def __init__(self, image: np.ndarray, program: dict[str, Any]) -> None:
        self.own = own = image.shape[:2]
        feed = (program["feed"]["height"], program["feed"]["width"])
        number, self.grid = (
            program["pixels"]["resample"],
            (program["tokens"]["rows"], program["tokens"]["columns"]),
        )
        canvas = self._fitted(image, program["fit"])
        last = canvas
        self.targets = []
        placed = None
        for step in program["sizes"]:
            self.targets.append(next_size(step, *last.shape[:2], feed))
            if step["kind"] == "best_canvas":
                last, placed = _on_canvas(last, self.targets[-1], number)
            else:
                last = resize(last, self.targets[-1], number)
        resized = last.shape[:2]
        if program["crop"] is not None:
            last = self._cropped(last, tuple(program["crop"]))
        share = [Fraction(last.shape[a], resized[a]) * Fraction(canvas.shape[a], own[a]) for a in (0, 1)]
        box = [((1 - s) / 2, (1 + s) / 2) for s in share]
        if placed is not None:
            box = [
                (Fraction(-before, size), Fraction(last.shape[a] - before, size))
                for a, (before, size) in enumerate(placed)
            ]
        rows, columns = (last.shape[a] // feed[a] for a in (0, 1))
        self.tile_grid = (rows, columns)
        tiles, self.boxes = [], []
        for r in range(rows):
            for c in range(columns):
                tiles.append(last[r * feed[0] : (r + 1) * feed[0], c * feed[1] : (c + 1) * feed[1]])
                self.boxes.append([_part(box[0], r, rows), _part(box[1], c, columns)])
        cut = program["cut"]
        first = None
        if cut is not None and cut["kind"] == "crops":
            self._crop(image, last, cut, program["sizes"], number, feed)
            self.pieces: list[str | int] = self._pieces(
                program["text"], True if len(self.tiles) > 1 else None
            )
            return
        several = rows * columns > 1 or (cut is not None and cut["always"])
        if cut is not None and cut["thumbnail"] is not None and several:
            first = cut["thumbnail"] == "first"
            small = resize(canvas if cut["thumbnail_of"] == "image" else last, feed, number)
            tiles, self.boxes = (
                ([small, *tiles], [box, *self.boxes]) if first else ([*tiles, small], [*self.boxes, box])
            )
        self.tiles = np.stack(tiles)
        # Of each block: its grid, its box, and where newlines stand.
        self.blocks: list[tuple[Size, Any, str | None]] = [(self.grid, one, None) for one in self.boxes]
        if program["tokens"]["kind"] == "packed":
            self._pack(program["tokens"]["most"], cut is not None, first is not None, box)
            taps = [entry for block in self.packed for entry in block]
            count = 1 if program["tokens"]["most"] is None else 4
            self.pack_index = np.array([[place for place, _ in entry[:count]] for entry in taps], np.int64)
            self.pack_weight = np.array([[weight for _, weight in entry] for entry in taps], np.float32)
            tokens = sum(len(block) for block in self.packed)
            self.pieces = [
                part for part in (program["text"]["prefix"], tokens, program["text"]["suffix"]) if part
            ]
        else:
            self.pieces = self._pieces(program["text"], first)

    def _crop(
        self, image: np.ndarray, whole: np.ndarray, cut: dict[str, Any], sizes: Any, number: int, feed: Size
    ) -> None:
        """Tiles, boxes and blocks of an image that is cut into crops."""
        height, width = self.own
        long, short = max(self.own), min(self.own)
        n = 1
        if long / short >= cut["ratio"]:
            n = min(cut["most"], max(2, min(long // cut["least"], int(long / short + 0.5))))
            if min(-(-long // n), short) < cut["least"]:
                n = 1
        axis = 1 if width >= height else 0
        self.tile_grid = (1, n) if axis else (n, 1)
        everything = [(Fraction(0), Fraction(1))] * 2
        tiles, self.boxes = [whole], [everything]
        for i in range(n if n > 1 else 0):
            start, stop = i * -(-long // n), min(long, (i + 1) * -(-long // n))
            part = image[:, start:stop] if axis else image[start:stop]
            for step in sizes:
                part = resize(part, next_size(step, *part.shape[:2], feed), number)
            tiles.append(part)
            box = list(everything)
            box[axis] = (Fraction(start, long), Fraction(stop, long))
            self.boxes.append(box)
        self.tiles = np.stack(tiles)
        self.blocks = [(self.grid, box, None) for box in self.boxes]

    def _pack(self, most: int | None, cut: bool, thumbnail: bool, box: Any) -> None:
        """Blocks, and of each the entries and weights of its tokens."""
        rows, columns = self.grid
        one = self._packed_block(1, (1, 1), (0, 0), self.grid, self.grid, False)
        if not cut:
            self.blocks = [(self.grid, box, "end")]
            self.packed = [[*one, _NEWLINE]]
            return
        (down, across), (h, w) = self.tile_grid, self.own
        first = 1 + rows * columns * thumbnail
        big = (down * rows, across * columns)
        out = [0, 0]
        if w / h > big[1] / big[0]:
            out[0] = (big[0] - int(round(h * (big[1] / w), 7))) // 2
        else:
            out[1] = (big[1] - int(round(w * (big[0] / h), 7))) // 2
        left = tuple(big[a] - 2 * out[a] for a in (0, 1))
        q = 0.0 if most is None else math.sqrt(left[0] * left[1] / (most * rows * columns))
        small = (int(left[0] // q), int(left[1] // q)) if q > 1.1 else left
        edges = [
            (_part(box[a], out[a], big[a])[0], _part(box[a], big[a] - out[a], big[a])[0]) for a in (0, 1)
        ]
        self.blocks = [(small, edges, "rows")]
        self.packed = [self._packed_block(first, self.tile_grid, (out[0], out[1]), left, small, True)]
        if thumbnail:
            whole = (Fraction(0), Fraction(1))
            self.blocks.insert(0, (self.grid, [whole, whole], None))
            self.packed.insert(0, one)

    def _packed_block(
        self, first: int, tiles: Size, out: Size, left: Size, small: Size, newlines: bool
    ) -> list[list[tuple[int, float]]]:
        """The entries and weights of tokens that are sampled from what is left of some tiles."""
        rows, columns = self.grid
        lines = [[_sampled(i, left[a], small[a]) for i in range(small[a])] for a in (0, 1)]
        tokens = []
        for row in lines[0]:
            for column in lines[1]:
                taps = []
                for r, p in row:
                    for c, s in column:
                        y, x = r + out[0], c + out[1]
                        tile = y // rows * tiles[1] + x // columns
                        place = first + tile * rows * columns + y % rows * columns + x % columns
                        taps.append((place, float(np.float32(p) * np.float32(s))))
                tokens.append(taps)
            tokens += [_NEWLINE] if newlines else []
        return tokens

    @staticmethod
    def _fitted(image: np.ndarray, fit: dict[str, Any]) -> np.ndarray:
        if fit["kind"] == "stretch":
            return image
        (height, width), side = image.shape[:2], max(image.shape[:2])
        canvas = np.empty((side, side, 3), dtype=np.uint8)
        canvas[:] = fit["color"]
        top, left = (side - height) // 2, (side - width) // 2
        canvas[top : top + height, left : left + width] = image
        return canvas

    @staticmethod
    def _cropped(image: np.ndarray, want: Size) -> np.ndarray:
        result = np.zeros((*want, 3), dtype=np.uint8)
        start = [(image.shape[a] - want[a]) // 2 for a in (0, 1)]
        length = [min(image.shape[a], want[a]) for a in (0, 1)]
        source = tuple(slice(max(s, 0), max(s, 0) + n) for s, n in zip(start, length, strict=True))
        target = tuple(slice(max(-s, 0), max(-s, 0) + n) for s, n in zip(start, length, strict=True))
        result[target] = image[source]
        return result

    def curve_places(self, places: int, coordinate: str) -> list[int]:
        """Which entry of a curve each visual token reads."""
        rows = [
            columns + (newline == "rows" or (newline == "end" and row == rows - 1))
            for (rows, columns), _, newline in self.blocks
            for row in range(rows)
        ]
        blocks = [
            rows * columns + {"rows": rows, "end": 1, None: 0}[newline]
            for (rows, columns), _, newline in self.blocks
        ]
        if coordinate == "cell":
            return self._cells(math.isqrt(places))
        runs = {"image": [sum(blocks)], "block": blocks, "row": rows}[coordinate]
        return [place for run in runs for place in curve_place(run, places)]

    def _cells(self, side: int) -> list[int]:
        found = []
        for (rows, columns), _, newline in self.blocks:
            down = [one - 1 for one in curve_place(rows, side)] if rows else []
            across = curve_place(columns, side) if columns else [1]
            for row in range(rows):
                line = [down[row] * side + one for one in across[:columns]]
                is_last = newline == "rows" or (newline == "end" and row == rows - 1)
                found += line + [down[row] * side + across[-1]] * is_last
        return found

    def _pieces(self, text: dict[str, str], thumbnail_first: bool | None) -> list[str | int]:
        tokens, (rows, columns) = self.grid[0] * self.grid[1], self.tile_grid
        several, small = rows * columns > 1, [text["thumbnail"], tokens]
        found: list[str | int] = [text["prefix"], *(small if thumbnail_first else [])]
        for r in range(rows):
            for c in range(columns):
                named = text["tile"].replace("{row}", str(r + 1)).replace("{column}", str(c + 1))
                if r == c == 0 and text["first"] is not None:
                    named = text["first"]
                found += [named if several else text["whole"], tokens]
            found.append(text["row_end"] if several else "")
        found += [*(small if thumbnail_first is False else []), text["suffix"]]
        runs = [(kind, list(run)) for kind, run in groupby(filter(None, found), key=type)]
        return ["".join(run) if kind is str else sum(run) for kind, run in runs]

    def valid(self, mask: dict[str, Any]) -> list[int]:
        """The padding mask."""
        found = []
        for grid, box, newline in self.blocks:
            outside = [low < 0 or high > 1 for low, high in box]
            if mask["kind"] == "bilinear" and any(outside):
                found += self._bilinear(box, outside.index(True), mask["threshold"])
                continue
            inside = [[_inside(_part(box[a], i, grid[a])) for i in range(grid[a])] for a in (0, 1)]
            for down in inside[0]:
                found += [
                    int(mask["kind"] != "share" or float(1 - down * across) <= mask["threshold"])
                    for across in inside[1]
                ]
                found += [1] if newline == "rows" else []
            found += [1] if newline == "end" else []
        return found

    def _bilinear(self, box: Any, axis: int, threshold: float) -> list[int]:
        side, other = self.own[axis], self.own[1 - axis]
        ratio = (box[axis][1] - box[axis][0]) * side / other
        long, width, c = other * ratio.numerator, side * ratio.denominator, self.grid[axis]
        first, r = (long - width) // 2, 2 * max(long, c)
        line = []
        for i in range(c):
            centre = (2 * i + 1) * long
            start, stop = max((centre - r) // (2 * c), 0), min((centre + r) // (2 * c), long - 1)
            w = [max(r - abs((2 * p + 1) * c - centre), 0) for p in range(start, stop + 1)]
            k = [(2**23 * one + sum(w)) // (2 * sum(w)) for one in w]
            inside = sum(one for p, one in enumerate(k, start) if first <= p < first + width)
            line.append(int(inside == sum(k) or inside >= threshold * 2**22))
        rows, columns = self.grid
        return [line[(row, column)[axis]] for row in range(rows) for column in range(columns)]


def _on_canvas(image: np.ndarray, size: Size, number: int) -> tuple[np.ndarray, list[Size]]:
    """The canvas, and on each axis the pixels in front of the image and its own."""
    (h, w), (high, wide) = image.shape[:2], size
    a, d = wide / w, high / h
    own = (min(math.ceil(h * a), high), wide) if a < d else (high, min(math.ceil(w * d), wide))
    top, left = (high - own[0]) // 2, (wide - own[1]) // 2
    canvas = np.zeros((high, wide, 3), dtype=np.uint8)
    canvas[top : top + own[0], left : left + own[1]] = resize(image, own, number)
    return canvas, [(top, own[0]), (left, own[1])]


_NEWLINE = [(0, 1.0), *[(0, 0.0)] * 3]


def _sampled(i: int, n: int, k: int) -> list[tuple[int, float]]:
    x = max(
        np.float32(n) / np.float32(k) * (np.float32(i) + np.float32(0.5)) - np.float32(0.5), np.float32(0)
    )
    low = int(x)
    share = np.float32(x) - np.float32(low)
    return [(low, float(np.float32(1) - share)), (min(low + 1, n - 1), float(share))]


def _part(edges: Any, number: int, parts: int) -> tuple[Fraction, Fraction]:
    low, high = edges
    return low + (high - low) * Fraction(number, parts), low + (high - low) * Fraction(number + 1, parts)


def _inside(edges: tuple[Fraction, Fraction]) -> Fraction:
    low, high = edges
    return (min(max(high, 0), 1) - min(max(low, 0), 1)) / (high - low)
