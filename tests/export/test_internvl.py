"""InternVL as its checkpoints lie on a disk, against Hugging Face's generate and an independent loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from edgeprune import export
from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.exporter.families import family_of, read_config
from edgeprune.runtime import Model, load
from tests.export.reference import Inputs, fastv
from tests.tiny import INTERNVL_TEMPLATE, save_internvl

pytestmark = pytest.mark.usefixtures("width_first")

STEPS = 20
CONTEXT = "<IMG_CONTEXT>"
# (width, height): four tiles and a thumbnail, one tile, two tiles and a thumbnail.
WIDE, SQUARE, TALL = (96, 24), (30, 30), (25, 48)


def image(size: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(size[0] * 1000 + size[1])
    return rng.integers(0, 256, size=(size[1], size[0], 3)).astype(np.uint8)


class Pair:
    """A model and its bundle. Replies never end early, so that every step is compared."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = save_internvl(folder / "model", kind)
        bundle = export(self.folder, keep=0.3, output=folder / "bundle")
        self.ours: Model = load(bundle, "onnxruntime", threads=1)
        endless = self.ours.manifest.prompt.model_copy(update={"eos_token_ids": (63,)})
        changed = self.ours.manifest.model_copy(update={"prompt": endless})
        self.ours.manifest = self.ours.session.manifest = changed
        self.hf = InternVLForConditionalGeneration.from_pretrained(
            self.folder, attn_implementation="eager"
        ).eval()
        self.hf.generation_config.eos_token_id = None
        self.hf.generation_config.pad_token_id = 0
        self.processor = GotOcr2ImageProcessorPil.from_pretrained(self.folder)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)

    def inputs(self, question: str, images: list[np.ndarray]) -> Inputs:
        """As InternVLProcessor makes them: each place an image's tokens, between <img> and </img>."""
        pixels, tiles = torch.zeros(0, 3, 24, 24), []
        if images:
            found = self.processor(images, return_tensors="np")
            pixels = torch.from_numpy(np.asarray(found["pixel_values"], dtype=np.float32))
            tiles = [int(count) for count in found["num_patches"]]
        content = [{"type": "image"}] * len(images) + [{"type": "text", "text": question}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=INTERNVL_TEMPLATE,
            add_generation_prompt=True,
            tokenize=False,
        )
        first, *rest = text.split(CONTEXT)
        for count, part in zip(tiles, rest, strict=True):
            first += f"<img>{CONTEXT * (9 * count)}</img>{part}"
        ids = torch.tensor([self.tokenizer(first)["input_ids"]])
        return Inputs(ids, torch.ones_like(ids), pixels, torch.ones(1, 9 * sum(tiles)))

    def generated(self, inputs: Inputs) -> list[int]:
        given: dict[str, Any] = {"pixel_values": inputs.pixel_values} if len(inputs.pixel_values) else {}
        out = self.hf.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            do_sample=False,
            max_new_tokens=STEPS,
            **given,
        )
        found: list[int] = out[0, -STEPS:].tolist()
        return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("internvl"), "qwen2")


CASES = {
    "cut into four": ([WIDE], "what colour is the big star ?"),
    "not cut": ([SQUARE], "what is the box ?"),
    "cut into two": ([TALL], "is the star small ?"),
    "two of different size": ([TALL, SQUARE], "what is the ?"),
    "text only": ([], "what is the big box ?"),
}


@pytest.mark.parametrize("name", CASES)
def test_unpruned_it_answers_as_hugging_face(pair: Pair, name: str) -> None:
    sizes, question = CASES[name]
    images = [image(size) for size in sizes]
    wanted = pair.inputs(question, images)
    ours = pair.ours.prepare(question, images)
    assert ours.input_ids.tolist() == wanted.input_ids[0].tolist()
    np.testing.assert_array_equal(ours.pixel_values, wanted.pixel_values.numpy())
    reply = pair.ours.generate(question, images, keep=1, max_new_tokens=STEPS, do_sample=False)
    assert list(reply.token_ids) == pair.generated(wanted)


