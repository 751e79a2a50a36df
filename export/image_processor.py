"""A model's image processor, as the bundle's image program.

What the runtime cannot reproduce exactly is refused here by name, never approximated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers.utils.constants import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from edgeprune.debias.masks import PaddingMask
from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.exporter.model_files import read_json
from edgeprune.fields import first_fault
from edgeprune.image_program import (
    AmongSeveral,
    CutCrops,
    CutTiles,
    GridTokens,
    ImageProgram,
    ImageText,
    Letterbox,
    PackedTokens,
    PatchFeed,
    PatchTokens,
    PixelValues,
    Stretch,
    TileFeed,
)
from edgeprune.image_sizes import (
    AspectTiles,
    BestCanvas,
    FixedSize,
    LongestEdge,
    PixelBudget,
    ShortestEdge,
    SizeStep,
    TileMultiples,
)
from edgeprune.plans import method_by_name

_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class _Defaults:
    """What an image processor class does where its JSON says nothing; null there means none, or no."""

    size: dict[str, int]
    crop_size: dict[str, int] | None
    mean: Sequence[float]
    std: Sequence[float]
    # LLaVA's own class letterboxes before it resizes; elsewhere do_pad means something else.
    can_letterbox: bool = False
    resample: int = 3


_CLIP_CROP = {"height": 224, "width": 224}
_SUPPORTED = {
    "CLIPImageProcessor": _Defaults({"shortest_edge": 224}, _CLIP_CROP, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "LlavaImageProcessor": _Defaults(
        {"shortest_edge": 224}, _CLIP_CROP, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, can_letterbox=True
    ),
    "VideoLlavaImageProcessor": _Defaults(
        {"shortest_edge": 224}, _CLIP_CROP, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
    ),
    "SiglipImageProcessor": _Defaults(
        {"height": 224, "width": 224}, None, IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD
    ),
    "Gemma3ImageProcessor": _Defaults(
        {"height": 224, "width": 224}, None, IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, resample=2
    ),
}
_WHAT_WORKS = (
    f"Supported: {', '.join(_SUPPORTED)}, with a fixed output size; resampling "
    f"{', '.join(_RESAMPLING.values())}; padding to a square by LlavaImageProcessor"
)


def read_image_program(
    folder: Path,
    image_size: tuple[int, int],
    grid: tuple[int, int],
    text: ImageText = ImageText(),
    cut: CutCrops | None = None,
) -> ImageProgram:
    """The image program of a model folder, from processor_config.json or preprocessor_config.json.

    Args:
        folder: the model, in Hugging Face's layout.
        image_size: (height, width) of the vision tower's input.
        grid: (rows, cols) of visual tokens of an image.
        text: of an image, around its tokens.
        cut: into crops, where the processor's file asks for that.

    Raises:
        InputError: there is no such file, or it is not valid.
        UnsupportedModelError: a class or a setting that cannot be reproduced exactly.
    """
    raw = _image_processor_json(folder)
    name = _class_name(raw)
    if name not in _SUPPORTED:
        raise UnsupportedModelError(f"the image processor {name} is not supported. {_WHAT_WORKS}")
    defaults = _SUPPORTED[name]
    pads = bool(raw.get("do_pad", False))
    if pads and not defaults.can_letterbox:
        raise UnsupportedModelError(f"the image processor's do_pad of {name} is not supported. {_WHAT_WORKS}")
    resizes, rescales, normalizes = (
        bool(raw.get(f"do_{step}", True)) for step in ("resize", "rescale", "normalize")
    )
    crops = bool(raw.get("do_center_crop", defaults.crop_size is not None))
    resample = _resample(raw, defaults.resample) if resizes else 3
    size = raw.get("size", defaults.size)
    if isinstance(size, int):
        # A bare number is the shortest edge, unless the file says that it stands for a square.
        square = raw.get("default_to_square", False)
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    by_edge = isinstance(size, dict) and set(size) == {"shortest_edge"}
    mean = raw.get("image_mean", defaults.mean)
    sizes: tuple[SizeStep, ...] = ()
    if resizes and by_edge:
        sizes = (ShortestEdge(edge=positive("size", size["shortest_edge"])),)
    elif resizes:
        high, wide = height_width("size", size)
        sizes = (FixedSize(height=high, width=wide),)
    color = _pad_color(mean) if pads and mean is not None else (0, 0, 0)
    pixels = PixelValues(
        resample=resample,
        rescale_factor=_number("rescale_factor", raw.get("rescale_factor", 1 / 255)) if rescales else None,
        mean=_channels("image_mean", mean) if normalizes else None,
        std=_std(raw.get("image_std", defaults.std)) if normalizes else None,
    )
    try:
        return ImageProgram(
            fit=Letterbox(color=color) if pads else Stretch(),
            sizes=sizes,
            crop=height_width("crop_size", raw.get("crop_size", defaults.crop_size)) if crops else None,
            cut=cut,
            pixels=pixels,
            feed=TileFeed(height=image_size[0], width=image_size[1]),
            tokens=GridTokens(rows=grid[0], columns=grid[1]),
            text=text,
        )
    except ValidationError as error:
        raise UnsupportedModelError(f"the image processor's {first_fault(error)}. {_WHAT_WORKS}") from error


def read_crops(folder: Path) -> CutCrops | None:
    """Pan and scan, where a model's image processor asks for it.

    Raises:
        InputError, UnsupportedModelError: as `read_image_program`.
    """
    raw = _image_processor_json(folder)
    if not raw.get("do_pan_and_scan"):
        return None
    # Where its file has nothing, the processor brings these.
    least, most, ratio = (
        default if (value := raw.get(f"pan_and_scan_{key}")) is None else value
        for key, default in (("min_crop_size", 256), ("max_num_crops", 4), ("min_ratio_to_activate", 1.2))
    )
    try:
        return CutCrops(
            ratio=_number("pan_and_scan_min_ratio_to_activate", ratio),
            least=positive("pan_and_scan_min_crop_size", least),
            most=positive("pan_and_scan_max_num_crops", most),
        )
    except ValidationError as error:
        raise UnsupportedModelError(f"the image processor's {first_fault(error)}") from error


def read_tile_program(
    folder: Path, image_size: tuple[int, int], grid: tuple[int, int], text: ImageText
) -> ImageProgram:
    """The program of a model whose images are cut into tiles in nearly their shape, the whole image last.

    Args:
        folder: the model, in Hugging Face's layout; its processor is a GotOcr2ImageProcessor.
        image_size: (height, width) of a tile.
        grid: (rows, cols) of visual tokens of a tile.
        text: around them in the prompt.

    Raises:
        InputError, UnsupportedModelError: as `read_image_program`.
    """
    raw = _image_processor_json(folder)
    _check_class(raw, "GotOcr2ImageProcessor")
    height, width = height_width("size", raw.get("size", {"height": 384, "width": 384}))
    cuts = bool(raw.get("crop_to_patches", False))
    least, most = (
        positive(key, raw.get(key, default)) for key, default in (("min_patches", 1), ("max_patches", 12))
    )
    return _program(
        sizes=(AspectTiles(least=least, most=most) if cuts else FixedSize(height=height, width=width),),
        cut=CutTiles(thumbnail="last", thumbnail_of="image") if cuts else None,
        pixels=pixel_values(raw),
        feed=TileFeed(height=image_size[0], width=image_size[1]),
        tokens=GridTokens(rows=grid[0], columns=grid[1]),
        text=text,
    )


def read_split_program(folder: Path, processor: str, tile: int, side: int, text: ImageText) -> ImageProgram:
    """The program of a model whose images grow to whole tiles, the resized image last as one more.

    Args:
        folder: the model, in Hugging Face's layout.
        processor: the class of its image processor.
        tile: pixels of a tile, each way.
        side: visual tokens of a tile, each way.
        text: around them in the prompt.

    Raises:
        InputError, UnsupportedModelError: as `read_image_program`.
    """
    raw = _image_processor_json(folder)
    _check_class(raw, processor)
    size, own = (
        raw.get(key, {"longest_edge": edge}) for key, edge in (("size", 1456), ("max_image_size", 364))
    )
    if not isinstance(size, dict) or set(size) != {"longest_edge"}:
        raise _unsupported(f"size {size!r}")
    if own != {"longest_edge": tile}:
        raise UnsupportedModelError(
            f"the image processor's max_image_size {own!r} is not the vision tower's {tile} pixels: correct "
            "one of them"
        )
    # The limit is the processor's own, whatever its settings.
    edge = LongestEdge(edge=positive("size", size["longest_edge"]), even=True, limit=4096)
    splits = bool(raw.get("do_image_splitting", True))
    return _program(
        sizes=(edge, TileMultiples() if splits else FixedSize(height=tile, width=tile)),
        cut=CutTiles(thumbnail="last", thumbnail_of="resized") if splits else None,
        pixels=pixel_values(raw, resample=1, mean=IMAGENET_STANDARD_MEAN, std=IMAGENET_STANDARD_STD),
        feed=TileFeed(height=tile, width=tile),
        tokens=GridTokens(rows=side, columns=side),
        text=text,
    )


def read_canvas_program(
    folder: Path,
    processor: str,
    image_size: tuple[int, int],
    tokens: PackedTokens,
    canvases: Sequence[tuple[int, int]],
) -> ImageProgram:
    """The program of a model whose images are padded to one of some canvases and cut into tiles, the whole
    image first.

    Args:
        folder: the model, in Hugging Face's layout.
        processor: the class of its image processor.
        image_size: (height, width) of a tile.
        tokens: of a tile.
        canvases: (height, width) of each, as the model's config has them.

    Raises:
        InputError, UnsupportedModelError: as `read_image_program`.
    """
    raw = _image_processor_json(folder)
    _check_class(raw, processor)
    among_several = processor == "LlavaOnevisionImageProcessor"
    default, crops = (384, False) if among_several else (224, True)
    tile = {"height": image_size[0], "width": image_size[1]}
    square = [tile, {"shortest_edge": image_size[0]}, image_size[0]]
    found = {"size": raw.get("size", {"height": default, "width": default})}
    if raw.get("do_center_crop", crops):
        found["crop_size"] = raw.get("crop_size", {"height": default, "width": default})
    for key, value in found.items():
        if value not in square:
            raise UnsupportedModelError(
                f"the image processor's {key} {value!r} is not the vision tower's {image_size[0]} pixels: "
                "correct one of them"
            )
    own = [
        tuple(height_width("image_grid_pinpoints", pair))
        for pair in raw.get("image_grid_pinpoints", canvases)
    ]
    if sorted(own) != sorted(canvases):
        raise UnsupportedModelError(
            "the image processor's image_grid_pinpoints are not those of config.json: correct one of them"
        )
    mean = raw.get("image_mean", OPENAI_CLIP_MEAN)
    return _program(
        sizes=(BestCanvas(canvases=tuple(own)),),
        cut=CutTiles(thumbnail="first", thumbnail_of="image", always=True),
        pixels=pixel_values(raw),
        feed=TileFeed(height=image_size[0], width=image_size[1]),
        tokens=tokens,
        several=AmongSeveral(
            fit=Letterbox(color=_pad_color(mean)),
            sizes=(FixedSize(height=image_size[0], width=image_size[1]),),
        )
        if among_several
        else None,
    )


def read_patch_program(folder: Path, feed: PatchFeed, tokens: PatchTokens) -> ImageProgram:
    """The program of a model that reads images of any size, within a budget of pixels.

    Args:
        folder: the model, in Hugging Face's layout; its processor is a Qwen2VLImageProcessor.
        feed, tokens: as the model's config says.

    Raises:
        InputError, UnsupportedModelError: as `read_image_program`.
    """
    raw = _image_processor_json(folder)
    _check_class(raw, "Qwen2VLImageProcessor")
    for key, default, own in (
        ("patch_size", 14, feed.size),
        ("temporal_patch_size", 2, feed.frames),
        ("merge_size", 2, tokens.side),
    ):
        if (found := raw.get(key, default)) != own:
            raise UnsupportedModelError(
                f"the image processor's {key} {found!r} is not that of config.json, {own}: correct one of "
                "them"
            )
    least, most = pixel_bounds(raw, 56 * 56, 28 * 28 * 1280)
    return _program(
        sizes=(PixelBudget(least=least, most=most),), pixels=pixel_values(raw), feed=feed, tokens=tokens
    )


def padding_mask_for(program: ImageProgram, method: str) -> PaddingMask:
    """How a method's padding mask is made; none where images are never padded.

    The published masks are of letterboxes; on a canvas a cell counts by the share of it that is padding.
    """
    if not program.pads:
        return PaddingMask(kind="none")
    published = method_by_name(method).padding_mask
    return (
        published
        if isinstance(program.fit, Letterbox)
        else PaddingMask(kind="share", threshold=published.threshold)
    )


def _image_processor_json(folder: Path) -> dict[str, Any]:
    # The newer file first, as transformers does; older ones of that name hold no image processor.
    nested = (read_json(folder / "processor_config.json") or {}).get("image_processor")
    raw = nested if isinstance(nested, dict) else read_json(folder / "preprocessor_config.json")
    if raw is None:
        raise InputError(
            f"{folder} has no preprocessor_config.json, nor a processor_config.json with an image processor: "
            "expected a complete model folder; copy the missing file"
        )
    return raw


def _class_name(raw: dict[str, Any]) -> str:
    """The class without the suffix of its variant; all variants are to compute the same."""
    name = raw.get("image_processor_type")
    if name is None:
        old = str(raw.get("feature_extractor_type", "of no name"))
        name = old.replace("FeatureExtractor", "ImageProcessor")
    return str(name).removesuffix("Fast").removesuffix("Pil")


def _check_class(raw: dict[str, Any], expected: str) -> None:
    """Refuses another processor than the family's, and one that leaves a step out."""
    if (name := _class_name(raw)) != expected:
        raise UnsupportedModelError(
            f"the image processor {name} is not supported here. Supported: {expected}"
        )
    check_steps(raw)


