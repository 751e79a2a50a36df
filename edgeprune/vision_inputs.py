"""What the vision graph reads beside `pixel_values`: numbers that follow from the images' layouts alone.

A graph whose shapes do not depend on data is handed what its model's own code would compute of the images'
sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from edgeprune.image_program import ImageProgram
from edgeprune.layout import ImageLayout


def vision_inputs(program: ImageProgram, images: Sequence[ImageLayout]) -> dict[str, NDArray[Any]]:
    """The further inputs of the vision graph, by name, as `interface.vision_interface` states them.

    Args:
        program: of the bundle.
        images: of one run, in the order of their `pixel_values`.

    Returns:
        Nothing for a graph that reads tiles, which are all alike.
    """
    return {}
