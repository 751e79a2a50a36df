"""A family's tiny model beside its bundle: what every family is held to.

The other side is made of Hugging Face's own parts: the tokenizer, the image processor that works on Pillow,
the model's `generate`, and the loop of `tests.export.reference`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForImageTextToText, AutoTokenizer

from edgeprune import export
from edgeprune.bundle import read_manifest
from edgeprune.cli.main import main
from edgeprune.debias.curves import load_curve
from edgeprune.evaluation.answering import Asking
from edgeprune.evaluation.benchmarks import benchmark_by_name, read_questions
from edgeprune.evaluation.comparison import Grid, comparison_of
from edgeprune.exporter.origin import check_curve, origin
from edgeprune.interface import IN_PLACE, is_cache, present_mask
from edgeprune.questions.llava import Files
from edgeprune.runtime import Model, load
from tests.export.reference import Inputs, fastv

STEPS = 20
# As far as half precision rounds otherwise in another order of sums, in units of the logits' spread.
LIMITS = {"fp32": 1e-4, "fp16": 5e-2}
QUESTIONS = ("what is the big star ?", "what ?", "is the box small or big ? what", "the star is")

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Seen:
    """What Hugging Face's processor makes of a prompt's images.

    Attributes:
        pixel_values: as the model takes them.
        texts: what the place of each image becomes.
        further: what the model takes beside the pixels.
        valid: which visual tokens show the image, float32 [V]; None for all.
    """

    pixel_values: torch.Tensor
    texts: list[str]
    further: dict[str, torch.Tensor] = field(default_factory=dict)
    valid: torch.Tensor | None = None


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
        self._token: str = manifest.prompt.place

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
        is_visual = ids == self.ours.manifest.prompt.image_token_id
        valid, further = seen.valid, seen.further
        valid = torch.ones(1, int(is_visual.sum())) if valid is None else valid[None]
        if self.ours.manifest.model.family == "gemma3":
            further = {"token_type_ids": is_visual.long()}
        return Inputs(ids, torch.ones_like(ids), seen.pixel_values, valid, further)

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

    def check_share_by_image(self, images: Sequence[Image]) -> None:
        """Every image keeps at least its part, whatever the scores say; alone nothing changes.

        Args:
            images: of which one loses its part if the best tokens are kept.
        """
        messages = asked("what colour is the box ?", len(images))
        plain, shared = (
            self.ours.generate(messages, list(images), share_by_image=share, max_new_tokens=2)
            for share in (False, True)
        )
        tokens, (kept,) = np.array(shared.statistics.image_tokens), shared.statistics.image_kept
        part = tokens * sum(kept) // tokens.sum()
        assert (np.array(plain.statistics.image_kept[0]) < part).any()
        assert (np.array(kept) >= part).all()
        assert sum(kept) == plain.statistics.kept[0]
        one = asked("what colour is the box ?", 1)
        found = [
            self.ours.generate(one, [images[0]], share_by_image=share, max_new_tokens=5, do_sample=False)
            for share in (False, True)
        ]
        assert found[0].token_ids == found[1].token_ids

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
            [
                "eval",
                bundle,
                "--data",
                self._questions(place),
                "--metric",
                "exact",
                "-o",
                str(place / "eval"),
            ],
        ):
            assert main(command) == 0, command
        assert drawn.stat().st_size > 0
        self._check_calibration(place)

    def _questions(self, place: Path) -> str:
        lines = [
            {
                "question_id": number,
                "image": "image.png",
                "text": f"what colour is the {word} ?",
                "answer": word,
            }
            for number, word in enumerate(("big", "small", "star"))
        ]
        path = place / "questions.jsonl"
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        return str(path)

    def _check_calibration(self, place: Path) -> None:
        """A curve is measured on images of many sizes, and it fits the model that it was measured on."""
        images = place / "images"
        images.mkdir()
        for number in range(40):
            image = noise((16 + 8 * (number % 7), 16 + 8 * (number % 5)))
            PIL.Image.fromarray(image).save(images / f"{number:02}.png")
        curve, manifest = place / "curve.json", self.ours.manifest
        layer = str(manifest.plan.stages[0].layer)
        asking = ["--images", str(images), "-o", str(curve), "--no-plot", "--layer", layer]
        assert main(["calibrate", str(self.folder), *asking]) == 0
        found = load_curve(curve)
        check_curve(found, origin(self.folder, self.folder.name, manifest.plan, manifest.image_program.grid))

    def check_comparison(self, place: Path, image: Image, keep: float = 0.3) -> None:
        """An image that is resized to as many visual tokens as the method keeps is asked about too."""
        PIL.Image.fromarray(image).save(place / "image.png")
        benchmark = benchmark_by_name("exact")
        questions = read_questions(benchmark, Files(Path(self._questions(place))))
        found = comparison_of(
            cast(Any, _OneBundle(self.bundle)),
            benchmark,
            questions,
            Asking(max_new_tokens=2, threads=1),
            Grid(keeps=(keep,), debias=("none",), resamples=200),
            place,
        )
        outcomes = {outcome.way.name: outcome for outcome in found.outcomes}
        (whole,), (kept,) = outcomes["unpruned"].kept, outcomes["fastv"].kept
        (resized,) = outcomes["resize"].kept
        assert found.visual_tokens == whole
        assert 0 < resized <= kept < whole

    def check_long_replies(self) -> None:
        """Four prompts go on for a thousand steps with caches in place as they do with copied ones."""
        forms = [load(self.bundle, "onnxruntime", threads=1, caches=how) for how in (IN_PLACE, "copied")]
        decode_alike(forms, 4, steps=1000, room=1000, scale=4)

    def check_engines(self) -> None:
        """TensorRT for RTX builds both engines."""
        pytest.importorskip("tensorrt_rtx")
        from edgeprune.runtime.backends.tensorrt import build

        engines = build(
            self.bundle, backend="tensorrt-rtx", targets=["sm89"], max_images=2, max_new_tokens=32
        )
        assert (engines / "language.engine").stat().st_size > 0
        assert (engines / "vision.engine").stat().st_size > 0


class _OneBundle:
    """Stands for what exports a bundle for every way."""

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle

    def of(self, pruning: object) -> Path:
        return self._bundle


def check_half_precision(folder: Path, place: Path) -> None:
    """fp16 agrees with Hugging Face's own model within the limits of the export's comparison; bf16, which
    ONNX Runtime's CPU kernels do not run, is traced and checked, with its linear layers in int4.
    """
    half = export(folder, keep=0.5, dtype="fp16", output=place / "fp16")
    assert read_manifest(half).verification.checks
    export(folder, keep=0.5, dtype="bf16", weights="int4", output=place / "bf16")


def decode_alike(forms: Sequence[Model], batch: int, steps: int, room: int, scale: float = 1) -> None:
    """Prompts of different lengths, greedy by the copied caches' logits on both sides.

    Args:
        scale: of the limits; rounding adds up in caches that are carried on for long.
    """
    inputs = [
        forms[0].prepare(asked(question, 1), [noise((30 + 5 * number, 24))])
        for number, question in enumerate(QUESTIONS[:batch])
    ]
    if len({int((one.input_ids == forms[0].manifest.prompt.image_token_id).sum()) for one in inputs}) > 1:
        inputs = [forms[0].prepare(asked(question, 1), [noise((30, 24))]) for question in QUESTIONS[:batch]]
    states = [model.session.prefill(inputs, steps=room) for model in forms]
    for mine, other in zip(states[0].stages, states[1].stages, strict=True):
        for stage, wanted in zip(mine, other, strict=True):
            np.testing.assert_array_equal(stage.kept_visual, wanted.kept_visual)
    limit = scale * LIMITS[forms[0].manifest.precision.compute]
    for _ in range(steps):
        logits = states[1].logits
        assert np.abs(states[0].logits - logits).max() <= limit * max(1.0, logits.std())
        tokens = logits.argmax(axis=1)
        for state in states:
            state.step(tokens)
    ours, theirs = (state._caches for state in states)
    assert ours.keys() == theirs.keys()
    for name, cache in theirs.items():
        found, wanted = ours[name].numpy(), cache.numpy()
        if not is_cache(name):
            np.testing.assert_array_equal(found, wanted)
            continue
        mask = theirs[present_mask(_group(forms[0], name))].numpy() != 0
        rows = np.moveaxis(found.astype(np.float32) - wanted, 2, 1)[mask]
        assert np.abs(rows).max() <= limit * max(1.0, np.abs(wanted).max()), name


def _group(model: Model, name: str) -> int:
    return model.manifest.plan.group_of_layer(int(name.rpartition(".")[2]))


def asked(question: str, images: int) -> list[Any]:
    """A user's message, the images first."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    return [{"role": "user", "content": content}]
