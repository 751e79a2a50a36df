"""Pictures of kept and dropped visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from edgeprune.errors import InputError
from edgeprune.manifest import Manifest, Preprocessing
from edgeprune.runtime.images import Picture, load_image
from edgeprune.runtime.preprocess import preprocess
from edgeprune.runtime.stages import StageResult

# Side of one drawn picture in pixels: tokens of a 24 x 24 grid are then 20 wide.
_SIDE = 480
_MARGIN, _LINE = 20, 24
_PAPER, _INK, _FAINT, _KEPT, _WASTED = "#ffffff", "#1b1f24", "#6b7280", "#12a150", "#e5484d"
# How much of a dropped token's picture stays visible.
_DIMMED = 0.3


@dataclass(frozen=True)
class _Panel:
    """One half of the drawing: a heading, and which visual tokens it shows as kept."""

    heading: str
    kept: NDArray[np.int64]


def draw_kept(
    manifest: Manifest, images: Sequence[Picture], stage: StageResult, title: str | None = None
) -> Image.Image:
    """Kept and dropped tokens over the pictures as the model saw them, without and with debias side by side.

    Dropped tokens are dimmed. Kept ones have a green frame; a red one where they are padding. "Without
    debias" is what the same scores select without bias curve and padding mask. A stage that nothing debiases
    has one half alone, and so has one whose scores are debiased before they are ranked.

    Args:
        manifest: of the bundle.
        images: the prompt's pictures, as they were given to `Model.generate`; file objects rewound.
        stage: one of `Reply.stages`.
        title: a line above; None for the plan's description.

    Returns:
        An RGB picture, one row per picture of the prompt.

    Raises:
        InputError: the pictures do not match the stage's visual tokens.
    """
    spec = manifest.preprocessing
    per_image = spec.places_per_image
    reached = int(stage.candidates.max(initial=-1)) + 1
    if not images or not per_image * (len(images) - 1) < reached <= per_image * len(images):
        raise InputError(
            f"{len(images)} pictures are to be drawn with visual tokens up to number {reached}: expected the "
            f"pictures of the prompt, with {per_image} tokens each; give those and no others"
        )
    panels = _panels(stage)
    scale = max(1, round(_SIDE / max(spec.image_size)))
    height, width = (side * scale for side in spec.image_size)
    top = _MARGIN + _LINE + _LINE // 2
    row_height = 2 * _LINE + height + _MARGIN
    title = title or manifest.plan.describe()
    total = max(len(panels) * (width + _MARGIN), round(_font(17).getlength(title)) + _MARGIN) + _MARGIN
    sheet = Image.new("RGB", (total, top + len(images) * row_height + _LINE + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN), title, fill=_INK, font=_font(17))
    for number, picture in enumerate(images):
        seen = as_seen(load_image(picture), spec).resize((width, height), Image.Resampling.NEAREST)
        first = number * per_image
        shown = stage.candidates[(stage.candidates >= first) & (stage.candidates < first + per_image)]
        for column, panel in enumerate(panels):
            kept = panel.kept[np.isin(panel.kept, shown)]
            padded = stage.visual_valid[np.isin(stage.candidates, kept)] == 0
            x, y = _MARGIN + column * (width + _MARGIN), top + number * row_height
            pen.text((x, y), panel.heading, fill=_INK, font=_font(15))
            pen.text((x, y + _LINE - 3), _count(len(kept), len(shown), padded), fill=_FAINT, font=_font(13))
            sheet.paste(_marked(seen, kept - first, padded, spec.grid), (x, y + 2 * _LINE))
    _draw_legend(pen, (_MARGIN, top + len(images) * row_height))
    return sheet


def as_seen(image: NDArray[np.uint8], spec: Preprocessing) -> Image.Image:
    """A picture as it enters the vision tower: letterboxed, resized and cropped, the colours as they were."""
    plain = spec.model_copy(update={"rescale_factor": None, "mean": None, "std": None})
    return Image.fromarray(preprocess(image, plain).transpose(1, 2, 0).astype(np.uint8))


def _panels(stage: StageResult) -> list[_Panel]:
    panels = [_Panel("without debias", stage.without_debias())] if stage.score_is_raw else []
    return [*panels, _Panel("with debias", stage.kept_visual)] if stage.debias else panels


def _count(kept: int, of: int, padded: NDArray[np.bool_]) -> str:
    return f"{kept} of {of} visual tokens kept, {int(padded.sum())} of them padding"


def _marked(
    seen: Image.Image, kept: NDArray[np.int64], padded: NDArray[np.bool_], grid: tuple[int, int]
) -> Image.Image:
    """The picture with tokens that are not in `kept` (0..rows*cols-1) dimmed, and frames around those."""
    rows, columns = grid
    pale = Image.blend(seen, Image.new("RGB", seen.size, _PAPER), 1 - _DIMMED)
    pen = ImageDraw.Draw(pale)
    frame = max(1, seen.width // columns // 12)
    for token, is_padding in zip(kept.tolist(), padded.tolist(), strict=True):
        row, column = divmod(token, columns)
        # Cells may be no whole number of pixels: edges are rounded, so that neighbours share them.
        x0, x1 = (round(seen.width * edge / columns) for edge in (column, column + 1))
        y0, y1 = (round(seen.height * edge / rows) for edge in (row, row + 1))
        pale.paste(seen.crop((x0, y0, x1, y1)), (x0, y0))
        color = _WASTED if is_padding else _KEPT
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=color, width=frame)
    pen.rectangle((0, 0, seen.width - 1, seen.height - 1), outline=_FAINT)
    return pale


def _draw_legend(pen: ImageDraw.ImageDraw, at: tuple[int, int]) -> None:
    x, y = at
    for color, meaning in ((_KEPT, "kept"), (_WASTED, "kept, though padding"), (None, "dropped")):
        fill = "#e5e7eb" if color is None else _PAPER
        pen.rectangle((x, y + 2, x + 14, y + 16), fill=fill, outline=color or _FAINT, width=2 if color else 1)
        pen.text((x + 21, y + 1), meaning, fill=_FAINT, font=_font(13))
        x += 21 + round(pen.textlength(meaning, font=_font(13))) + _MARGIN


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
