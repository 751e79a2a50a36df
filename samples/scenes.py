"""Procedural pictures with questions: the data set of the sample model.

A picture holds a few small coloured shapes among grey lines on a noisy grey ground. All shapes of a
picture differ, and so do their colors, so that one names the other: "what color is the star", "what shape
is red". The answer is always one word, and guessing it right has a chance of one in eight.

Everything about a picture follows from its seed (numpy's PCG64 stream), so a data set is a range of seeds.
The ranges below never overlap: a picture asked about in an evaluation was never trained on.

Only numpy and Pillow are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "hourglass")
COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "cyan", "pink")

GRID = 12
"""Visual tokens along each side of the letterboxed square."""
MAX_OBJECTS = 6

TRAINING_SEEDS = range(1_000_000)
TUNING_SEEDS = range(1_000_000, 1_100_000)
"""For choosing settings and calibrating; an accuracy measured here is not a held-out one."""
HELD_OUT_SEEDS = range(2_000_000, 2_100_000)
"""For stated accuracies only."""
PICTURE_SEEDS = range(3_000_000, 3_001_000)
"""For the pictures that lie in `samples/pictures`."""

_RGB = {
    "red": (214, 34, 34),
    "green": (30, 150, 48),
    "blue": (36, 66, 220),
    "yellow": (244, 224, 40),
    "orange": (246, 138, 20),
    "purple": (128, 36, 170),
    "cyan": (50, 216, 226),
    "pink": (250, 150, 196),
}
# Width over height and how often it is drawn. Most pictures are letterboxed, so that padding makes up
# about a quarter of all visual tokens, and a few leave only two rows or columns of them to the picture.
_ASPECTS = (
    (1.0, 8),
    (4 / 3, 3),
    (3 / 4, 3),
    (3 / 2, 2),
    (2 / 3, 2),
    (2.0, 1),
    (1 / 2, 1),
    (3.0, 1),
    (1 / 3, 1),
    (6.0, 0.5),
    (1 / 6, 0.5),
)
_LONG_SIDES = (96, 144, 192)
"""Pixels; a multiple of GRID, so that a visual token covers whole pixels of the picture."""
_SUPERSAMPLING = 4

# Corners in a box from -1 to 1, y downwards. Circle and ring are not polygons.
_STAR = tuple(
    (radius * float(np.sin(np.pi * corner / 5)), -radius * float(np.cos(np.pi * corner / 5)))
    for corner, radius in enumerate((1.0, 0.42) * 5)
)
_ARM = 0.34
_POLYGONS: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "triangle": ((0.0, -1.0), (0.98, 0.85), (-0.98, 0.85)),
    "star": _STAR,
    "cross": (
        (-_ARM, -1.0), (_ARM, -1.0), (_ARM, -_ARM), (1.0, -_ARM), (1.0, _ARM), (_ARM, _ARM),
        (_ARM, 1.0), (-_ARM, 1.0), (-_ARM, _ARM), (-1.0, _ARM), (-1.0, -_ARM), (-_ARM, -_ARM),
    ),
    "diamond": ((0.0, -1.0), (0.8, 0.0), (0.0, 1.0), (-0.8, 0.0)),
    "hourglass": ((-0.9, -1.0), (0.9, -1.0), (0.14, 0.0), (0.9, 1.0), (-0.9, 1.0), (-0.14, 0.0)),
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A question in plain words, without the prompt around it, and its one-word answer."""

    text: str
    answer: str


@dataclass(frozen=True)
class Thing:
    """A shape in a picture; `row` and `column` name the visual token that covers most of it."""

    shape: str
    color: str
    row: int
    column: int


@dataclass(frozen=True)
class Scene:
    """A picture (RGB, not yet letterboxed), what it shows, and every question about it."""

    seed: int
    image: Image.Image = field(repr=False)
    things: tuple[Thing, ...]
    questions: tuple[Question, ...]

    @property
    def asked_tokens(self) -> tuple[int, ...]:
        """Of each question the visual token that shows what is asked about, 0 the upper left one."""
        places = {}
        for thing in self.things:
            place = thing.row * GRID + thing.column
            places[color_question(thing.shape)] = places[shape_question(thing.color)] = place
        return tuple(places[question.text] for question in self.questions)


def prompt(question: str) -> str:
    """The text the model was trained to answer: one picture, one question."""
    return f"USER: <image>\n{question} ASSISTANT:"


def color_question(shape: str) -> str:
    """Asks for the color of a shape."""
    return f"what color is the {shape}"


def shape_question(color: str) -> str:
    """Asks for the shape of a color."""
    return f"what shape is {color}"


def questions_about(things: Sequence[Thing], rng: np.random.Generator) -> tuple[Question, ...]:
    """Every question about a picture's things, two each, in random order."""
    asked = [Question(color_question(thing.shape), thing.color) for thing in things]
    asked += [Question(shape_question(thing.color), thing.shape) for thing in things]
    return tuple(asked[index] for index in rng.permutation(len(asked)))


