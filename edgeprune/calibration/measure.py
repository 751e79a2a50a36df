"""Measuring the attention that a method's pruning stages score by, on the unpruned model. Needs torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoProcessor

from edgeprune.calibration.samples import Sample
from edgeprune.debias.curves import FittedTo
from edgeprune.debias.masks import PaddingMask
from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.exporter.attention import PassingCache
from edgeprune.exporter.decision import stored_dtype
from edgeprune.exporter.decoder import PrunedDecoder
from edgeprune.exporter.families import family_of, read_config
from edgeprune.exporter.image_processor import padding_mask_for
from edgeprune.exporter.indexing import take
from edgeprune.exporter.origin import origin
from edgeprune.exporter.pipeline import resolve_model
from edgeprune.image_program import ImageProgram
from edgeprune.layout import PromptLayout
from edgeprune.plans import PruningPlan, method_by_name
from edgeprune.progress import Progress
from edgeprune.runtime.images import load_image

# Of a curve for images whose numbers of visual tokens differ.
_PLACES = 256


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        folder: the model.
        plan: its stages, all of which score by attention.
        program: of the model's images.
        mask: how padding masks are made.
        belongs: whose curve it will be.
    """

    folder: Path
    plan: PruningPlan
    program: ImageProgram
    mask: PaddingMask
    belongs: FittedTo

    @property
    def places(self) -> int:
        """Places of the curve: an image's visual tokens, where all images have as many."""
        return self.program.fixed_tokens or _PLACES


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
    if program.fixed_tokens is None:
        raise UnsupportedModelError(
            f"{family.architecture} gives images of different sizes different numbers of visual tokens: "
            "calibration measures models whose images have one number, such as LLaVA-1.5; export it with "
            "`debias` padding or none, or give a `curve` fitted elsewhere"
        )
    plan = scoring_plan(
        method,
        config.get_text_config().num_hidden_layers,
        layer,
        program.most_tokens,
        family.tower_layers(config),
    )
    return Subject(
        folder=folder,
        plan=plan,
        program=program,
        mask=padding_mask_for(program, method),
        belongs=origin(folder, str(model), plan, program.grid, images),
    )


def scoring_plan(
    method: str, layers: int, layer: int | Sequence[int] | None, places: int, tower_layers: int
) -> PruningPlan:
    """The method's plan, whose stages are measured whatever share they keep, and whatever a tower merges.

    Raises:
        InputError: the method is unknown or pays no attention, or the layer is out of range.
    """
    plan = method_by_name(method).plan(layers, layer=layer, visual_tokens=places, tower_layers=tower_layers)
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

    def __init__(self, text_model: Any, plan: PruningPlan, image_token_id: int) -> None:
        last = max(stage.score_layer for stage in plan.stages if stage.score_layer is not None)
        text_model.layers = torch.nn.ModuleList(list(text_model.layers)[: last + 1])
        super().__init__(text_model, torch.nn.Identity(), plan, image_token_id, torch.ones(1), 1)
        self.scored = {stage.score_layer: number for number, stage in enumerate(plan.stages)}

    def measure(
        self,
        input_ids: torch.Tensor,
        visual_embeds: torch.Tensor,
        visual_index: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """The attention that each stage's scoring rows pay the visual tokens.

        Args:
            input_ids, attention_mask: int64 [B, S], padding on the left.
            visual_embeds: [B, V, D] in the model's dtype.
            visual_index: int64 [B, V].

        Returns:
            float32 [stages, B, V].
        """
        positions = (attention_mask.cumsum(1) - 1).clamp_min(0)
        nothing_past = attention_mask[:, :0]
        tokens, _ = self._begin(
            input_ids, visual_embeds, visual_index, positions, attention_mask, (), nothing_past
        )
        paid: list[torch.Tensor] = []
        for number, layer in enumerate(self.text_model.layers):
            # Nothing is dropped in front of a layer, so that one which scores by its own projections of what
            # reaches it sees the same as one whose attention is looked at.
            tap = self._tap(self.scored[number], tokens) if number in self.scored else None
            tokens.hidden = self._run(layer, tokens, tokens.mask, PassingCache(), tap)
            if tap is not None:
                assert tap.score is not None
                paid.append(take(tap.score, visual_index))
        return torch.stack(paid)


class Scorer:
    """The first layers of a model, up to the last one that a pruning stage scores by.

    Args:
        subject: the model, and what is measured of it.
    """

    def __init__(self, subject: Subject) -> None:
        folder = subject.folder
        config = read_config(folder)
        family = family_of(config)
        self._dtype = stored_dtype(folder)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        parts = family.parts(family.load(folder, self._dtype))
        decoder = MeasuringDecoder(parts.text_model, subject.plan, parts.image_token_id)
        self._vision = parts.vision.to(self._device).eval()
        self._decoder = decoder.to(self._device).eval()
        self._image_token_id = parts.image_token_id
        self._program, self._mask, self._places = subject.program, subject.mask, subject.places
        self._processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
        self._processor.tokenizer.padding_side = "left"

    def attention(
        self, samples: Sequence[Sample]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """The attention that the scoring rows pay, float32 [stages, N, V], the tokens' padding masks, float32
        [N, V], and their places, int64 [N, V], from 0.

        Raises:
            InputError: an image cannot be read.
        """
        shown = [Image.fromarray(load_image(sample.image)) for sample in samples]
        given = self._processor(
            images=shown,
            text=[self._text(sample.prompt) for sample in samples],
            padding=True,
            return_tensors="pt",
        ).to(self._device)
        ids, mask = given["input_ids"], given["attention_mask"]
        visual = (ids == self._image_token_id).nonzero()[:, 1].view(len(samples), -1)
        with torch.no_grad():
            embeds = self._vision(given["pixel_values"].to(self._dtype)).unflatten(0, visual.shape)
            paid = self._decoder.measure(ids, embeds, visual, mask)
        layouts = [PromptLayout((self._program.layout(*image.size),)) for image in shown]
        valid = np.stack([layout.valid(self._mask) for layout in layouts])
        place = np.stack([layout.places(self._places) for layout in layouts]) - 1
        return paid.float().cpu().numpy(), valid, place

    def _text(self, prompt: str) -> str:
        if self._processor.chat_template is None:
            return f"{self._processor.image_token}\n{prompt}"
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text: str = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return text