def check_steps(raw: dict[str, Any]) -> None:
    """Refuses a processor that leaves a step out."""
    for step in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        if not raw.get(step, True):
            raise _unsupported(f"{step} false")


def pixel_values(
    raw: dict[str, Any],
    resample: int = 3,
    mean: Sequence[float] = OPENAI_CLIP_MEAN,
    std: Sequence[float] = OPENAI_CLIP_STD,
) -> PixelValues:
    """Of a processor that does all steps, with what it does where its JSON says nothing."""
    return PixelValues(
        resample=_resample(raw, resample),
        rescale_factor=_number("rescale_factor", raw.get("rescale_factor", 1 / 255)),
        mean=_channels("image_mean", raw.get("image_mean", mean)),
        std=_std(raw.get("image_std", std)),
    )


def _program(**fields: Any) -> ImageProgram:
    try:
        return ImageProgram(**fields)
    except ValidationError as error:
        raise UnsupportedModelError(f"the image processor's {first_fault(error)}") from error


def _unsupported(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the processor's {what} is not supported: expected a setting that its class and checkpoints "
        "have; correct preprocessor_config.json, or the file that the setting is in"
    )


def pixel_bounds(raw: dict[str, Any], least: int | None = None, most: int | None = None) -> tuple[int, int]:
    """The least and the most pixels of a setting, or these where it has none."""
    size = raw["size"] if isinstance(raw.get("size"), dict) else {}
    edges = (("min_pixels", "shortest_edge", least), ("max_pixels", "longest_edge", most))
    found = [
        positive(key, raw[key] if raw.get(key) is not None else size.get(edge, default))
        for key, edge, default in edges
    ]
    return found[0], found[1]


