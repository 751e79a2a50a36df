"""docs/bundle.md is enough to read a bundle by: a reader written from it gets what is recorded."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.golden.layouts import CURVE_PLACES, gradient
from tests.golden.make import BUNDLES, GOLDEN, NEW_TOKENS
from tests.golden.reader import Reader, counts
from tests.golden.reader_images import SeenImage
from tests.golden.test_golden import EVERY, LIMITS, cases_of


def _pixels(name: str) -> np.ndarray:
    with Image.open(GOLDEN / "images" / name) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(("name", "case"), EVERY)
def test_a_reader_made_from_the_document_agrees(name: str, case: dict[str, Any]) -> None:
    reader = Reader(GOLDEN / name)
    images = [_pixels(image) for image in case["images"]]
    found = reader.run(case["prompt"], images, case["kept_slots"], case["debiased_by"], NEW_TOKENS)
    for field in ("input_ids", "reply", "cache_lengths"):
        assert found[field] == case[field], field
    expected = np.array(case["logits"])
    limit = LIMITS[reader.manifest["precision"]["compute"]]
    assert np.abs(found["logits"] - expected).max() <= limit * max(1.0, float(expected.std()))
    if name in ("one-stage", "three-stages", "window"):
        visual = np.flatnonzero(np.array(found["input_ids"]) == reader.manifest["prompt"]["image_token_id"])
        position = np.arange(len(found["input_ids"]))
        for kept_index, kept in zip(found["kept_index"], case["kept_visual"], strict=True):
            position = position[kept_index]
            assert np.flatnonzero(np.isin(visual, position)).tolist() == kept


@pytest.mark.parametrize("name", BUNDLES)
def test_the_counts_are_those_of_the_document(name: str) -> None:
    stages = Reader(GOLDEN / name).manifest["plan"]["stages"]
    for case in cases_of(name):
        if "keep" in case:
            continue
        visual = case["input_ids"].count(5)
        text, lengths = len(case["input_ids"]) - visual, [len(case["input_ids"])]
        kept = []
        for stage in stages:
            k, appended = counts(visual, stage)
            kept.append(k)
            visual = k + appended
            lengths.append(text + visual)
        assert (kept, lengths) == (case["kept_slots"], case["cache_lengths"])


PROGRAMS = {
    case["name"]: case["image_program"] for case in cases_of("image_programs") if "image_program" in case
}


@pytest.mark.parametrize(
    "case", cases_of("image_programs"), ids=lambda c: f"{c['name']} {c['width']}x{c['height']}"
)
def test_the_image_program_is_that_of_the_document(case: dict[str, Any]) -> None:
    seen = SeenImage(gradient(case["width"], case["height"]), PROGRAMS[case["name"]])
    assert [list(target) for target in seen.targets] == case["targets"]
    assert list(seen.tile_grid) == case["tile_grid"]
    assert hashlib.sha256(seen.tiles.tobytes()).hexdigest() == case["tiles_sha256"]
    assert seen.pieces == case["pieces"]
    for name in ("pack_index", "pack_weight"):
        if f"{name}_sha256" in case:
            found = hashlib.sha256(getattr(seen, name).tobytes()).hexdigest()
            assert found == case[f"{name}_sha256"]
    for mask in case["padding_masks"]:
        assert seen.valid(mask) == mask["valid"]
    for curve in case["curve_places"]:
        assert seen.curve_places(curve["places"], curve["coordinate"]) == curve["of"]
    assert tuple((one["coordinate"], one["places"]) for one in case["curve_places"]) == CURVE_PLACES
