"""The drawn data set: what a seed promises, and that asked-for pictures were never trained on."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from samples import draw, scenes
from samples.scenes import GRID, scene

FOLDER = Path(__file__).resolve().parents[2] / "samples" / "pictures"


def test_a_seed_always_gives_the_same_scene():
    first, again, other = scene(7), scene(7), scene(8)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.questions == again.questions
    assert first.image.tobytes() != other.image.tobytes()


def test_committed_pictures_are_what_the_script_draws(tmp_path):
    draw.draw(tmp_path)
    assert (tmp_path / "questions.json").read_text() == (FOLDER / "questions.json").read_text()
    for name in draw.PICTURES:
        with (
            scenes.Image.open(tmp_path / f"{name}.png") as drawn,
            scenes.Image.open(FOLDER / f"{name}.png") as kept,
        ):
            assert drawn.size == kept.size
            # Another Pillow may round an edge's shade differently.
            assert np.abs(np.asarray(drawn, dtype=float) - np.asarray(kept)).mean() < 1


def test_seed_ranges_do_not_overlap():
    ranges = (scenes.TRAINING_SEEDS, scenes.TUNING_SEEDS, scenes.HELD_OUT_SEEDS, scenes.PICTURE_SEEDS)
    for one, other in combinations(ranges, 2):
        assert one.stop <= other.start or other.stop <= one.start


@pytest.mark.parametrize("seed", range(40))
def test_shapes_and_colors_name_each_other(seed):
    drawn = scene(seed)
    assert len({thing.shape for thing in drawn.things}) == len({thing.color for thing in drawn.things}) == 6
    answers = {question.text: question.answer for question in drawn.questions}
    assert len(answers) == 12
    for thing in drawn.things:
        assert answers[f"what color is the {thing.shape}"] == thing.color
        assert answers[f"what shape is {thing.color}"] == thing.shape


@pytest.mark.parametrize("aspect", [1.0, 3 / 2, 2 / 3, 3.0, 6.0, 1 / 6])
@pytest.mark.parametrize("side", [96, 144, 192])
def test_each_thing_lies_where_its_token_is(aspect, side):
    """The pixel in the middle of a thing's token has the thing's color; a ring's middle is empty."""
    drawn = scene(3, aspect=aspect, side=side)
    width, height = drawn.image.size
    assert max(width, height) == side
    left, top, cell = (side - width) // 2, (side - height) // 2, side // GRID
    for thing in drawn.things:
        if thing.shape == "ring":
            continue
        x, y = thing.column * cell + cell // 2 - left, thing.row * cell + cell // 2 - top
        pixel = np.array(drawn.image.getpixel((x, y)), dtype=float)
        distances = {color: np.abs(pixel - rgb).sum() for color, rgb in scenes._RGB.items()}
        assert min(distances, key=distances.get) == thing.color


def test_about_a_quarter_of_all_tokens_is_padding():
    shares = [1 - min(one.image.size) / max(one.image.size) for one in map(scene, range(300))]
    assert 0.2 < np.mean(shares) < 0.35


@pytest.mark.parametrize("count", [0, 7])
def test_refuses_a_number_of_objects_outside_its_range(count):
    with pytest.raises(ValueError, match=f"1 to 6 objects, not {count}"):
        scene(0, count)


def test_refuses_an_aspect_and_a_side_outside_their_range():
    with pytest.raises(ValueError, match="between 1/6 and 6, not at 7"):
        scene(0, aspect=7)
    with pytest.raises(ValueError, match="multiple of 12 pixels, not 100"):
        scene(0, side=100)


def test_prompt_is_the_documented_form():
    assert scenes.prompt("what shape is red") == "USER: <image>\nwhat shape is red ASSISTANT:"