def _resample(raw: dict[str, Any], default: int = 3) -> int:
    value = raw.get("resample", default)
    if not (isinstance(value, int) and value in _RESAMPLING):
        raise _unsupported(f"resample {value!r}")
    return value


def positive(key: str, value: Any) -> int:
    """A setting that is a whole number above 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _unsupported(f"{key} {value!r}")
    return value


def height_width(key: str, value: Any) -> tuple[int, int]:
    """A setting that is a size, in any of the forms that it has."""
    if isinstance(value, int):
        value = (value, value)
    if isinstance(value, dict) and set(value) == {"height", "width"}:
        value = (value["height"], value["width"])
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise _unsupported(f"{key} {value!r}")
    return positive(key, value[0]), positive(key, value[1])


def _channels(key: str, value: Any) -> tuple[float, float, float]:
    numbers = [value] * 3 if isinstance(value, (int, float)) else value
    if not isinstance(numbers, (list, tuple)) or len(numbers) != 3:
        raise _unsupported(f"{key} {value!r}")
    return _number(key, numbers[0]), _number(key, numbers[1]), _number(key, numbers[2])


def _number(key: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _unsupported(f"{key} {value!r}")
    return float(value)


def _std(value: Any) -> tuple[float, float, float]:
    std = _channels("image_std", value)
    if 0 in std:
        raise _unsupported(f"image_std {value!r}")
    return std


def _pad_color(mean: Any) -> tuple[int, int, int]:
    # Cut, not rounded: int(0.48145466 * 255) is 122.
    red, green, blue = (int(channel * 255) for channel in _channels("image_mean", mean))
    if not all(0 <= channel <= 255 for channel in (red, green, blue)):
        raise _unsupported(f"image_mean {mean} as the colour of the padding")
    return red, green, blue
