"""A model's video processor, as the bundle's video program.

Frames are resized as images are, by Pillow's filters. transformers' own classes do it by torchvision's, which
round otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgeprune.errors import UnsupportedModelError
from edgeprune.exporter.image_processor import check_steps, height_width, positive
from edgeprune.exporter.model_files import read_json
from edgeprune.fields import first_fault
from edgeprune.image_sizes import FixedSize, ShortestEdge
from edgeprune.video_program import FrameSampling, VideoProgram


def read_video_program(
    folder: Path, processor: str, defaults: dict[str, Any], make: Callable[[dict[str, Any]], VideoProgram]
) -> VideoProgram:
    """The program of a model's videos, by its video processor's own file, or else by what its class does.

    The image processor's file, which transformers reads where there is no other one, says nothing about
    videos: by its budget of pixels a frame would cost as much as a photograph.

    Args:
        folder: the model, in Hugging Face's layout.
        processor: the class of its video processor.
        defaults: what that does where its JSON says nothing.
        make: the program of the settings, which hold every key of `defaults`.

    Raises:
        InputError: a file is not valid.
        UnsupportedModelError: another class, or a setting that cannot be reproduced.
    """
    nested = (read_json(folder / "processor_config.json") or {}).get("video_processor")
    found = nested if isinstance(nested, dict) else read_json(folder / "video_preprocessor_config.json")
    raw = {**defaults, **{key: value for key, value in (found or {}).items() if value is not None}}
    name = str(raw.get("video_processor_type", processor)).removesuffix("Fast")
    if name != processor:
        raise UnsupportedModelError(
            f"the video processor {name} is not supported here. Supported: {processor}"
        )
    check_steps(raw)
    try:
        return make(raw)
    except ValidationError as error:
        raise UnsupportedModelError(f"the video processor's {first_fault(error)}") from error


def frame_size(raw: dict[str, Any]) -> FixedSize | ShortestEdge:
    """The one size of every frame, or that of its shorter edge."""
    size = raw["size"]
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        return ShortestEdge(edge=positive("size", size["shortest_edge"]))
    height, width = height_width("size", size)
    return FixedSize(height=height, width=width)


def frame_crop(raw: dict[str, Any]) -> tuple[int, int] | None:
    """The middle that is cut out of every frame; None for all of it."""
    return height_width("crop_size", raw["crop_size"]) if raw["do_center_crop"] else None


def sampling(raw: dict[str, Any], multiple: int = 1, ends: bool = False) -> FrameSampling:
    """Which frames are seen: so many, or so many of a second."""
    if raw.get("num_frames"):
        return FrameSampling(frames=positive("num_frames", raw["num_frames"]), multiple=multiple, ends=ends)
    return FrameSampling(
        per_second=float(raw["fps"]),
        least=positive("min_frames", raw.get("min_frames", 1)),
        most=positive("max_frames", raw.get("max_frames", 768)),
        multiple=multiple,
        ends=ends,
    )
