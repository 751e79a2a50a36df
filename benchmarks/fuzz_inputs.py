"""Fuzz targets of what users and bundles bring to a running model: images, prompts, templates, tokenizers.

Each makes one input from a source of randomness and tries it; see `benchmarks.fuzz`.
"""

from __future__ import annotations

import io
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from benchmarks.fuzz_altering import altered, changed, scratch
from edgeprune.errors import EdgepruneError
from edgeprune.image_program import GridTokens, ImageProgram, Letterbox, TileFeed
from edgeprune.image_sizes import ShortestEdge
from edgeprune.manifest import Prompt
from edgeprune.runtime.images import load_image
from edgeprune.runtime.programs import run_program
from edgeprune.runtime.prompt import PromptEncoder
from edgeprune.runtime.templates import Template
from edgeprune.runtime.tokenizing import BundleTokenizer
from edgeprune.runtime.videos import open_video
from edgeprune.video_program import FrameSampling

SAMPLE = Path(__file__).parent.parent / "samples" / "tiny-llava"


@cache
def pictures() -> tuple[bytes, ...]:
    """Small images of every format and most modes, with orientation, transparency and several frames."""
    values = np.random.default_rng(0).integers(0, 256, (24, 32, 4), dtype=np.uint8)
    rgba = Image.fromarray(values)
    rgb = rgba.convert("RGB")
    grey16 = Image.fromarray(values[:, :, 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "JPEG", {"exif": exif}),
        (rgb, "JPEG", {"progressive": True}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "PNG", {"exif": exif}),
        (rgba, "PNG", {}),
        (rgb.convert("P"), "PNG", {"transparency": 3}),
        (rgb.convert("1"), "PNG", {}),
        (grey16, "PNG", {}),
        (rgb, "WEBP", {"exif": exif}),
        (rgba, "WEBP", {"lossless": True}),
        (rgb, "BMP", {}),
        (rgb.convert("P"), "BMP", {}),
        (rgb, "GIF", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        (rgba, "TIFF", {"compression": "tiff_lzw"}),
        (rgb, "TIFF", {"compression": "jpeg"}),
        (grey16, "TIFF", {"tiffinfo": {0x0112: 6}}),
        (rgb.convert("F"), "TIFF", {"compression": "tiff_adobe_deflate"}),
        (rgb, "MPO", {"save_all": True, "append_images": [rgb]}),
        (rgb, "EPS", {}),
        (rgb, "PPM", {}),
    ]
    made = []
    for picture, form, options in kinds:
        buffer = io.BytesIO()
        picture.save(buffer, form, **options)
        made.append(buffer.getvalue())
    return tuple(made)


_PROGRAM = ImageProgram(
    fit=Letterbox(),
    sizes=(ShortestEdge(edge=24),),
    crop=(24, 24),
    feed=TileFeed(height=24, width=24),
    tokens=GridTokens(rows=6, columns=6),
)


def try_image(draw: random.Random) -> object:
    """An altered image, up to the vision tower's input."""
    return run_program(load_image(altered(draw.choice(pictures()), draw)), _PROGRAM)


@cache
def clips() -> tuple[bytes, ...]:
    """Small videos of several formats."""
    frames = np.random.default_rng(0).integers(0, 256, (6, 16, 24, 3), dtype=np.uint8)
    made = []
    for form, codec, pixels in (
        ("matroska", "ffv1", "bgr0"),
        ("mp4", "mpeg4", "yuv420p"),
        ("avi", "mjpeg", "yuvj420p"),
        ("webm", "libvpx", "yuv420p"),
    ):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=form) as container:
            stream: Any = container.add_stream(codec, rate=6)
            stream.height, stream.width, stream.pix_fmt = 16, 24, pixels
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
        made.append(buffer.getvalue())
    return tuple(made)


def try_video(draw: random.Random) -> object:
    """An altered video, up to some of its frames."""
    with open_video(altered(draw.choice(clips()), draw), 2.0) as video:
        return list(video.frames(video.indices(FrameSampling(frames=3), None, None)))


_PIECES = (
    "USER:",
    " what is the star? ",
    "<image>",
    "<s>",
    "</s>",
    "\n",
    "é🙂",
    "\ud800",
    "\0",
    "{{ 7 }}",
    "{%",
    "�",
    "",
)


def _text(draw: random.Random) -> str:
    return "".join(draw.choice((*_PIECES, chr(draw.randrange(0x110000)))) for _ in range(draw.randrange(12)))


def _message(draw: random.Random) -> Any:
    def part() -> Any:
        text = {"type": "text", "text": _text(draw)}
        return draw.choice((text, text, {"type": "image"}, {"type": "video"}, {"type": "text"}, None, 3))

    content = draw.choice((_text(draw), [part() for _ in range(draw.randrange(4))], None, 1.5, {}))
    message = {
        "role": draw.choice(("user", "user", "system", "assistant", _text(draw), None)),
        "content": content,
    }
    return draw.choice((message, message, message, {**message, "name": "x"}, [message], _text(draw)))


