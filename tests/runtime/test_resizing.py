"""The bytes of resized images, recorded: they are the same under every release of Pillow.

`python -m benchmarks.pillow_versions` runs this file under several.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from edgeprune.image_program import PixelValues, TileFeed
from edgeprune.image_sizes import FixedSize
from edgeprune.runtime.programs import image_tiles
from tests.programs import LETTERBOX, llava

# (width, height), what is done, Pillow's filter -> the first 16 digits of SHA-256 of the bytes.
# Pillow 13 gives other bytes for those marked * where it is asked in one call: it resizes their height first.
RECORDED = {
    ((640, 480), "fixed", 3): "5dbb4ce21bdf3908",
    ((480, 640), "fixed", 3): "39976246e13f1716",  # *
    ((480, 640), "fixed", 2): "67f8db74061fa182",  # *
    ((480, 640), "fixed", 1): "92144a9a05872c68",  # *
    ((480, 640), "fixed", 0): "12a85468151caf27",
    ((480, 640), "cropped", 3): "2af4d38562dbb049",
    ((300, 1200), "cropped", 3): "e9924e1f2fed8a18",
    ((300, 1200), "letterboxed", 3): "de53650647acaf0c",
    ((1200, 300), "letterboxed", 2): "fb5424b362ee1abb",
    ((97, 41), "fixed", 3): "aa45e6d7061148fb",
    ((31, 80), "fixed", 1): "d60347034e0e6015",
    ((1000, 2), "fixed", 3): "85b08008b9b192de",
    ((2, 1000), "fixed", 3): "fd612ff95a02335a",  # *
}
STEPS: dict[str, dict[str, Any]] = {
    "fixed": {
        "sizes": (FixedSize(height=384, width=384),),
        "crop": None,
        "feed": TileFeed(height=384, width=384),
    },
    "cropped": {},
    "letterboxed": {"fit": LETTERBOX},
}


def picture(width: int, height: int) -> np.ndarray:
    """Numbers that are the same with every numpy: a congruential generator's."""
    state = (np.arange(width * height * 3, dtype=np.uint64) + np.uint64(width * 65537 + height)) * np.uint64(
        6364136223846793005
    )
    return ((state >> np.uint64(33)) % np.uint64(256)).astype(np.uint8).reshape(height, width, 3)


def digest(size: tuple[int, int], steps: str, resample: int) -> str:
    program = llava(**STEPS[steps], pixels=PixelValues(resample=resample))
    pixels = image_tiles(picture(*size), program)[0].transpose(2, 0, 1)
    return hashlib.sha256(pixels.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: f"{case[0][0]}x{case[0][1]} {case[1]} {case[2]}")
def test_the_bytes_are_the_recorded_ones(case: tuple[tuple[int, int], str, int]) -> None:
    assert digest(*case) == RECORDED[case]
