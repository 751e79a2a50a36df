"""Images of kept and dropped visual tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from edgeprune.errors import InputError
from edgeprune.image_program import ImageProgram, Letterbox
from edgeprune.manifest import Manifest
from edgeprune.runtime.images import ImageLike, load_image
from edgeprune.runtime.stages import StageResult

# The longer side of a drawn image in pixels: tokens of a 24 x 24 grid are then 20 wide.
_SIDE = 480
_MARGIN, _LINE = 20, 24
_PAPER, _INK, _FAINT, _KEPT, _WASTED = "#ffffff", "#1b1f24", "#6b7280", "#12a150", "#e5484d"
# How much of a dropped token's image stays visible.
_DIMMED = 0.3


@dataclass(frozen=True)
class _Panel:
    """One half of the drawing: a heading, and which visual tokens it shows as kept."""

    heading: str
    kept: NDArray[np.int64]


def draw_kept(
    manifest: Manifest, images: Sequence[ImageLike], stage: StageResult, title: str | None = None
) -> Image.Image:
    """Kept and dropped tokens over the images as the model saw them, without and with debias side by side.

    Dropped tokens are dimmed. Kept ones have a green frame; a red one where they are padding. "Without
    debias" is what the same scores select without bias curve and padding mask. A stage that nothing debiases
    has one half alone, and so has one whose scores are debiased before they are ranked.

    Args:
        manifest: of the bundle.
        images: the prompt's images, as they were given to `Model.generate`; file objects rewound.
        stage: one of `Reply.stages`.
        title: a line above; None for the plan's description.

    Returns:
        An RGB image, one row per image of the prompt.

    Raises:
        InputError: the images do not match the stage's visual tokens.
    """
    pictures = [load_image(image) for image in images]
    program = manifest.image_program
    views = list(_views(pictures, program))
    reached = int(stage.candidates.max(initial=-1)) + 1
    last = views[-1].first if views else 0
    if not views or not last < reached <= last + len(views[-1].boxes):
        raise InputError(
            f"{len(images)} images are to be drawn with visual tokens up to number {reached}: expected the "
            "images of the prompt; give those and no others"
        )
    panels = _panels(stage)
    color = program.fit.color if isinstance(program.fit, Letterbox) else (0, 0, 0)
    sheets = [_as_seen(view, color) for view in views]
    width = max(sheet.width for sheet in sheets)
    top = _MARGIN + _LINE + _LINE // 2
    title = title or manifest.plan.describe()
    total = max(len(panels) * (width + _MARGIN), round(_font(17).getlength(title)) + _MARGIN) + _MARGIN
    height = sum(2 * _LINE + sheet.height + _MARGIN for sheet in sheets)
    drawing = Image.new("RGB", (total, top + height + _LINE + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(drawing)
    pen.text((_MARGIN, _MARGIN), title, fill=_INK, font=_font(17))
    for view, sheet in zip(views, sheets, strict=True):
        numbers = view.first + np.arange(len(view.boxes))
        for column, panel in enumerate(panels):
            kept = panel.kept[np.isin(panel.kept, numbers)]
            padded = stage.visual_valid[np.isin(stage.candidates, kept)] == 0
            shown = int(np.isin(stage.candidates, numbers).sum())
            x = _MARGIN + column * (width + _MARGIN)
            pen.text((x, top), panel.heading, fill=_INK, font=_font(15))
            pen.text((x, top + _LINE - 3), _count(len(kept), shown, padded), fill=_FAINT, font=_font(13))
            drawing.paste(_marked(sheet, view.within(kept), padded), (x, top + 2 * _LINE))
        top += 2 * _LINE + sheet.height + _MARGIN
    _draw_legend(pen, (_MARGIN, top))
    return drawing


@dataclass(frozen=True)
class _View:
    """Blocks of one image that are drawn in one: its tiles, or a thumbnail.

    Attributes:
        image: uint8 [H, W, 3].
        first: the number of its first visual token.
        boxes: float64 [tokens, 4], what each token shows; see `PromptLayout.boxes`.
    """

    image: NDArray[np.uint8]
    first: int
    boxes: NDArray[np.float64]

    @property
    def region(self) -> tuple[float, float, float, float]:
        """(top, left, bottom, right) around all of it, in shares of the image."""
        top, left = np.nanmin(self.boxes[:, :2], axis=0)
        bottom, right = np.nanmax(self.boxes[:, 2:], axis=0)
        return float(top), float(left), float(bottom), float(right)

    def within(self, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        """The boxes of some tokens, in shares of the region."""
        top, left, bottom, right = self.region
        boxes = self.boxes[numbers - self.first]
        return (boxes - [top, left, top, left]) / [bottom - top, right - left, bottom - top, right - left]


def _views(images: Sequence[NDArray[np.uint8]], program: ImageProgram) -> Iterator[_View]:
    first = 0
    program = program.of_prompt(len(images))
    for image in images:
        blocks = program.layout(image.shape[1], image.shape[0]).blocks
        for _, run in groupby(blocks, key=lambda block: block.kind):
            boxes = np.concatenate([block.boxes() for block in run])
            if not np.isnan(boxes).all():
                yield _View(image, first, boxes)
            first += len(boxes)


def _as_seen(view: _View, color: tuple[int, int, int]) -> Image.Image:
    """The part of the image that a view shows, and its padding."""
    height, width = view.image.shape[:2]
    top, left, bottom, right = (
        round(share * side) for share, side in zip(view.region, (height, width) * 2, strict=True)
    )
    seen = Image.new("RGB", (max(1, right - left), max(1, bottom - top)), color)
    seen.paste(Image.fromarray(view.image), (-left, -top))
    scale = _SIDE / max(seen.size)
    return seen.resize((max(1, round(seen.width * scale)), max(1, round(seen.height * scale))))


def _panels(stage: StageResult) -> list[_Panel]:
    panels = [_Panel("without debias", stage.without_debias())] if stage.score_is_raw else []
    return [*panels, _Panel("with debias", stage.kept_visual)] if stage.debias else panels


def _count(kept: int, of: int, padded: NDArray[np.bool_]) -> str:
    return f"{kept} of {of} visual tokens kept, {int(padded.sum())} of them padding"


def _marked(seen: Image.Image, kept: NDArray[np.float64], padded: NDArray[np.bool_]) -> Image.Image:
    """The image dimmed, but for the boxes in `kept`, float64 [K, 4] in shares of it, which get frames."""
    pale = Image.blend(seen, Image.new("RGB", seen.size, _PAPER), 1 - _DIMMED)
    pen = ImageDraw.Draw(pale)
    for box, is_padding in zip(kept, padded.tolist(), strict=True):
        if np.isnan(box).any():  # shows nothing
            continue
        # Cells may be no whole number of pixels: edges are rounded, so that neighbours share them.
        y0, y1 = (round(seen.height * share) for share in box[[0, 2]].tolist())
        x0, x1 = (round(seen.width * share) for share in box[[1, 3]].tolist())
        pale.paste(seen.crop((x0, y0, x1, y1)), (x0, y0))
        color = _WASTED if is_padding else _KEPT
        frame = max(1, (x1 - x0) // 12)
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=color, width=frame)
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
