"""Image programs as data: what is refused, sizes, prompt text and numbers of visual tokens."""

from __future__ import annotations

import types
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from edgeprune.errors import InputError
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
    TileFeed,
)
from edgeprune.image_sizes import (
    AspectTiles,
    BestCanvas,
    FixedSize,
    LongestEdge,
    PixelBudget,
    ShortestEdge,
    TileMultiples,
)
from tests.programs import LETTERBOX, internvl, llava, qwen, smolvlm

PROPERTY = settings(deadline=None, max_examples=200, derandomize=True)
SIDES = st.one_of(st.integers(1, 4000), st.integers(1, 12))
FEED = TileFeed(height=24, width=24)
PACKED = PackedTokens(rows=4, columns=4)
PATCHES = {"feed": PatchFeed(size=4), "tokens": PatchTokens(side=2)}


def small(**changes: Any) -> ImageProgram:
    """A program for a vision tower of 24 x 24 pixels and 4 x 4 visual tokens."""
    fields: dict[str, Any] = {"feed": FEED, "tokens": GridTokens(rows=4, columns=4)}
    return ImageProgram(**{**fields, **changes})


@pytest.mark.parametrize("program", [llava(fit=LETTERBOX), llava(sizes=()), internvl(), smolvlm(), qwen()])
def test_programs_are_json(program: ImageProgram) -> None:
    assert ImageProgram.model_validate_json(program.model_dump_json()) == program


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "output size, which depends on the image, is not supported"),
    ({"sizes": (ShortestEdge(edge=24),)}, "output size, which depends on the image, is not supported"),
    ({"sizes": (AspectTiles(most=4),)}, "output size, which depends on the image, is not supported"),
    (
        {"fit": Letterbox(), "sizes": (AspectTiles(most=4),)},
        "output size, which depends on the image, is not supported",
    ),
    (
        {"fit": Letterbox(), "sizes": (TileMultiples(), ShortestEdge(edge=24))},
        "output size, which depends on the image, is not supported",
    ),
    (
        {"sizes": (FixedSize(height=24, width=20),)},
        "output of 24 x 20 pixels for a vision tower of 24 x 24 is not supported",
    ),
    ({"crop": (24, 30)}, "output of 24 x 30 pixels for a vision tower of 24 x 24 is not supported"),
    (
        {"fit": Letterbox(), "sizes": (ShortestEdge(edge=30),)},
        "output of 30 x 30 pixels for a vision tower of 24 x 24 is not supported",
    ),
    ({"fit": Letterbox(), "crop": (24, 24)}, "do_pad without do_resize is not supported"),
    (
        {"fit": Letterbox(), "sizes": (ShortestEdge(edge=20),), "crop": (24, 24)},
        r"crop_size \(24, 24\) around padded images of size \(20, 20\) is not supported",
    ),
    ({"cut": CutTiles()}, "number of tiles, which has no bound or is no whole number, is not supported"),
    (
        {"cut": CutTiles(), "sizes": (TileMultiples(),)},
        "number of tiles, which has no bound or is no whole number, is not supported",
    ),
    (
        {"cut": CutTiles(), "sizes": (LongestEdge(edge=50),)},
        "number of tiles, which has no bound or is no whole number, is not supported",
    ),
    (
        {"cut": CutTiles(), "sizes": (AspectTiles(most=4), ShortestEdge(edge=50))},
        "number of tiles, which has no bound or is no whole number, is not supported",
    ),
    (
        {"cut": CutTiles(), "sizes": (FixedSize(height=48, width=50),)},
        "size of 48 x 50 pixels for tiles of 24 x 24 is not supported",
    ),
    (
        {"cut": CutTiles(), "sizes": (LongestEdge(edge=2400), TileMultiples())},
        "number of tiles, up to 10000 with 256 allowed, is not supported",
    ),
    (
        {"cut": CutTiles(), "sizes": (AspectTiles(most=4),), "crop": (24, 24)},
        "crop_size beside tiles is not supported",
    ),
    ({"tokens": PatchTokens(side=2)}, "feed of tiles with tokens by patches is not supported"),
    (
        {"feed": PatchFeed(size=4), "tokens": GridTokens(rows=4, columns=4)},
        "feed of patches with tokens by grid is not supported",
    ),
    (
        {**PATCHES, "crop": (24, 24)},
        "crop, cut, letterbox or another way with several images beside patches is",
    ),
    (
        {"sizes": (BestCanvas(canvases=((24, 24),)),)},
        "canvas beside another step, or without tiles, is not supported",
    ),
    (
        {"cut": CutTiles(), "sizes": (BestCanvas(canvases=((24, 48), (24, 50))),)},
        "canvas of 24 x 50 pixels for tiles of 24 x 24 is not supported",
    ),
    (
        {"cut": CutCrops(ratio=1.2, least=8, most=4), "sizes": (FixedSize(height=24, width=48),)},
        "cut of crops that are not stretched to one tile is not supported",
    ),
    (
        {"cut": CutTiles(), "sizes": (AspectTiles(most=2),), "tokens": PACKED},
        "putting tiles together that are not cut from a canvas is not supported",
    ),
    (
        {
            "cut": CutTiles(thumbnail="last"),
            "sizes": (BestCanvas(canvases=((24, 48),)),),
            "tokens": PACKED,
        },
        "thumbnail behind tiles that are put together is not supported",
    ),
    (
        {"sizes": (FixedSize(height=24, width=24),), "several": AmongSeveral(sizes=(ShortestEdge(edge=24),))},
        "among several images, output size, which depends on the image, is not supported",
    ),
    ({**PATCHES, "sizes": ()}, "number of patches, which has no bound, is not supported"),
    (
        {**PATCHES, "sizes": (FixedSize(height=24, width=26),)},
        "size of 24 x 26 pixels for squares of 8 x 8 is not supported",
    ),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_what_cannot_be_fed_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        small(**fields)
    assert first_fault(caught.value).startswith(message.split()[0])


