"""How much memory images take while they are read, each in a process of its own.

    python -m benchmarks.decoding_memory [--megapixels 67]

Prints per case the encoded size, whether the image is read or refused, and the peak of resident memory
above that of the interpreter with everything imported. With --preprocess, the vision tower's input is made of
it, too.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgeprune.errors import InputError
from edgeprune.image_program import GridTokens, ImageProgram, Letterbox, TileFeed
from edgeprune.image_sizes import ShortestEdge
from edgeprune.memory import host_peak_memory
from edgeprune.runtime.images import load_image
from edgeprune.runtime.programs import run_program

Image.MAX_IMAGE_PIXELS = None  # what is written here may be larger than Pillow likes


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _saved(mode: str, form: str, **options: Any) -> Callable[[tuple[int, int]], bytes]:
    def save(size: tuple[int, int]) -> bytes:
        buffer = io.BytesIO()
        Image.new(mode, size).save(buffer, form, **options)
        return buffer.getvalue()

    return save


def _noise(form: str, **options: Any) -> Callable[[tuple[int, int]], bytes]:
    def save(size: tuple[int, int]) -> bytes:
        buffer = io.BytesIO()
        values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(values).save(buffer, form, **options)
        return buffer.getvalue()

    return save


CASES: dict[str, Callable[[tuple[int, int]], bytes]] = {
    "PNG RGB": _saved("RGB", "PNG"),
    "PNG RGB, turned": _saved("RGB", "PNG", exif=_turned()),
    "PNG RGBA": _saved("RGBA", "PNG"),
    "PNG palette": _saved("P", "PNG", transparency=0),
    "PNG 1 bit": _saved("1", "PNG"),
    "PNG grey 16 bit": _saved("I;16", "PNG"),
    "JPEG": _saved("RGB", "JPEG"),
    "JPEG, turned": _saved("RGB", "JPEG", exif=_turned()),
    "JPEG progressive 4:2:0": _saved("RGB", "JPEG", progressive=True),
    "JPEG progressive 4:4:4": _saved("RGB", "JPEG", progressive=True, subsampling=0),
    "JPEG progressive CMYK": _saved("CMYK", "JPEG", progressive=True, subsampling=0),
    "WebP lossless": _saved("RGB", "WEBP", lossless=True, method=0),
    "WebP lossless RGBA": _saved("RGBA", "WEBP", lossless=True, method=0),
    "WebP": _saved("RGB", "WEBP", method=0),
    "TIFF RGBA": _saved("RGBA", "TIFF"),
    "TIFF RGBA LZW": _saved("RGBA", "TIFF", compression="tiff_lzw"),
    "TIFF RGBA LZW, one strip, turned": _saved(
        "RGBA", "TIFF", compression="tiff_lzw", strip_size=1 << 31, tiffinfo={0x0112: 6}
    ),
    "TIFF RGB JPEG": _saved("RGB", "TIFF", compression="jpeg"),
    "TIFF float deflate": _saved("F", "TIFF", compression="tiff_adobe_deflate"),
    "BMP RGB": _saved("RGB", "BMP"),
    "GIF": _saved("P", "GIF"),
    "GIF, transparent": _saved("P", "GIF", transparency=0),
    "JPEG noise": _noise("JPEG"),
}
_PROGRAM = ImageProgram(
    fit=Letterbox(),
    sizes=(ShortestEdge(edge=336),),
    crop=(336, 336),
    feed=TileFeed(height=336, width=336),
    tokens=GridTokens(rows=24, columns=24),
)


def measure(path: Path, *, preprocessed: bool) -> dict[str, Any]:
    """Reads an image in this process: {"outcome": str, "peak_bytes": int above the start}."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = host_peak_memory().bytes or 0
    try:
        picture = load_image(path)
        outcome = "read"
        if (picture.shape[1] * picture.shape[0]) and preprocessed:
            run_program(picture, _PROGRAM)
    except InputError as error:
        outcome = f"refused: {str(error).split(': ')[0].split(' is ')[-1]}"
    return {"outcome": outcome, "peak_bytes": (host_peak_memory().bytes or 0) - before}


def main(arguments: list[str] | None = None) -> None:
    """Prints the table, or with --measure the figures of one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megapixels", type=float, default=67.1)
    parser.add_argument("--preprocess", action="store_true")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--measure", type=Path)
    options = parser.parse_args(arguments)
    if options.measure is not None:
        print(json.dumps(measure(options.measure, preprocessed=options.preprocess)))
        return
    side = int((options.megapixels * 1e6) ** 0.5)
    print(f"{side} x {side} pixels")
    print("| image | file | outcome | peak, GB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        for name, save in CASES.items():
            if options.only not in name:
                continue
            path.write_bytes(save((side, side)))
            # Like this process, the child has all imported before it measures.
            command = [sys.executable, "-m", __spec__.name, "--measure", str(path)]
            command += ["--preprocess"] if options.preprocess else []
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(run.stdout)
            size = f"{path.stat().st_size / 1e6:.3f} MB"
            print(f"| {name} | {size} | {found['outcome']} | {found['peak_bytes'] / 1e9:.2f} |", flush=True)


if __name__ == "__main__":
    main()
