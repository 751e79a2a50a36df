"""A family's tiny model beside its bundle: what every family is held to.

The other side is made of Hugging Face's own parts: the tokenizer, the image processor that works on Pillow,
the model's `generate`, and the loop of `tests.export.reference`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForImageTextToText, AutoTokenizer

from edgeprune import export
from edgeprune.bundle import read_manifest
from edgeprune.cli.main import main
from edgeprune.runtime import Model, load
from tests.export.reference import Inputs, fastv

STEPS = 20

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Seen:
    """What Hugging Face's processor makes of a prompt's images.

    Attributes:
        pixel_values: as the model takes them.
        texts: what the place of each image becomes.
        further: what the model takes beside the pixels.
    """

    pixel_values: torch.Tensor
    texts: list[str]
    further: dict[str, torch.Tensor] = field(default_factory=dict)


def noise(size: tuple[int, int]) -> Image:
    """An image of (width, height), always the same."""
    rng = np.random.default_rng(size[0] * 1000 + size[1])
    return rng.integers(0, 256, size=(size[1], size[0], 3)).astype(np.uint8)


class Pair:
    """A model and its bundle. Replies never end early, so that every step is compared.

    Args:
        folder: the model.
        see: what Hugging Face's own processor makes of images.
        options: of the export.
    """

    def __init__(self, folder: Path, see: Callable[[Sequence[Image]], Seen], **options: Any) -> None:
        self.folder = folder
        self.bundle = export(
            folder, output=folder.parent / f"{folder.name}-bundle", **{"keep": 0.3, **options}
        )
        self.ours: Model = load(self.bundle, "onnxruntime", threads=1)
        manifest = self.ours.manifest
        endless = manifest.prompt.model_copy(update={"eos_token_ids": (-1,)})
        self.ours.manifest = self.ours.session.manifest = manifest.model_copy(update={"prompt": endless})
        self.hf: Any = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
        self.hf.generation_config.eos_token_id = None
        self.hf.generation_config.pad_token_id = 0
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._see = see
        self._token: str = manifest.prompt.image_token

    def inputs(self, messages: list[Any], images: Sequence[Image]) -> Inputs:
        """The prompt as Hugging Face's processors make it."""
        text = self.tokenizer.apply_chat_template(
            messages,
            chat_template=(self.folder / "chat_template.jinja").read_text(encoding="utf-8"),
            add_generation_prompt=True,
            tokenize=False,
        )
        seen = self._see(images) if images else Seen(torch.zeros(0), [])
        first, *rest = text.split(self._token)
        for own, part in zip(seen.texts, rest, strict=True):
            first += own + part
        ids = torch.tensor([self.tokenizer(first)["input_ids"]])
        visual = int((ids == self.ours.manifest.prompt.image_token_id).sum())
        return Inputs(ids, torch.ones_like(ids), seen.pixel_values, torch.ones(1, visual), seen.further)

    def generated(self, inputs: Inputs) -> list[int]:
        """Hugging Face's own greedy reply."""
        given: dict[str, Any] = {}
        if len(inputs.pixel_values):
            given = {"pixel_values": inputs.pixel_values, **inputs.further}
        if "image_grid_thw" in given:
            given["mm_token_type_ids"] = (inputs.input_ids == self.hf.config.image_token_id).int()
        out = self.hf.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            do_sample=False,
            max_new_tokens=STEPS,
            **given,
        )
        found: list[int] = out[0, -STEPS:].tolist()
        return found

    def check_unpruned(self, messages: list[Any], images: Sequence[Image]) -> None:
        """The prompt's token ids and the greedy reply are Hugging Face's."""
        wanted = self.inputs(messages, images)
        ours = self.ours.prepare(messages, list(images))
        assert ours.input_ids.tolist() == wanted.input_ids[0].tolist()
        reply = self.ours.generate(messages, list(images), keep=1, max_new_tokens=STEPS, do_sample=False)
        assert list(reply.token_ids) == self.generated(wanted)

    def check_pruned(self, messages: list[Any], images: Sequence[Image]) -> None:
        """Kept tokens and the greedy reply are those of an independent loop."""
        inputs = self.inputs(messages, images)
        visual = inputs.visual_valid.shape[1]
        plan = self.ours.manifest.plan
        (counts,) = plan.counts(visual)
        wanted = fastv(self.hf, inputs, STEPS, plan.stages[0].layer, counts.kept, torch.ones(visual))
        reply = self.ours.generate(messages, list(images), max_new_tokens=STEPS, do_sample=False)
        index = inputs.visual_index(self.ours.manifest.prompt.image_token_id)[0].numpy()
        assert list(reply.kept_visual[0]) == np.flatnonzero(np.isin(index, wanted.kept[0][0])).tolist()
        assert list(reply.token_ids) == wanted.tokens[0].tolist()

    def check_batch(self, images: list[list[Image]], question: str) -> None:
        """Prompts of different images answer together as they do alone."""
        prompts = [asked(question, len(its)) for its in images]
        together = self.ours.generate(prompts, images, max_new_tokens=5, do_sample=False)
        for prompt, its, reply in zip(prompts, images, together, strict=True):
            alone = self.ours.generate(prompt, its, max_new_tokens=5, do_sample=False)
            assert reply.token_ids == alone.token_ids

    def check_commands(self, place: Path, image: Image) -> None:
        """What a user does with a bundle, by the command line: each command ends well.

        Args:
            place: an empty folder.
            image: one that is divided into several rows and columns of visual tokens.
        """
        file, bundle = str(place / "image.png"), str(self.bundle)
        PIL.Image.fromarray(image).save(file)
        asking = [bundle, "--image", file, "--prompt", "what is the big star ?"]
        drawn = place / "drawn.png"
        for command in (
            ["run", *asking, "--draw", str(drawn), "--max-new-tokens", "3"],
            ["inspect", bundle],
            ["inspect", *asking, "--draw", str(place / "inspected.png")],
            ["verify", bundle, "--against", str(self.folder)],
            ["bench", *asking, "--runs", "1", "--warmup", "0", "--max-new-tokens", "2"],
        ):
            assert main(command) == 0, command
        assert drawn.stat().st_size > 0

    def check_engines(self) -> None:
        """TensorRT for RTX builds both engines."""
        pytest.importorskip("tensorrt_rtx")
        from edgeprune.runtime.backends.tensorrt import build

        engines = build(
            self.bundle, flavour="tensorrt-rtx", targets=["sm89"], max_images=2, max_new_tokens=32
        )
        assert (engines / "language.engine").stat().st_size > 0
        assert (engines / "vision.engine").stat().st_size > 0


def check_half_precision(folder: Path, place: Path) -> None:
    """fp16 agrees with Hugging Face's own model within the limits of the export's comparison; bf16, which
    ONNX Runtime's CPU kernels do not run, is traced and checked.
    """
    half = export(folder, keep=0.5, dtype="fp16", output=place / "fp16")
    assert read_manifest(half).verification.checks
    export(folder, keep=0.5, dtype="bf16", output=place / "bf16")


def asked(question: str, images: int) -> list[Any]:
    """A user's message, the images first."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    return [{"role": "user", "content": content}]
