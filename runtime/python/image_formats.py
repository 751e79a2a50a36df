"""The image formats that are read: what they are called, what others are, and what decoding costs."""

from __future__ import annotations

from typing import Any

from PIL import ImageFile

# Pillow's own names. It knows some forty more, and some of them hand the file to another program:
# PostScript goes to Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
# A camera's JPEG of several images opens under a name of its own.
JPEG = ("JPEG", "MPO")
DECODED = (*FORMATS, "MPO")
EXPECTED = "JPEG, PNG, WebP, BMP, TIFF or GIF"

# Where a file says at its beginning what it is: offset, bytes, and the words for it.
_OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"%!PS", "a PostScript or EPS drawing"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript or EPS drawing"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"gimp xcf", "a GIMP document"),
    (0, b"\x00\x00\x01\x00", "an icon (ICO)"),
    (0, b"icns", "an icon (ICNS)"),
    (0, b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"qoif", "a QOI image"),
    (0, b"DDS ", "a DirectDraw texture (DDS)"),
    (0, b"v/1\x01", "an OpenEXR image"),
    (0, b"#?RADIANCE", "a Radiance HDR image"),
    (0, b"SIMPLE  =", "a FITS file"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)"),
    (40, b" EMF", "a Windows metafile (EMF)"),
    (128, b"DICM", "a DICOM file"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (8, b"AVI ", "an AVI video"),
    (8, b"WAVE", "a sound file (WAV)"),
    (0, b"FLV\x01", "a Flash video"),
    (0, b"\x00\x00\x01\xba", "an MPEG video"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"7z\xbc\xaf", "a 7z archive"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file itself"),
    *(
        (0, b"P%d" % number + space, "a PNM image (PBM, PGM, PPM)")
        for number in range(1, 8)
        for space in (b" ", b"\n")
    ),
)
# The brands of files built of boxes, as ISO 14496-12 has them.
_BRANDS = {
    b"avif": "an AVIF image",
    b"avis": "an AVIF image",
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"), "a HEIC image"),
    b"crx ": "a raw image of a camera (CR3)",
    b"qt  ": "a QuickTime video",
}
_OURS = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"II*\0", b"MM\0*", b"GIF8", b"II+\0", b"MM\0+")
HEAD_BYTES = 512

# Bytes of one pixel in a decoded image; 4 in the modes that are not named.
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
_RGB_BYTES = 3
# WebP's decoder keeps two canvases of 4 bytes a pixel, beside the pixels that it hands over.
_WEBP_HELD = 12
# The others keep rows, or (GIF, BMP) an image of a byte a pixel that is copied once.
_ROWS_HELD = 2


def kind_of(head: bytes) -> str:
    """What a file is that is no image of `FORMATS`, by its first `HEAD_BYTES` bytes; with an article."""
    if not head:
        return "not an image but an empty file"
    if head.startswith(_OURS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "damaged at its beginning"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "a video (MP4 or the like)")
    for offset, magic, kind in _OTHERS:
        if head[offset : offset + len(magic)] == magic:
            return kind
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if text.startswith((b"<svg", b"<?xml", b"<!doctype svg")) and b"<svg" in text:
        return "an SVG drawing"
    return "not an image"


def decoding_bytes(picture: ImageFile.ImageFile, file_bytes: int, scale: int = 1) -> int:
    """What decoding an image and making RGB of it takes at its peak, by its header alone.

    Args:
        image: opened and not yet decoded.
        file_bytes: the encoded size, which some decoders hold whole.
        scale: the image is decoded at one `scale`-th of its width and height, which JPEG can.
    """
    width, height = (-(-side // scale) for side in picture.size)
    if picture.format in JPEG:
        held = _jpeg_held(picture)
    elif picture.format == "TIFF":
        held = _tiff_held(picture) + file_bytes
    elif picture.format == "WEBP":
        held = width * height * _WEBP_HELD + 2 * file_bytes
    else:
        held = width * height * _ROWS_HELD
    stored = _MODE_BYTES.get(picture.mode, 4)
    return width * height * stored + max(held, width * height * _RGB_BYTES)


def _jpeg_held(picture: Any) -> int:
    """The coefficients, 2 bytes each, which libjpeg keeps of an image that comes in several scans, at full
    size whatever the scale.
    """
    if _is_one_scan(picture):
        return 0
    width, height = picture.size
    most = max(h * v for _, h, v, _ in picture.layer)
    return sum(2 * width * height * h * v // most for _, h, v, _ in picture.layer)


def _is_one_scan(picture: Any) -> bool:
    """Whether the first scan of a baseline JPEG holds all components, so that no other follows."""
    if picture.info.get("progressive") or picture.info.get("progression"):
        return False
    components = len(picture.layer)
    start = bytes([0xFF, 0xDA, 0, 6 + 2 * components, components])
    file = picture.fp
    try:
        # Opening has read up to the end of the scan's header.
        behind = file.tell()
        file.seek(behind - 2 - (6 + 2 * components))
        found = file.read(len(start))
        file.seek(behind)
    except (OSError, ValueError, AttributeError):
        return False
    return bool(found == start)


def _tiff_held(picture: Any) -> int:
    """What libtiff holds, a strip or a tile, which may be the whole image; and where it has to be turned,
    the image once more.
    """
    width, height = picture.size
    tags = picture.tag_v2
    turned = tags.get(0x0112, 1) != 1
    held = width * height * _MODE_BYTES.get(picture.mode, 4) if turned else 0
    if any(tile[0] != "raw" for tile in picture.tile):
        bits = tags.get(258, (1,))
        pixel = max(4, -(-max(len(bits), tags.get(277, 1)) * max(bits) // 8))
        # As stored: the image's own size may be that after turning.
        across, down = tags.get(256, width), tags.get(257, height)
        strip = across * min(tags.get(278, down), down)
        held += max(strip, tags.get(322, 0) * tags.get(323, 0)) * pixel
    return int(held)