@cache
def _words(template: str | None) -> PromptEncoder:
    manifest = json.loads((SAMPLE / "tokenizer_config.json").read_text())
    folder = scratch(f"words{_CHATS.index(template)}")
    (folder / "tokenizer.json").write_bytes((SAMPLE / "tokenizer.json").read_bytes())
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    prompt = Prompt(
        tokenizer="tokenizer.json",
        chat_template=None if template is None else "chat_template.jinja",
        image_token="<image>",
        image_token_id=_image_token_id(),
        pad_token_id=0,
        video_place=_video_place(template),
        bos_token=str(manifest.get("bos_token") or "<s>"),
        eos_token_ids=(2,),
    )
    return PromptEncoder(folder, prompt, max_positions=4096)


def _video_place(template: str | None) -> str | None:
    """What a video stands at: one of the templates is of a model that takes none."""
    return None if template == _CHATS[0] else "<s>"


def _image_token_id() -> int:
    added = json.loads((SAMPLE / "tokenizer.json").read_text())["added_tokens"]
    return next(int(token["id"]) for token in added if token["content"] == "<image>")


# The forms that templates come in: of parts, of strings, and none.
_CHATS = (
    (SAMPLE / "chat_template.jinja").read_text(encoding="utf-8"),
    "{% for m in messages %}[{{ m.role }}] {{ m['content'] + '\\n' }}{% endfor %}",
    None,
)


def try_prompt(draw: random.Random) -> object:
    """A prompt or a conversation of any form, up to token ids and their text."""
    words = _words(draw.choice(_CHATS))
    prompt: Any = draw.choice(
        (_text(draw), [_message(draw) for _ in range(draw.randrange(1, 5))], _message(draw))
    )
    images, videos = draw.randrange(3), draw.randrange(2)
    text = words.render(prompt, images, videos)
    return words.decode(words.encode(text, ["<image>" * 9] * (images + videos)))


_TEMPLATES = (
    *(chat for chat in _CHATS if chat is not None),
    "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + 'b' %}{% endfor %}{{ n.x }}",
    "{{ messages | map(attribute='role') | join(', ') | replace('s', 'tt') | upper | indent(2) }}",
    "{% macro f(m) %}{{ m.role | trim }}:{{ '%s-%05d' % (m.role, 3) }}{% endmacro %}{{ f(messages[0]) }}",
    "{% for m in messages recursive %}{{ loop.index * 7 ** 2 }}{{ m | tojson(indent=2) }}{% endfor %}",
    "{% if '</think>' in messages[0].role %}{{ messages[0].role.split('</think>')[-1][:3] }}{% endif %}",
    "{{ '{:>5}'.format(3) }}{{ 'a b'.center(9) }}{{ ' '.join(['a', 'b']).replace('a', 'b') }}",
)
_PARTS = (
    "99999999999",
    "range(99999)",
    "*",
    "**",
    "+",
    "~",
    "(",
    ")",
    "[",
    "]",
    "{% for i in range(99999) %}",
    "{% endfor %}",
)


def try_template(draw: random.Random) -> object:
    """An altered template, with pieces of others and of loops and large numbers, parsed and rendered."""
    source = draw.choice(_TEMPLATES)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(source) + 1)
        match draw.randrange(4):
            case 0:
                source = source[:at] + draw.choice(_PARTS) + source[at:]
            case 1:
                source = source[:at] + source[at + draw.randint(1, 9) :]
            case 2:
                other = draw.choice(_TEMPLATES)
                source = source[:at] + other[draw.randrange(len(other)) :]
            case _:
                source = source.replace(draw.choice("0123456789"), draw.choice(_PARTS[:4]))
    template = Template(source, "the template")
    try:
        return template.render(
            {"messages": [{"role": "user", "content": "a star"}], "add_generation_prompt": True}
        )
    except EdgepruneError:
        raise
    except Exception as error:  # the program's own, which PromptEncoder makes an InputError of
        raise EdgepruneError(str(error)) from error


_VALUES = (None, True, -1, 3, 2**70, 1.5, "", "a" * 300, "(a|a)*$", "<image>", [], {}, [[]], {"String": ""})


def _changed_tokenizer(draw: random.Random) -> bytes:
    tokenizer = json.loads((SAMPLE / "tokenizer.json").read_bytes())
    vocabulary = tokenizer["model"]["vocab"]
    # Most of its values are in the vocabulary, where little happens.
    if spared := draw.random() < 0.7:
        tokenizer["model"]["vocab"] = {}
    tokenizer = changed(tokenizer, draw, _VALUES)
    if spared and isinstance(tokenizer.get("model"), dict) and tokenizer["model"].get("vocab") == {}:
        tokenizer["model"]["vocab"] = vocabulary
    return json.dumps(tokenizer).encode()


def try_tokenizer(draw: random.Random) -> object:
    """An altered tokenizer.json, read and used."""
    whole = (SAMPLE / "tokenizer.json").read_bytes()
    path = scratch("tokenizer") / "tokenizer.json"
    path.write_bytes(altered(whole, draw) if draw.random() < 0.3 else _changed_tokenizer(draw))
    tokenizer = BundleTokenizer(path)
    ids = tokenizer.encode("what colour is the big star? <image>", special_tokens=True)
    return tokenizer.decode([*ids, draw.randrange(1 << 20)])
