"""Drawings, pixel by pixel, on a stage made by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeprune.errors import InputError
from edgeprune.image_program import GridTokens, ImageText, Letterbox
from edgeprune.plans import Debias, PruningStage
from edgeprune.runtime.drawing import draw_kept
from edgeprune.runtime.images import load_image
from edgeprune.runtime.stages import StageResult
from tests.manifests import make_manifest
from tests.programs import internvl

GREEN, RED, BLUE = (18, 161, 80), (229, 72, 77), (20, 40, 200)


def stage(kept: list[int], valid: list[int] | None = None, images: int = 1) -> StageResult:
    """Scores fall with the index, so that without debias the first ones are kept."""
    count = 16 * images
    return StageResult(
        planned=PruningStage(layer=2, score_layer=1, keep=5000),
        debias=(Debias.POSITION, Debias.PADDING),
        kept_visual=np.array(kept),
        candidates=np.arange(count),
        score=np.linspace(1, 0, count, dtype=np.float32),
        weight=np.ones(count, dtype=np.float32),
        visual_valid=np.array(valid or [1] * count, dtype=np.float32),
    )


def blue(width: int = 24, height: int = 24) -> np.ndarray:
    return np.full((height, width, 3), BLUE, dtype=np.uint8)


def cells(sheet: Image.Image, column: int, row: int = 0, rows: int = 1) -> np.ndarray:
    """The colours in the middle and on the edge of every cell of a drawn image: uint8 [16, 2, 3]."""
    pixels = np.array(sheet)
    side = 480
    x0 = 20 + column * (side + 20)
    legend = 24 + 20
    top = sheet.height - legend - rows * (2 * 24 + side + 20) + row * (2 * 24 + side + 20) + 2 * 24
    cell = side // 4
    found = [
        [pixels[top + r * cell + cell // 2, x0 + c * cell + d] for d in (cell // 2, 3)]
        for r in range(4)
        for c in range(4)
    ]
    return np.array(found)


def colored(found: np.ndarray, color: tuple[int, int, int]) -> list[int]:
    return np.flatnonzero((found == color).all(axis=1)).tolist()


def test_kept_tokens_show_the_picture_in_a_frame_and_dropped_ones_are_dimmed() -> None:
    sheet = draw_kept(make_manifest(), [blue()], stage([3, 6, 12]))
    for column, kept in ((0, [0, 1, 2]), (1, [3, 6, 12])):
        found = cells(sheet, column)
        assert colored(found[:, 0], BLUE) == kept
        assert colored(found[:, 1], GREEN) == kept
        dropped = [token for token in range(16) if token not in kept]
        assert (found[dropped, 0] > np.array(BLUE)).all()


def test_padding_that_is_kept_has_another_frame() -> None:
    valid = [0, 1, 0, 1] + [1] * 12
    sheet = draw_kept(make_manifest(), [blue()], stage([1, 3, 5, 7], valid))
    assert colored(cells(sheet, 0)[:, 1], RED) == [0, 2]
    assert colored(cells(sheet, 0)[:, 1], GREEN) == [1, 3]
    assert colored(cells(sheet, 1)[:, 1], RED) == []


def test_every_picture_of_a_prompt_gets_its_own_tokens() -> None:
    sheet = draw_kept(make_manifest(), [blue(), blue()], stage([2, 17, 31], images=2))
    assert colored(cells(sheet, 1, 0, 2)[:, 0], BLUE) == [2]
    assert colored(cells(sheet, 1, 1, 2)[:, 0], BLUE) == [1, 15]
    assert colored(cells(sheet, 0, 0, 2)[:, 0], BLUE) == [0, 1, 2]
    assert colored(cells(sheet, 0, 1, 2)[:, 0], BLUE) == []


def test_a_stage_that_is_not_debiased_is_drawn_once() -> None:
    both = draw_kept(make_manifest(), [blue()], stage([3]))
    once = draw_kept(make_manifest(), [blue()], dataclasses.replace(stage([3]), debias=()))
    assert once.width == both.width - 500


def test_scores_that_are_debiased_already_do_not_tell_what_is_kept_without() -> None:
    (planned,) = make_manifest(method="tokencarve").plan.stages
    once = draw_kept(make_manifest(), [blue()], dataclasses.replace(stage([3, 6, 12]), planned=planned))
    assert once.width < 600 < draw_kept(make_manifest(), [blue()], stage([3])).width
    assert colored(cells(once, 0)[:, 0], BLUE) == [3, 6, 12]


def test_padding_is_drawn_around_a_picture_in_the_colour_that_the_model_sees() -> None:
    program = make_manifest().image_program.model_copy(update={"fit": Letterbox(color=(200, 100, 50))})
    manifest = make_manifest(image_program=program)
    sheet = draw_kept(manifest, [blue(48, 24)], stage(list(range(16))))
    found = cells(sheet, 1)[:, 0]
    assert colored(found, (200, 100, 50)) == [0, 1, 2, 3, 12, 13, 14, 15]
    assert colored(found, BLUE) == [4, 5, 6, 7, 8, 9, 10, 11]


def test_tiles_are_drawn_as_one_and_a_thumbnail_beside_them() -> None:
    program = internvl(side=24, most=2, tokens=GridTokens(rows=2, columns=2), text=ImageText())
    manifest = make_manifest(debias="", image_program=program)
    score = np.zeros(12, dtype=np.float32)
    score[[0, 1, 11]] = 1
    kept = StageResult(
        planned=manifest.plan.stages[0],
        debias=(),
        kept_visual=np.array([0, 1, 11]),
        candidates=np.arange(12),
        score=score,
        weight=np.ones(12, dtype=np.float32),
        visual_valid=np.ones(12, dtype=np.float32),
    )
    pixels = np.array(draw_kept(manifest, [blue(48, 24)], kept))
    # Two tiles side by side, 480 x 240; then the thumbnail, which shows the whole image again.
    top = 20 + 24 + 12 + 48
    assert pixels[top + 60, 20 + 60].tolist() == list(BLUE)
    assert pixels[top + 60, 20 + 60 + 120].tolist() == list(BLUE)
    assert pixels[top + 60, 20 + 60 + 240].tolist() != list(BLUE)
    below = top + 240 + 20 + 48
    assert pixels[below + 180, 20 + 360].tolist() == list(BLUE)
    assert pixels[below + 60, 20 + 60].tolist() != list(BLUE)


def test_titles_are_never_cut() -> None:
    sheet = draw_kept(make_manifest(), [blue()], stage([3]), title="a very long title " * 20)
    edge = np.array(sheet)[:, -15:]
    assert (edge == 255).all()
    assert sheet.width > 1500


def test_it_is_written_as_a_file(tmp_path: Path) -> None:
    path = tmp_path / "kept.png"
    draw_kept(make_manifest(), [blue()], stage([3])).save(path)
    assert load_image(path).shape[1] == 1020


@pytest.mark.parametrize("count", [0, 1, 3])
def test_other_pictures_than_the_prompt_s_are_refused(count: int) -> None:
    with pytest.raises(
        InputError, match=rf"{count} images are to be drawn with visual tokens up to number 32"
    ):
        draw_kept(make_manifest(), [blue()] * count, stage([3], images=2))
