"""Image programs of published models, for tests."""

from __future__ import annotations

from typing import Any

from edgeprune.image_program import (
    CutTiles,
    GridTokens,
    ImageProgram,
    ImageText,
    Letterbox,
    PatchFeed,
    PatchTokens,
    PixelValues,
    TileFeed,
)
from edgeprune.image_sizes import AspectTiles, LongestEdge, PixelBudget, ShortestEdge, TileMultiples

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LETTERBOX = Letterbox(color=(122, 116, 104))


def llava(side: int = 336, cells: int | None = None, **changes: Any) -> ImageProgram:
    """LLaVA-1.5: shortest edge and centre crop of `side`, of cells x cells visual tokens."""
    cells = cells or max(side // 14, 1)
    fields: dict[str, Any] = {
        "sizes": (ShortestEdge(edge=side),),
        "crop": (side, side),
        "pixels": PixelValues(mean=CLIP_MEAN, std=CLIP_STD),
        "feed": TileFeed(height=side, width=side),
        "tokens": GridTokens(rows=cells, columns=cells),
    }
    return ImageProgram(**{**fields, **changes})


def internvl(side: int = 448, least: int = 1, most: int = 12, **changes: Any) -> ImageProgram:
    """InternVL3: tiles in nearly the image's shape, the thumbnail last."""
    fields: dict[str, Any] = {
        "sizes": (AspectTiles(least=least, most=most),),
        "cut": CutTiles(thumbnail="last", thumbnail_of="image"),
        "pixels": PixelValues(mean=IMAGENET_MEAN, std=IMAGENET_STD),
        "feed": TileFeed(height=side, width=side),
        "tokens": GridTokens(rows=16, columns=16),
        "text": ImageText(prefix="<img>", suffix="</img>"),
    }
    return ImageProgram(**{**fields, **changes})


def smolvlm(edge: int = 2048, side: int = 512, **changes: Any) -> ImageProgram:
    """SmolVLM2: whole tiles, resized twice, with text in front of each tile."""
    fields: dict[str, Any] = {
        "sizes": (LongestEdge(edge=edge, even=True, limit=4096), TileMultiples()),
        "cut": CutTiles(thumbnail="last", thumbnail_of="resized"),
        "pixels": PixelValues(resample=1, mean=(0.5,) * 3, std=(0.5,) * 3),
        "feed": TileFeed(height=side, width=side),
        "tokens": GridTokens(rows=8, columns=8),
        "text": ImageText(
            tile="<fake_token_around_image><row_{row}_col_{column}>",
            row_end="\n",
            thumbnail="\n<fake_token_around_image><global-img>",
            whole="<fake_token_around_image><global-img>",
            suffix="<fake_token_around_image>",
        ),
    }
    return ImageProgram(**{**fields, **changes})


def qwen(size: int = 14, least: int = 3136, most: int = 12845056, **changes: Any) -> ImageProgram:
    """Qwen2.5-VL: images of any size, as squares of 2 x 2 patches, in windows of 4 x 4 squares."""
    fields: dict[str, Any] = {
        "sizes": (PixelBudget(least=least, most=most),),
        "pixels": PixelValues(mean=CLIP_MEAN, std=CLIP_STD),
        "feed": PatchFeed(size=size, frames=2, window=4),
        "tokens": PatchTokens(side=2),
    }
    return ImageProgram(**{**fields, **changes})