def test_tile_multiples_are_of_square_tiles() -> None:
    sizes = (LongestEdge(edge=100), TileMultiples())
    with pytest.raises(ValidationError, match="number of tiles, which has no bound"):
        smolvlm(sizes=sizes, feed=TileFeed(height=20, width=24))


def test_a_grid_has_fewer_cells_than_pixels() -> None:
    with pytest.raises(ValidationError, match=r"the grid \(4, 30\) has more cells than a tile has pixels"):
        ImageProgram(crop=(24, 24), feed=FEED, tokens=GridTokens(rows=4, columns=30))


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        (AspectTiles, {"least": 3, "most": 2}),
        (AspectTiles, {"most": 257}),
        (PixelValues, {"mean": (0.5,) * 3}),
        (PixelValues, {"mean": (0.5,) * 3, "std": (0.0, 1.0, 1.0)}),
        (PixelValues, {"resample": 4}),
        (FixedSize, {"height": 0, "width": 4}),
        (ShortestEdge, {"edge": 1 << 13}),
        (Letterbox, {"color": (0, 0, 256)}),
        (CutTiles, {"thumbnail": "middle"}),
        (PixelBudget, {"least": 5, "most": 4}),
        (ImageText, {"prefix": "\x1b[2J"}),
    ],
)
def test_bounds(part: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        part(**fields)


def test_unknown_steps_are_refused() -> None:
    raw = smolvlm().model_dump()
    raw["sizes"][0]["kind"] = "pinpoints"
    with pytest.raises(ValidationError, match="'pinpoints' found using 'kind' does not match any"):
        ImageProgram.model_validate(raw)


@pytest.mark.parametrize(
    ("step", "width", "height", "expected"),
    [
        (ShortestEdge(edge=336), 640, 480, (336, 448)),
        (ShortestEdge(edge=336), 480, 641, (448, 336)),  # 448.7, cut
        (LongestEdge(edge=100), 300, 101, (33, 100)),
        (LongestEdge(edge=100, even=True), 300, 101, (34, 100)),
        (LongestEdge(edge=100), 1, 9999, (100, 1)),
        (LongestEdge(edge=100, limit=81), 200, 21, (8, 81)),
        (LongestEdge(edge=100, limit=99), 21, 200, (99, 9)),
        (LongestEdge(edge=100, limit=100), 200, 21, (10, 100)),
        (TileMultiples(), 65, 64, (96, 96)),  # the height of the width's whole tiles, not its own
        (TileMultiples(), 64, 64, (64, 64)),
        (AspectTiles(most=12), 800, 600, (96, 128)),
        (AspectTiles(most=12), 60, 60, (64, 64)),
        (AspectTiles(most=12), 30, 30, (32, 32)),  # of three squares the largest that is not half empty
        (AspectTiles(least=2, most=2), 1, 99, (64, 32)),
        # Halves go to the even number: 1.5 tiles and 2.5.
        (PixelBudget(least=1, most=1 << 20), 80, 48, (64, 64)),
        (PixelBudget(least=1, most=9000), 100, 300, (160, 32)),
        (PixelBudget(least=9000, most=9000), 10, 30, (192, 64)),
    ],
)
def test_sizes(step: Any, width: int, height: int, expected: tuple[int, int]) -> None:
    assert step.target(height, width, (32, 32)) == expected


@pytest.mark.parametrize("size", [(640, 480), (77, 333), (1900, 60), (512, 512), (10, 10), (1, 4000)])
def test_prompt_text_of_smolvlm(size: tuple[int, int]) -> None:
    for program in (smolvlm(), smolvlm(512, 512), smolvlm(1024, 512)):
        rows, columns = program.tile_grid(*size)
        shape = (0, 0) if (rows, columns) == (1, 1) else (rows, columns)
        names = ("<fake_token_around_image>", "<image>", "<global-img>")
        assert program.layout(*size).text("<image>") == get_image_prompt_string(*shape, 64, *names)


@pytest.mark.parametrize("size", [(640, 480), (77, 333), (1900, 60), (448, 448), (1, 1), (2000, 1500)])
def test_prompt_text_of_internvl(size: tuple[int, int]) -> None:
    processor: Any = types.SimpleNamespace(
        start_image_token="<img>", end_image_token="</img>", image_token="<IMG>", image_seq_length=256
    )
    layout = internvl().layout(*size)
    expected = InternVLProcessor.replace_image_token(processor, {"num_patches": [len(layout.blocks)]}, 0)
    assert layout.text("<IMG>") == expected
    assert len(layout.pieces) == 3


def test_prompt_text_of_llava() -> None:
    layout = llava(fit=LETTERBOX).layout(640, 480)
    assert layout.pieces == (576,)
    assert layout.size == (640, 480)
    assert [(block.grid, block.kind, block.newline) for block in layout.blocks] == [((24, 24), "tile", None)]


def test_texts_know_rows_and_columns_alone() -> None:
    text = ImageText(tile="{row}{column}{row.__class__}{0}{row:>9}")
    layout = internvl(most=2, least=2, text=text, cut=CutTiles()).layout(200, 100)
    assert layout.pieces == ("11{row.__class__}{0}{row:>9}", 256, "12{row.__class__}{0}{row:>9}", 256)


def test_a_thumbnail_may_come_first() -> None:
    program = internvl(
        cut=CutTiles(thumbnail="first"),
        text=ImageText(prefix="<", tile="t", row_end="/", thumbnail="s", suffix=">"),
    )
    assert program.layout(200, 100).pieces == ("<s", 256, "t", 256, "t", 256, "/>")
    assert program.layout(700, 700).pieces == ("<s", 256, *["t", 256, "t", 256, "/t", 256, "t", 256], "/>")


def test_the_box_of_a_crop() -> None:
    """Without a letterbox a crop leaves out the ends of the longer edge, and a large one has a margin."""
    (block,) = llava(24, cells=4).layout(96, 48).blocks
    assert (block.box.top, block.box.left) == (0, Fraction(1, 4))
    assert (block.box.bottom, block.box.right) == (1, Fraction(3, 4))
    (block,) = llava(24, cells=4, sizes=(ShortestEdge(edge=12),)).layout(10, 10).blocks
    assert (block.box.top, block.box.right) == (Fraction(-1, 2), Fraction(3, 2))


@PROPERTY
@given(
    SIDES,
    SIDES,
    st.one_of(
        st.builds(lambda most, least: internvl(most=most, least=min(least, most)), *[st.integers(1, 40)] * 2),
        st.builds(smolvlm, st.integers(8, 150), st.integers(12, 60)),
        st.just(llava(fit=LETTERBOX)),
        st.builds(qwen, st.integers(1, 9), st.integers(1, 900), st.integers(900, 9000)),
    ),
)
def test_no_image_has_more_tokens_than_the_program_says(
    width: int, height: int, program: ImageProgram
) -> None:
    if program.grid is None:
        width = min(width, 200 * height)
        height = min(height, 200 * width)
    layout = program.layout(width, height)
    assert len(layout.blocks) <= program.most_tiles
    assert layout.tokens <= program.most_tokens
    assert program.fixed_tokens in (None, layout.tokens)


def test_numbers_of_tokens() -> None:
    assert (llava().most_tokens, llava().fixed_tokens) == (576, 576)
    assert (internvl().most_tiles, internvl().most_tokens, internvl().fixed_tokens) == (13, 3328, None)
    assert internvl(most=1).fixed_tokens == 256
    assert internvl(most=3, least=3).fixed_tokens == 4 * 256
    assert (smolvlm().most_tiles, smolvlm().fixed_tokens) == (17, None)
    # An odd edge may grow by one, and with it the number of tiles.
    assert smolvlm(63, 21).most_tiles == 17
    assert smolvlm(512, 512).fixed_tokens is None
    assert smolvlm(512, 512).most_tiles == 1
    # The budget, where no row of the most elongated image is longer.
    assert (qwen().most_tokens, qwen().fixed_tokens, qwen().grid) == (16384, None, None)
    assert qwen(sizes=(FixedSize(height=56, width=84),)).fixed_tokens == 6


@pytest.mark.parametrize(
    ("width", "height"), [(0, 4), (4, -1), (float("nan"), 4), (4, 1.5), (4, float("inf"))]
)
def test_sizes_are_whole_pixels(width: Any, height: Any) -> None:
    with pytest.raises(
        InputError, match=r"the image's (width|height) is .*: expected a whole number of pixels"
    ):
        llava().layout(width, height)


def test_a_budget_of_pixels_can_be_lowered() -> None:
    lower = qwen().within(1003520)
    assert lower.most_tokens == 1280
    assert qwen().within(1000).sizes == (PixelBudget(least=1000, most=1000),)


@pytest.mark.parametrize(
    ("program", "pixels", "message"),
    [
        (llava(), 1000, "`max_pixels` was given, and this model's images have no budget of pixels"),
        (qwen(), 100, "`max_pixels` is 100, and this model takes images of 784 to 12845056 pixels"),
        (qwen(), 1 << 29, "`max_pixels` is 536870912, and this model takes images of 784 to"),
        (qwen(), 0, "`max_pixels` is 0"),
    ],
)
def test_a_budget_that_cannot_be(program: ImageProgram, pixels: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        program.within(pixels)


@PROPERTY
@given(
    program=st.sampled_from([internvl(), smolvlm(), qwen()]),
    width=st.integers(20, 2000),
    height=st.integers(20, 2000),
    share=st.floats(0.01, 1),
)
def test_a_shrunken_image_has_at_most_so_many_tokens(
    program: ImageProgram, width: int, height: int, share: float
) -> None:
    whole = program.layout(width, height).tokens
    most = max(1, int(share * whole))
    smaller = program.shrunken(width, height, most)
    assert smaller is not None
    found = smaller.layout(width, height).tokens
    least = program.shrunken(width, height, 1)
    assert least is not None
    assert found <= max(most, least.layout(width, height).tokens)
    assert found <= whole
    if (
        program.grid is None and whole > 100
    ):  # of whole pixels, as near as rounding to a row or a column lets it be
        assert found > most - (width + height) / min(width, height) * most**0.5 - 2
    assert smaller.model_copy(update={"sizes": program.sizes}) == program


def test_images_of_one_number_of_tokens_cannot_be_shrunken() -> None:
    assert llava().shrunken(640, 480, 100) is None
