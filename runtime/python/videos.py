"""Videos, from wherever they come, frame by frame as RGB arrays."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import InputError, MissingDependencyError
from edgeprune.runtime.images import MAX_PIXELS, ImageLike, load_image, opened, seekable
from edgeprune.video_program import USUAL_RATE, FrameSampling

VideoLike: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | NDArray[np.uint8] | Sequence[ImageLike]"

_EXPECTED = "MP4, MOV, Matroska, WebM, AVI, MPEG or GIF"
# FFmpeg knows formats that name further files, or addresses; none of those is read.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,gif,flv,asf"
_MOST_FRAMES = 1 << 24


@dataclass(frozen=True, eq=False)
class Video:
    """A video whose frames are read as they are asked for.

    Attributes:
        size: (width, height) of its frames, in pixels.
        total: how many frames it has.
        rate: frames of a second.
        sampled: whether its frames are a choice already, all of which are seen.
    """

    size: tuple[int, int]
    total: int
    rate: float
    sampled: bool
    _frames: Iterator[NDArray[np.uint8]]

    def indices(
        self, sampling: FrameSampling, frames: int | None, per_second: float | None
    ) -> NDArray[np.int64]:
        """The numbers of the frames that are seen, int64.

        Args:
            sampling: of the model.
            frames, per_second: what is asked for instead; None for what the model says.

        Raises:
            InputError: both are given, or one is out of range.
        """
        asked = sampling.changed(frames, per_second)
        if self.sampled and frames is None:
            return np.arange(self.total)
        return asked.indices(self.total, self.rate)

    def frames(self, indices: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Some of the frames, uint8 [H, W, 3] each. This can be asked for once.

        A file may end before the last frame that it promises: the last one that is there then stands for
        those that lack.

        Args:
            indices: int64, not descending.

        Raises:
            InputError: a frame cannot be decoded, or has another size than the first one.
        """
        wanted, at = indices.tolist(), 0
        last: NDArray[np.uint8] | None = None
        for number, frame in enumerate(self._frames):
            if frame.shape[:2] != self.size[::-1]:
                raise InputError(
                    f"the video's frames are of several sizes, {self.size[0]} x {self.size[1]} and "
                    f"{frame.shape[1]} x {frame.shape[0]}: expected one; convert it"
                )
            last = frame
            while at < len(wanted) and wanted[at] == number:
                yield frame
                at += 1
            if at == len(wanted):
                return
        if last is None:
            raise InputError("the video has no frame that can be decoded: use an undamaged copy")
        for _ in wanted[at:]:
            yield last


@contextmanager
def open_video(source: VideoLike, per_second: float) -> Iterator[Video]:
    """Opens a video file, or takes frames that are there already.

    The orientation that a file asks for is applied.

    Args:
        source: a path, an encoded file's bytes, a binary file object, an array uint8 [frames, H, W, 3] in
            RGB, or a list of images, see `load_image`.
        per_second: how fast frames that are handed in follow each other.

    Raises:
        InputError: there is no such file, or it is no video of these formats, or too large; or there are no
            frames, or of several sizes.
        MissingDependencyError: PyAV, which reads files, is not installed.
    """
    if isinstance(source, np.ndarray) or (
        isinstance(source, Sequence) and not isinstance(source, (str, bytes, bytearray))
    ):
        yield _of_frames(list(source), per_second)
        return
    if isinstance(source, (str, os.PathLike)):
        with opened(source, "video") as file, _container(file, os.fsdecode(source)) as video:
            yield video
        return
    if isinstance(source, (bytes, bytearray)):
        source, name = io.BytesIO(source), "the bytes handed in"
    elif hasattr(source, "read"):
        name = f"the file object {getattr(source, 'name', type(source).__name__)}"
        source = seekable(source, name)
    else:
        raise InputError(
            f"a video of type {type(source).__name__} is not supported: expected a path, bytes, a binary "
            "file object, a uint8 array or a list of images"
        )
    with _container(source, name) as video:
        yield video


def _of_frames(frames: list[Any], per_second: float) -> Video:
    if not frames:
        raise InputError("a video has no frames: expected at least one")
    first = load_image(frames[0])
    size = (first.shape[1], first.shape[0])
    return Video(size, len(frames), per_second, True, chain([first], map(load_image, frames[1:])))


@contextmanager
def _container(file: BinaryIO, name: str) -> Iterator[Video]:
    with _stream(file, name) as (container, stream):
        total = int(min(stream.frames, _MOST_FRAMES)) or _packets(container, stream, name)
        rate = float(stream.average_rate or stream.guessed_rate or USUAL_RATE)
    # Opened anew, as not every format can be wound back.
    with _stream(file, name) as (container, stream):
        frames = _decoded(container, stream, name)
        first = next(frames, None)
        if first is None:
            raise InputError(f"{name} has no frame that can be decoded: use an undamaged copy")
        yield Video((first.shape[1], first.shape[0]), total, rate, False, chain([first], frames))


@contextmanager
def _stream(file: BinaryIO, name: str) -> Iterator[tuple[Any, Any]]:
    """The video stream of a file, from its beginning, and the container that it is in."""
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError("reading a video", "av", "video") from error
    file.seek(0)
    # FFmpeg's own log is left off: its threads would wait for Python, and Python for them.
    try:
        container: Any = av.open(file, options={"format_whitelist": _FORMATS})
    except Exception as error:  # FFmpeg's errors are of many kinds
        raise InputError(f"{name} is no video ({error}): expected {_EXPECTED}; convert it") from error
    with container:
        if not container.streams.video:
            raise InputError(f"{name} has no video in it: expected {_EXPECTED}; check the path")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise InputError(
                f"{name} is of a codec that cannot be decoded here: expected {_EXPECTED}; convert it"
            )
        if stream.width * stream.height > MAX_PIXELS:
            raise InputError(
                f"{name} has frames of {stream.width} x {stream.height} pixels: expected at most "
                f"{MAX_PIXELS}; shrink it first"
            )
        stream.thread_type = "AUTO"
        yield container, stream


def _decoded(container: Any, stream: Any, name: str) -> Iterator[NDArray[np.uint8]]:
    try:
        for frame in container.decode(stream):
            # Counter-clockwise, in degrees.
            turns = round(getattr(frame, "rotation", 0) / 90) % 4
            yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
    except Exception as error:
        raise InputError(f"{name} is not a whole video ({error}): use an undamaged copy") from error


def _packets(container: Any, stream: Any, name: str) -> int:
    """How many packets a file has, where it does not say how many frames."""
    try:
        return max(1, sum(1 for packet in container.demux(stream) if packet.size))
    except Exception as error:
        raise InputError(f"{name} is not a whole video ({error}): use an undamaged copy") from error
