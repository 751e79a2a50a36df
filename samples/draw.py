"""Draws the pictures in `samples/pictures` and writes down questions about them.

python samples/draw.py -o samples/pictures
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script: make the package `samples` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from samples.scenes import PICTURE_SEEDS, scene

# Width over height, and the longer edge in pixels.
PICTURES = {
    "square": (1.0, 192),
    "wide": (3 / 2, 192),
    "tall": (2 / 3, 192),
    "small": (4 / 3, 96),
    "panorama": (3.0, 192),
    "banner": (6.0, 192),
    "column": (1 / 6, 192),
}
QUESTIONS = 4
"""Of each picture's twelve."""


def draw(folder: Path) -> None:
    """Writes one PNG per entry of PICTURES, and questions.json: picture, question, answer."""
    asked = []
    for seed, (name, (aspect, side)) in zip(PICTURE_SEEDS, PICTURES.items(), strict=False):
        drawn = scene(seed, aspect=aspect, side=side)
        drawn.image.save(folder / f"{name}.png", optimize=True)
        asked += [
            {"picture": f"{name}.png", "question": question.text, "answer": question.answer}
            for question in drawn.questions[:QUESTIONS]
        ]
    (folder / "questions.json").write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Draw the sample pictures.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(arguments)
    if not options.output.is_dir():
        print(f"error: {options.output} is not a folder; create it first", file=sys.stderr)
        return 1
    draw(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
