"""Video programs: which frames of a video a model sees, and what their visual tokens are, as data.

A video is a run of frames. Each becomes one block of visual tokens, or several frames together do where the
vision tower's patches hold several. Everything else is as for images: `edgeprune.image_program`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from edgeprune.errors import InputError
from edgeprune.fields import Flag, Part, Pixels, TokenText
from edgeprune.image_program import (
    GridTokens,
    ImageProgram,
    ImageText,
    PackedTokens,
    PatchFeed,
    PatchTokens,
    PixelValues,
    Stretch,
)
from edgeprune.image_sizes import (
    MOST_ELONGATED,
    Area,
    FixedSize,
    PixelBudget,
    ShortestEdge,
    within_budget,
)
from edgeprune.layout import Block, ImageLayout, Newline

Frames = Annotated[int, Field(strict=True, ge=1, le=1 << 16)]
PerSecond = Annotated[float, Field(strict=True, gt=0, le=1000)]
# Where nobody knows how fast frames follow each other, as transformers takes it.
USUAL_RATE = 24.0


class FrameSampling(Part):
    """Which frames of a video are seen.

    Attributes:
        frames: so many of every video; null to go by its length.
        per_second: frames of a second, where `frames` is null.
        least, most: bounds of their number, where it goes by the length.
        multiple: the number is a multiple of this, where the video has as many.
        ends: whether the first and the last frame are among them; else the video is divided into as many
            equal parts, and the first frame of each is seen.
    """

    frames: Frames | None = None
    per_second: PerSecond | None = None
    least: Frames = 1
    most: Frames = 768
    multiple: Annotated[int, Field(strict=True, ge=1, le=16)] = 1
    ends: Flag = False

    @model_validator(mode="after")
    def _one_rule(self) -> FrameSampling:
        if (self.frames is None) == (self.per_second is None):
            raise ValueError("frames or per_second: give exactly one of them")
        return self

    def describe(self) -> str:
        """The rule in a few words, for people."""
        if self.frames is not None:
            return f"{self.frames} frames of each"
        return f"{self.per_second:g} frames a second, {self.least} to {self.most}"

    def changed(self, frames: int | None, per_second: float | None) -> FrameSampling:
        """The same by another number of frames, or by another number per second.

        Raises:
            InputError: both are given, or one is out of range.
        """
        if frames is None and per_second is None:
            return self
        if frames is not None and per_second is not None:
            raise InputError("`frames` and `fps` were both given, and one sets the other: give one of them")
        if frames is not None:
            if not isinstance(frames, int) or isinstance(frames, bool) or not 1 <= frames <= 1 << 16:
                raise InputError(f"`frames` is {frames!r:.80}: expected a whole number, 1 to 65536")
            return self.model_copy(update={"frames": frames, "per_second": None})
        rate = per_second if isinstance(per_second, (int, float)) else math.nan
        if isinstance(per_second, bool) or not 0 < rate <= 1000:
            raise InputError(f"`fps` is {per_second!r:.80}: expected a number above 0, at most 1000")
        return self.model_copy(update={"frames": None, "per_second": float(rate)})

    def indices(self, total: int, rate: float) -> NDArray[np.int64]:
        """The numbers of the frames that are seen, ascending, int64.

        Args:
            total: frames of the video, at least 1.
            rate: frames of a second.
        """
        count = self._count(total, rate)
        if self.ends:
            spread: NDArray[np.int64] = np.linspace(0, total - 1, count).round().astype(np.int64)
            return spread
        # Exact: the published code's floats are a frame off here and there, and reach beyond the last one.
        return np.arange(count, dtype=np.int64) * total // count

    def _count(self, total: int, rate: float) -> int:
        wanted = float(self.frames or 0)
        if self.per_second is not None:
            wanted = total / rate * self.per_second
            most = min(self.most, total) // self.multiple * self.multiple
            wanted = min(max(wanted, self.least), most)
        elif self.multiple > 1:
            wanted = round(wanted / self.multiple) * self.multiple
        whole = math.floor(min(wanted, total) / self.multiple) * self.multiple
        # Of fewer frames than a multiple all are seen; the last one then stands for those that lack.
        return whole or min(total, self.multiple)


class FramesBudget(Part):
    """As `PixelBudget`, of all frames of a video together.

    Attributes:
        least, most: pixels.
        multiple: the budget counts frames rounded to a multiple of this.
    """

    kind: Literal["frames_budget"] = "frames_budget"
    least: Area
    most: Annotated[int, Field(strict=True, ge=1, le=1 << 40)]
    multiple: Annotated[int, Field(strict=True, ge=1, le=16)] = 1

    @model_validator(mode="after")
    def _some(self) -> FramesBudget:
        if self.least > self.most:
            raise ValueError(f"at least {self.least} pixels and at most {self.most}: there is no such number")
        return self

    def target(self, frames: int, height: int, width: int, tile: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) of each frame.

        Raises:
            InputError: the frames are too elongated.
        """
        if height < tile[0] or width < tile[1]:
            scale = max(tile[0] / height, tile[1] / width)
            height, width = int(height * scale), int(width * scale)
        if max(height, width) / min(height, width) > MOST_ELONGATED:
            raise InputError(
                f"the video has {width} x {height} pixels: expected frames at most {MOST_ELONGATED} times "
                "as long as wide, as the model takes no other; crop it"
            )
        frames = max(frames, self.multiple)  # the last one stands for those that lack
        counted = round(frames / self.multiple) * self.multiple
        return within_budget(height, width, tile, self.least, self.most, counted, frames)