def test_a_batch_answers_as_one_by_one(pair: Pair) -> None:
    images = [[image(size) for size in sizes] for sizes, _ in CASES.values()]
    questions = [question for _, question in CASES.values()]
    together = pair.ours.generate(questions, images, max_new_tokens=5)
    for question, of_prompt, reply in zip(questions, images, together, strict=True):
        assert reply.token_ids == pair.ours.generate(question, of_prompt, max_new_tokens=5).token_ids


@pytest.mark.parametrize("name", [name for name, (sizes, _) in CASES.items() if sizes])
def test_pruned_it_keeps_and_answers_as_the_independent_loop(pair: Pair, name: str) -> None:
    sizes, question = CASES[name]
    images = [image(size) for size in sizes]
    inputs = pair.inputs(question, images)
    visual = inputs.visual_valid.shape[1]
    (counts,) = pair.ours.manifest.plan.counts(visual)
    layer = pair.ours.manifest.plan.stages[0].layer
    wanted = fastv(pair.hf, inputs, STEPS, layer, counts.kept, torch.ones(visual))  # type: ignore[arg-type]
    reply = pair.ours.generate(question, images, max_new_tokens=STEPS)
    assert list(reply.token_ids) == wanted.tokens[0].tolist()
    index = np.flatnonzero(inputs.input_ids[0].numpy() == 5)
    assert list(reply.kept_visual[0]) == np.flatnonzero(np.isin(index, wanted.kept[0][0])).tolist()


@pytest.mark.slow
def test_with_a_qwen3_text_model(tmp_path: Path) -> None:
    other = Pair(tmp_path, "qwen3")
    sizes, question = CASES["two of different size"]
    images = [image(size) for size in sizes]
    reply = other.ours.generate(question, images, keep=1, max_new_tokens=STEPS)
    assert list(reply.token_ids) == other.generated(other.inputs(question, images))


@pytest.mark.slow
def test_engines_build(pair: Pair, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from edgeprune.runtime.backends.tensorrt import build

    bundle = export(pair.folder, keep=0.3, output=tmp_path / "bundle", verify=False)
    engines = build(bundle, flavour="tensorrt-rtx", targets=["sm89"], max_images=2, max_new_tokens=32)
    assert (engines / "language.engine").stat().st_size > 0


def test_images_are_stretched_so_nothing_is_padding(pair: Pair) -> None:
    assert pair.ours.manifest.padding_mask.kind == "none"
    assert pair.ours.manifest.plan.debias == ()
    assert pair.ours.manifest.image_tokens is None
    assert pair.ours.manifest.most_image_tokens == 45


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_seq_length": 16}, "image_seq_length 16 is not supported with tiles of 3 x 3"),
        ({"vision_feature_select_strategy": "full"}, "expected 'default' and one layer"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = save_internvl(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UnsupportedModelError, match=message):
        family_of(read_config(folder))


def test_a_tokenizer_without_the_ends_of_an_image_is_named(tmp_path: Path) -> None:
    folder = save_internvl(tmp_path / "model")
    names = json.loads((folder / "tokenizer_config.json").read_text())
    for key in ("start_image_token", "extra_special_tokens"):
        names.pop(key, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    config = read_config(folder)
    with pytest.raises(InputError, match="names no start_image_token and end_image_token"):
        family_of(config).image_program(folder, config)


def test_another_image_processor_is_named(tmp_path: Path) -> None:
    folder = save_internvl(tmp_path / "model")
    raw = json.loads((folder / "preprocessor_config.json").read_text())
    raw["image_processor_type"] = "OtherImageProcessor"
    (folder / "preprocessor_config.json").write_text(json.dumps(raw))
    config = read_config(folder)
    with pytest.raises(UnsupportedModelError, match="OtherImageProcessor is not supported here"):
        family_of(config).image_program(folder, config)
