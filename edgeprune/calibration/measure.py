"""Measuring the attention that a method's pruning stages score by, on the unpruned model. Needs torch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeprune.calibration.attention import Paid
from edgeprune.calibration.samples import Sample
from edgeprune.debias.curves import Coordinate, FittedTo
from edgeprune.debias.masks import PaddingMask
from edgeprune.errors import InputError
from edgeprune.exporter.attention import PassingCache
from edgeprune.exporter.decision import stored_dtype
from edgeprune.exporter.decoder import PrunedDecoder
from edgeprune.exporter.families import family_of, read_config
from edgeprune.exporter.image_processor import padding_mask_for
from edgeprune.exporter.indexing import take
from edgeprune.exporter.origin import origin
from edgeprune.exporter.pipeline import resolve_model
from edgeprune.exporter.processor import read_prompt
from edgeprune.image_program import ImageProgram
from edgeprune.interface import VALUES
from edgeprune.plans import PruningPlan, method_by_name
from edgeprune.progress import Progress
from edgeprune.runtime.batching import PromptInputs, batches, padded, vision_feeds
from edgeprune.runtime.messages import PromptLike
from edgeprune.runtime.preparing import Preparation
from edgeprune.runtime.prompt import PromptEncoder
from edgeprune.video_program import VideoProgram

# Of a curve where it is read by relative position, as images' numbers of visual tokens differ.
_PLACES: dict[Coordinate, int] = {"image": 256, "block": 256, "row": 64, "cell": 256}


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        folder: the model.
        plan: its stages, all of which score by attention.
        program: of the model's images.
        mask: how padding masks are made.
        video: of the model's videos, none of which is measured; None where it takes none.
        belongs: whose curve it will be.
    """

    folder: Path
    plan: PruningPlan
    program: ImageProgram
    mask: PaddingMask
    video: VideoProgram | None
    belongs: FittedTo

    @property
    def places(self) -> dict[Coordinate, int]:
        """The coordinates that a curve may go by, and its places in each.

        Where all images have as many visual tokens, in one grid, a place is one of them: row and column are
        told apart already. Where they differ, a curve may begin anew with an image, a block or a row, or go
        by rows and columns.
        """
        fixed, program = self.program.fixed_tokens, self.program
        if fixed is not None:
            return {"image": fixed}
        if program.grid is None:  # each image is one block
            return {name: _PLACES[name] for name in ("image", "row", "cell")}
        own: dict[Coordinate, int] = {"block": program.tokens_per_tile, "row": program.grid[1]}
        return {"image": _PLACES["image"], **own, "cell": _PLACES["cell"]}


def subject_of(
    model: str | os.PathLike[str],
    method: str,
    layer: int | Sequence[int] | None,
    images: int,
    progress: Progress,
) -> Subject:
    """Finds a model and what its method scores by; the weights are not loaded yet.

    Args:
        model: a folder in Hugging Face's layout, or a hub id.
        method, layer: as for `edgeprune.export`.
        images: how many will be measured.
        progress: told of a download.

    Raises:
        InputError, UnsupportedModelError: see their messages.
    """
    folder = resolve_model(model, progress)
    config = read_config(folder)
    family = family_of(config)
    program = family.image_program(folder, config)
    plan = scoring_plan(
        method,
        config.get_text_config().num_hidden_layers,
        layer,
        program.most_tokens,
        family.tower_layers(config),
        family.deepstack(config),
    )
    return Subject(
        folder=folder,
        plan=plan,
        program=program,
        mask=padding_mask_for(program, method),
        video=family.video_program(folder, config),
        belongs=origin(folder, str(model), plan, program.grid, images),
    )


def scoring_plan(
    method: str,
    layers: int,
    layer: int | Sequence[int] | None,
    places: int,
    tower_layers: int,
    deepstack: int = 0,
) -> PruningPlan:
    """The method's plan, whose stages are measured whatever share they keep, and whatever a tower merges.

    Raises:
        InputError: the method is unknown or pays no attention, or the layer is out of range.
    """
    plan = method_by_name(method).plan(
        layers, layer=layer, visual_tokens=places, tower_layers=tower_layers, deepstack=deepstack
    )
    if not plan.stages or any(stage.score_layer is None for stage in plan.stages):
        raise InputError(
            f"the method {method} does not select by attention: there is no bias to measure; choose another"
        )
    return plan


