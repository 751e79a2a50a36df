"""Small videos, the same each time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def clip(frames: int, width: int = 40, height: int = 24) -> NDArray[np.uint8]:
    """A bright square that moves over a dark ground, uint8 [frames, height, width, 3]."""
    found = np.zeros((frames, height, width, 3), dtype=np.uint8)
    found[..., 2] = np.arange(height, dtype=np.uint8)[:, None] * 4
    for number in range(frames):
        left = number * (width - 8) // max(frames - 1, 1)
        found[number, 8:16, left : left + 8] = (220, 60 + number % 100, 30)
    return found


def write_video(path: Path, frames: NDArray[np.uint8], rate: int, codec: str = "ffv1") -> Path:
    """Writes a video without loss; by another codec with some."""
    import av

    formats = {"ffv1": "bgr0", "gif": "rgb8"}
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(rate))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = formats.get(codec, "yuv420p")
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path