def scene(
    seed: int, objects: int = MAX_OBJECTS, aspect: float | None = None, side: int | None = None
) -> Scene:
    """Draws the picture of a seed.

    Args:
        seed: any non-negative number; see the ranges above.
        objects: how many shapes, 1 to 6.
        aspect: width over height, 1/6 to 6. Drawn at random by default.
        side: of the longer edge in pixels, a multiple of 12. Drawn at random by default.

    Returns:
        The scene, with two questions per shape in random order.

    Raises:
        ValueError: the number of objects, the aspect or the side is outside its range.
    """
    if not 1 <= objects <= MAX_OBJECTS:
        raise ValueError(f"a scene holds 1 to {MAX_OBJECTS} objects, not {objects}")
    if aspect is not None and not 1 / 6 <= aspect <= 6:
        raise ValueError(f"the aspect must lie between 1/6 and 6, not at {aspect}")
    if side is not None and (side < 1 or side % GRID):
        raise ValueError(f"the longer edge must be a positive multiple of {GRID} pixels, not {side}")
    rng = np.random.default_rng(seed)
    weights = np.array([weight for _, weight in _ASPECTS])
    random_aspect = _ASPECTS[int(rng.choice(len(_ASPECTS), p=weights / weights.sum()))][0]
    random_side = int(rng.choice(_LONG_SIDES))
    width, height = _size(random_aspect if aspect is None else aspect, random_side if side is None else side)
    square = max(width, height)
    left, top = (square - width) // 2, (square - height) // 2
    cell = square // GRID

    image = _ground(rng, width, height)
    _draw_lines(rng, image, cell / 8)
    columns, rows = _inner(left, width, cell), _inner(top, height, cell)
    places = _scatter(rng, rows, columns, objects)
    shapes = [SHAPES[index] for index in rng.permutation(len(SHAPES))[:objects]]
    colors = [COLORS[index] for index in rng.permutation(len(COLORS))[:objects]]
    things = []
    for shape, color, (row, column) in zip(shapes, colors, places, strict=True):
        things.append(Thing(shape, color, row, column))
        # At the tower's resolution of 8 pixels per token: 8 to 10 pixels wide, at most 0.75 off the centre.
        diameter = float(rng.uniform(8.0, 10.0)) * cell / 8
        across, down = rng.uniform(-0.75, 0.75, 2) * cell / 8
        centre = ((column + 0.5) * cell - left + float(across), (row + 0.5) * cell - top + float(down))
        _draw_shape(image, shape, _shade(rng, color), centre, diameter)
    return Scene(seed, image, tuple(things), questions_about(things, rng))


def _size(aspect: float, side: int) -> tuple[int, int]:
    """Width and height with the aspect; even, so that letterboxing needs no half pixel."""
    short = max(2, 2 * round(min(aspect, 1 / aspect) * side / 2))
    return (side, short) if aspect >= 1 else (short, side)


def _inner(offset: int, length: int, cell: int) -> range:
    """The rows or columns of visual tokens that lie wholly inside the picture."""
    return range(-(-offset // cell), (offset + length) // cell)


def _ground(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Grey with noise, its brightness falling or rising across the picture."""
    light = rng.uniform(90, 170) + np.outer(np.linspace(-1, 1, height) * rng.uniform(-20, 20), np.ones(width))
    pixels = light[:, :, None] + rng.normal(0, rng.uniform(4, 14), (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _draw_lines(rng: np.random.Generator, image: Image.Image, scale: float) -> None:
    """Grey distractors, so that not every edge is part of a shape."""
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 9))):
        x0, x1 = rng.uniform(0, image.width, 2)
        y0, y1 = rng.uniform(0, image.height, 2)
        level = int(rng.integers(40, 220))
        draw.line(
            (x0, y0, x1, y1),
            fill=(level, level, level),
            width=max(1, round(float(rng.uniform(1, 2)) * scale)),
        )


def _scatter(rng: np.random.Generator, rows: range, columns: range, count: int) -> list[tuple[int, int]]:
    """Places for shapes, none a neighbour of another: shapes are a little larger than a token."""
    cells = [(row, column) for row in rows for column in columns]
    while True:
        chosen: list[tuple[int, int]] = []
        for index in rng.permutation(len(cells)):
            row, column = cells[index]
            if all(max(abs(row - other[0]), abs(column - other[1])) > 1 for other in chosen):
                chosen.append((row, column))
                if len(chosen) == count:
                    return chosen


def _shade(rng: np.random.Generator, color: str) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in (np.array(_RGB[color]) + rng.normal(0, 7, 3)).clip(0, 255))
    return red, green, blue


def _draw_shape(
    image: Image.Image, shape: str, shade: tuple[int, int, int], centre: tuple[float, float], diameter: float
) -> None:
    """Pastes a shape with smooth edges: it is drawn larger and averaged down."""
    box = int(diameter) + 3
    corner = (round(centre[0] - box / 2), round(centre[1] - box / 2))
    x, y = ((centre[axis] - corner[axis]) * _SUPERSAMPLING for axis in (0, 1))
    radius = diameter / 2 * _SUPERSAMPLING
    mask = Image.new("L", (box * _SUPERSAMPLING, box * _SUPERSAMPLING), 0)
    draw = ImageDraw.Draw(mask)
    if shape in ("circle", "ring"):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        if shape == "ring":
            hole = radius * 0.55
            draw.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
    else:
        draw.polygon(
            [(x + radius * across, y + radius * down) for across, down in _POLYGONS[shape]], fill=255
        )
    image.paste(shade, corner, mask.resize((box, box), Image.Resampling.BOX))