class MeasuringDecoder(PrunedDecoder):
    """The layers of a language model up to the last one that scores, each watched where a stage scores by it.

    Every stage sees the whole prompt. So one forward pass measures all of them, every index has a value, and
    what an earlier stage happened to keep does not mix with where it stood.

    Args:
        text_model: as for `PrunedDecoder`; its later layers are let go.
        plan: at least one stage, each with a score layer of its own.
        image_token_id: as for `PrunedDecoder`.
    """

    def __init__(
        self, text_model: Any, plan: PruningPlan, image_token_id: int, two_way: bool = False
    ) -> None:
        last = max(stage.score_layer for stage in plan.stages if stage.score_layer is not None)
        text_model.layers = torch.nn.ModuleList(list(text_model.layers)[: last + 1])
        super().__init__(text_model, torch.nn.Identity(), plan, image_token_id, torch.ones(1), 1, two_way)
        self.scored = {stage.score_layer: number for number, stage in enumerate(plan.stages)}

    def measure(
        self,
        input_ids: torch.Tensor,
        visual_embeds: torch.Tensor,
        visual_index: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        deepstack: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """The attention that each stage's scoring rows pay the visual tokens.

        Args:
            input_ids, attention_mask: int64 [B, S], padding on the left.
            visual_embeds: [B, V, D] in the model's dtype.
            visual_index: int64 [B, V].
            position_ids: int64 [B, S], or [axes, B, S] where a position has several numbers.
            deepstack: what is added behind each of the first layers, [B, V, D].

        Returns:
            float32 [stages, B, V].
        """
        nothing_past = attention_mask[:, :0]
        tokens, _ = self._begin(
            input_ids, visual_embeds, visual_index, position_ids, attention_mask, deepstack, nothing_past
        )
        paid: list[torch.Tensor] = []
        for number in range(len(self.text_model.layers)):
            # Nothing is dropped in front of a layer, so that one which scores by its own projections of what
            # reaches it sees the same as one whose attention is looked at.
            tap = self._tap(self.scored[number], tokens) if number in self.scored else None
            tokens.hidden = self._run(number, tokens, PassingCache(), tap)
            self._deepen(tokens, number)
            if tap is not None:
                assert tap.score is not None
                paid.append(take(tap.score, visual_index))
        return torch.stack(paid)


class Reader:
    """Makes prompts of samples, and what a decoder's first layer gets of them.

    Args:
        folder: the model.
        vision: its vision tower, on the device that it runs on.
        dtype: of the tower's input.
        program, mask, video: of its images and videos, none of which is read.
    """

    def __init__(
        self,
        folder: Path,
        vision: torch.nn.Module,
        dtype: torch.dtype,
        program: ImageProgram,
        mask: PaddingMask,
        video: VideoProgram | None,
    ) -> None:
        config = read_config(folder)
        family = family_of(config)
        self._vision, self._dtype = vision, dtype
        self._program, self._video = program, video
        with tempfile.TemporaryDirectory() as place:
            prompt = read_prompt(folder, config, Path(place), family.image_place(folder))
            encoder = PromptEncoder(place, prompt)
        self._preparation = Preparation(
            encoder=encoder,
            program=program,
            mask=mask,
            positions=family.positions(config),
            tower_tokens=lambda tokens: tokens,
            video=video,
            most_tokens=int(config.get_text_config().max_position_embeddings),
        )

    def prepare(self, sample: Sample) -> PromptInputs:
        """A sample's prompt.

        Raises:
            InputError: its image cannot be read.
        """
        return self._preparation.prepare(self._asked(sample.prompt), [sample.image])

    def feeds(self, prompts: Sequence[PromptInputs], plan: PruningPlan) -> dict[str, Any]:
        """What `MeasuringDecoder.measure` takes of prompts with as many visual tokens, by name."""
        batch = padded(prompts, self._preparation.encoder.prompt, plan)
        feeds = vision_feeds(prompts, self._program, self._video)
        pixels, *further = (
            self._tensor(value).to(self._dtype) if name in VALUES else self._tensor(value)
            for name, value in feeds.items()
        )
        with torch.no_grad():
            seen = self._vision(pixels, *further)
        embeds, *levels = [
            rows.unflatten(0, batch.visual_index.shape)
            for rows in (seen if isinstance(seen, tuple) else (seen,))
        ]
        return {
            "input_ids": self._tensor(batch.input_ids),
            "visual_embeds": embeds,
            "visual_index": self._tensor(batch.visual_index),
            "position_ids": self._tensor(batch.position_ids),
            "attention_mask": self._tensor(batch.attention_mask),
            "deepstack": levels,
        }

    def _tensor(self, values: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(next(self._vision.parameters()).device)

    def _asked(self, prompt: str) -> PromptLike:
        described = self._preparation.encoder.prompt
        if described.chat_template is None:
            return f"{described.place}\n{prompt}"
        return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]


def device() -> torch.device:
    """Where torch runs here."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Scorer:
    """The first layers of a model, up to the last one that a pruning stage scores by.

    Args:
        subject: the model, and what is measured of it.
    """

    def __init__(self, subject: Subject) -> None:
        folder = subject.folder
        family, dtype = family_of(read_config(folder)), stored_dtype(folder)
        parts = family.parts(family.load(folder, dtype))
        decoder = MeasuringDecoder(parts.text_model, subject.plan, parts.image_token_id, parts.two_way)
        vision = parts.vision.to(device()).eval()
        self._decoder = decoder.to(device()).eval()
        self._subject = subject
        self._reader = Reader(folder, vision, dtype, subject.program, subject.mask, subject.video)

    def attention(self, samples: Sequence[Sample]) -> list[Paid]:
        """What the scoring rows of each sample pay.

        Raises:
            InputError: an image cannot be read.
        """
        prompts = [self._reader.prepare(sample) for sample in samples]
        found: dict[int, Paid] = {}
        for numbers in batches([prompt.layout.tokens for prompt in prompts], len(prompts)):
            found |= zip(numbers, self._paid([prompts[number] for number in numbers]), strict=True)
        return [found[number] for number in range(len(samples))]

    def _paid(self, prompts: Sequence[PromptInputs]) -> list[Paid]:
        """Of prompts with as many visual tokens."""
        with torch.no_grad():
            paid = self._decoder.measure(**self._reader.feeds(prompts, self._subject.plan))
        even = 1.0 if self._subject.program.fixed_tokens is not None else float(paid.shape[2])
        by_sample = (paid.float() * even).cpu().numpy().swapaxes(0, 1)
        return [
            Paid(of_sample, prompt.visual_valid, self._places(prompt))
            for of_sample, prompt in zip(by_sample, prompts, strict=True)
        ]

    def _places(self, prompt: PromptInputs) -> dict[Coordinate, NDArray[np.int64]]:
        places = self._subject.places
        return {name: prompt.layout.places(count, name) - 1 for name, count in places.items()}