FrameSize: TypeAlias = Annotated[
    FixedSize | ShortestEdge | PixelBudget | FramesBudget, Field(discriminator="kind")
]
"""What a frame is resized to."""


class FrameText(Part):
    """The text around the visual tokens of each block of frames; {seconds} becomes its time, to a tenth."""

    prefix: TokenText = ""
    suffix: TokenText = ""


class VideoProgram(Part):
    """How a video becomes the vision graph's input and its visual tokens.

    Attributes:
        sampling: which frames are seen.
        size: what each is resized to, stretched to it.
        crop: as of `ImageProgram`.
        pixels: from bytes to numbers.
        pool: rows and columns of a frame that are resampled to one, where tiles are put together.
        newline: whether one newline token stands behind the last frame.
        own_tower: whether frames have a vision tower of their own, which reads `frame_values`, and in front
            of each frame's grid one token that shows nothing.
        text: around the visual tokens.
    """

    sampling: FrameSampling
    size: FrameSize
    crop: tuple[Pixels, Pixels] | None = None
    pixels: PixelValues = PixelValues()
    pool: Annotated[int, Field(strict=True, ge=1, le=16)] = 1
    newline: Flag = False
    own_tower: Flag = False
    text: FrameText = FrameText()

    def fault(self, program: ImageProgram) -> str | None:
        """Why the frames cannot be fed beside the images of a program; None where they can."""
        packed = isinstance(program.tokens, PackedTokens) and program.tokens.most is not None
        if (self.pool > 1 or self.newline) and not packed:
            return "frames are resampled, and the graph resamples no tiles"
        patches = isinstance(program.feed, PatchFeed)
        if self.own_tower and (not isinstance(program.tokens, GridTokens) or self.newline or self.pool > 1):
            return "frames have a tower of their own, and images are not plain tiles"
        if not patches and isinstance(self.size, (PixelBudget, FramesBudget)):
            return "frames have any size, and the graph reads tiles"
        try:
            ImageProgram.model_validate(self.frame_program(program, 1, 64, 64).model_dump())
        except ValueError as error:
            return str(error)
        return None

    def most_tokens(self, program: ImageProgram) -> int:
        """Visual tokens of a usual video: of frames that are always as many, else of `sampling.most`.

        Of frames of any size, no more than one image has.
        """
        if isinstance(program.tokens, PatchTokens):
            return program.most_tokens
        frames = self.sampling.frames or self.sampling.most
        return frames * self.frame_tokens(program) + self.newline

    def frame_tokens(self, program: ImageProgram) -> int:
        """Visual tokens of a frame that is one tile."""
        rows, columns = (-(-side // self.pool) for side in program.grid or (1, 1))
        return rows * columns + self.own_tower

    def within(self, pixels: int) -> VideoProgram:
        """The program whose frames have at most so many pixels, where they have any size."""
        size = self.size
        if not isinstance(size, PixelBudget):
            return self
        budget = PixelBudget(least=min(size.least, pixels), most=min(size.most, pixels))
        return self.model_copy(update={"size": budget})

    def frame_program(self, program: ImageProgram, frames: int, width: int, height: int) -> ImageProgram:
        """The program of each frame of a video.

        Args:
            program: of the model's images.
            frames: that are seen of the video.
            width, height: of each.

        Raises:
            InputError: the frames are too elongated.
        """
        size = self.size
        if isinstance(size, FramesBudget):
            high, wide = size.target(frames, height, width, program.unit)
            size = FixedSize(height=high, width=wide)
        return program.model_copy(
            update={
                "fit": Stretch(),
                "sizes": (size,),
                "crop": self.crop,
                "cut": None,
                "several": None,
                "pixels": self.pixels,
                "text": ImageText(),
            }
        )

    def layout(
        self,
        program: ImageProgram,
        width: int,
        height: int,
        indices: NDArray[np.int64],
        rate: float,
        total: int,
    ) -> ImageLayout:
        """The visual tokens of a video.

        Args:
            program: of the model's images.
            width, height: of its frames, in pixels.
            indices: int64, of the frames that are seen.
            rate, total: frames of a second, and of the video.

        Raises:
            InputError: as `frame_program`.
        """
        together = program.feed.frames if isinstance(program.feed, PatchFeed) else 1
        (frame,) = self.frame_program(program, len(indices), width, height).layout(width, height).blocks
        grid = -(-frame.grid[0] // self.pool), -(-frame.grid[1] // self.pool)
        steps = -(-len(indices) // together)
        front: Newline | None = "front" if self.own_tower else None
        blocks = [Block(grid, frame.box, newline=front, kind="frame")] * steps
        if self.newline:
            blocks[-1] = Block(grid, frame.box, newline="end", kind="frame")
        pieces: list[str | int] = []
        for step, block in enumerate(blocks):
            first, last = indices[step * together], indices[min((step + 1) * together, len(indices)) - 1]
            seconds = f"{(first / rate + last / rate) / 2:.1f}"
            texts = [text.replace("{seconds}", seconds) for text in (self.text.prefix, self.text.suffix)]
            pieces += [texts[0], block.tokens, texts[1]]
        return ImageLayout.of(
            (width, height), tuple(blocks), pieces, interval=together / (len(indices) / total * rate)
        )
