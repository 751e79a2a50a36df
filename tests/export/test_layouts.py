"""Images of different sizes, so of different numbers of visual tokens, against an independent loop.

An exported LLaVA whose images are cut into tiles with a thumbnail, as InternVL cuts them: the vision graph
takes any number of tiles, so the manifest's image program is all that differs. Pixels and grids of tiles are
those of Hugging Face's own processor; weights, selections and decoding those of the loop in `reference`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from edgeprune import export
from edgeprune.bundle import read_manifest, write_manifest
from edgeprune.debias.curves import save_curve
from edgeprune.debias.masks import PaddingMask
from edgeprune.image_program import GridTokens, ImageText, PixelValues
from edgeprune.runtime import Model, load
from tests.export.conftest import CURVE, Exported
from tests.export.reference import Inputs, fastv
from tests.programs import internvl

pytestmark = pytest.mark.usefixtures("width_first")

IMAGE_TOKEN = "<image>"
SIDE, PER_TILE, MOST = 24, 36, 4
STEPS = 4
# (width, height): 4 tiles and a thumbnail, 1 tile, 2 tiles and a thumbnail.
WIDE, SQUARE, TALL = (96, 24), (30, 30), (25, 48)


def image(size: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(size[0] * 1000 + size[1])
    return rng.integers(0, 256, size=(size[1], size[0], 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def tiled(pruned: Exported, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("tiled")
    save_curve(CURVE, folder / "curve.json")
    options: dict[str, Any] = {"curve": folder / "curve.json", "debias": "position", "verify": False}
    folder = export(pruned.model, keep=0.3, output=folder / "bundle", **options)
    pixels = PixelValues(mean=(0.5,) * 3, std=(0.5,) * 3)
    program = internvl(SIDE, most=MOST, tokens=GridTokens(rows=6, columns=6), text=ImageText(), pixels=pixels)
    changes = {"image_program": program, "padding_mask": PaddingMask(kind="none")}
    changed = read_manifest(folder).model_copy(update=changes)
    assert changed.image_tokens is None
    assert changed.curve_places == PER_TILE
    write_manifest(folder, changed)
    model = load(folder, "onnxruntime", threads=1)
    endless = model.manifest.prompt.model_copy(update={"eos_token_ids": (63,)})
    model.session.manifest = model.manifest = model.manifest.model_copy(update={"prompt": endless})
    return model


def processed(images: list[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """Hugging Face's tiles of images, float32 [tiles, 3, h, w], and how many each has."""
    processor = GotOcr2ImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        crop_to_patches=True,
        min_patches=1,
        max_patches=MOST,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    found = processor(images, return_tensors="np")
    return np.asarray(found["pixel_values"], dtype=np.float32), [int(n) for n in found["num_patches"]]


def weights(tiles: list[int]) -> torch.Tensor:
    """The curve's weights, each image's from its first token to its last, at the nearest place."""
    found = []
    for count in tiles:
        tokens = count * PER_TILE
        place = np.floor(np.arange(tokens) * (PER_TILE - 1) / (tokens - 1) + 0.5)
        found.append(CURVE.weights()[place.astype(int)])
    return torch.from_numpy(np.concatenate(found))


def expected(
    hf: LlavaForConditionalGeneration, model: Model, images: list[np.ndarray], prompt: str
) -> tuple[Any, int]:
    """What the independent loop makes of a prompt, and how many visual tokens it has."""
    pixels, tiles = processed(images)
    places = iter(tiles)
    parts = prompt.split(IMAGE_TOKEN)
    text = parts[0] + "".join(IMAGE_TOKEN * (PER_TILE * next(places)) + part for part in parts[1:])
    ids = model._encoder._tokenizer.encode(text, special_tokens=True)
    visual = sum(tiles) * PER_TILE
    inputs = Inputs(
        torch.tensor([ids]),
        torch.ones(1, len(ids), dtype=torch.int64),
        torch.from_numpy(pixels),
        torch.ones(1, visual),
    )
    (stage,) = model.manifest.plan.counts(visual)
    layer = model.manifest.plan.stages[0].layer
    return fastv(hf, inputs, STEPS, layer, stage.kept, weights(tiles)), visual


PROMPTS = {
    "two images of different size": ([WIDE, SQUARE], "the <image> a <image> of ?"),
    "one that is cut": ([TALL], "<image> the of ?"),
    "one that is not": ([SQUARE], "<image> the a of ?"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_keeps_and_answers_as_the_independent_loop(
    tiled: Model, pruned: Exported, name: str
) -> None:
    sizes, prompt = PROMPTS[name]
    images = [image(size) for size in sizes]
    wanted, visual = expected(pruned.huggingface(), tiled, images, prompt)
    reply = tiled.generate(prompt, images, max_new_tokens=STEPS)
    assert reply.statistics.visual_tokens == visual
    assert list(reply.token_ids) == wanted.tokens[0].tolist()
    inputs = tiled.prepare(prompt, images)
    decoding = tiled.session.prefill([inputs])
    np.testing.assert_allclose(decoding.logits[0], wanted.logits[0, 0].numpy(), atol=2e-4)
    (stage,) = decoding.stages[0]
    index = np.flatnonzero(inputs.input_ids == tiled.manifest.prompt.image_token_id)
    stays = np.isin(index, wanted.kept[0][0])
    np.testing.assert_array_equal(stage.kept_visual, np.flatnonzero(stays))
    np.testing.assert_allclose(stage.score, wanted.scores[0][0, index], atol=1e-5)


def test_a_batch_of_prompts_with_different_numbers_of_visual_tokens(tiled: Model, pruned: Exported) -> None:
    hf = pruned.huggingface()
    cases = [*PROMPTS.values(), ([SQUARE, WIDE], "a <image><image> ?")]
    images = [[image(size) for size in sizes] for sizes, _ in cases]
    replies = tiled.generate([prompt for _, prompt in cases], images, max_new_tokens=STEPS)
    assert len({reply.statistics.visual_tokens for reply in replies}) == 3
    for (_, prompt), of_prompt, reply in zip(cases, images, replies, strict=True):
        wanted, _ = expected(hf, tiled, of_prompt, prompt)
        assert list(reply.token_ids) == wanted.tokens[0].tolist()


def test_a_layout_that_is_not_the_prompt_s_own_is_refused(tiled: Model, tmp_path: Path) -> None:
    wide, square = (tiled.prepare("<image> the", [image(size)]) for size in (WIDE, SQUARE))
    with pytest.raises(Exception, match=r"for a layout of .* make them of the same images"):
        tiled.session.prefill([dataclasses.replace(wide, layout=square.layout)])
