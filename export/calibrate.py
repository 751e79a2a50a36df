"""Measuring a model's own bias curve: the attention that a method's pruning stages score by."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoProcessor

from edgeprune.calibration import (
    Calibration,
    Sample,
    calibration_of,
    digest,
    picture_numbers,
    read_samples,
)
from edgeprune.calibration_files import Outputs, State
from edgeprune.checks import check_count
from edgeprune.debias.curves import save_curve
from edgeprune.debias.masks import PaddingMask, visual_valid
from edgeprune.errors import InputError
from edgeprune.exporter.families import family_of, read_config
from edgeprune.exporter.measuring import MeasuringDecoder
from edgeprune.exporter.origin import origin
from edgeprune.exporter.pipeline import resolve_model, stored_dtype
from edgeprune.exporter.processor import padding_mask_for, read_preprocessing
from edgeprune.files import only_writer
from edgeprune.fitting import KINDS, TrendKind, need_pictures
from edgeprune.manifest import Preprocessing
from edgeprune.plans import PruningPlan, method_by_name
from edgeprune.progress import Progress, Silent
from edgeprune.runtime.images import load_image

_SAVE_EVERY = 16
"""Batches between two writings of the state."""


def calibrate(
    model: str | os.PathLike[str],
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    prompts: str | os.PathLike[str] | None = None,
    method: str = "fastv",
    layer: int | Sequence[int] | None = None,
    trend: TrendKind | None = None,
    limit: int | None = None,
    batch: int = 8,
    restart: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """Measures the attention of a method's scoring rows, fits trends, and writes the first stage's curve.

    All stages are measured in one pass over the unpruned model; see `MeasuringDecoder`. Runs on a GPU where
    torch has one. A run that was stopped goes on with the same arguments.

    Args:
        model: a folder in Hugging Face's layout, or a hub id.
        images, prompts, limit: see `edgeprune.calibration.read_samples`.
        output: the curve's JSON file; what an unfinished run gathered lies beside it.
        method, layer: as for `export`.
        trend: the kind to use; None for the one that errs least on pictures it has not seen.
        batch: pictures that run together.
        restart: begin anew rather than go on with an unfinished run.
        progress: told the steps.

    Raises:
        InputError, UnsupportedModelError, OutputError: see their messages.
    """
    check_count("batch", batch)
    if trend is not None and trend not in KINDS:
        raise InputError(f"unknown `trend` {trend!r}: choose one of {', '.join(KINDS)}")
    listener = progress or Silent()
    outputs = Outputs.beside(Path(output))
    samples = read_samples(Path(images), None if prompts is None else Path(prompts), limit)
    outputs.check([images, prompts, *{sample.picture for sample in samples}])
    with only_writer(Path(os.path.abspath(output))):
        return _calibrate(model, samples, outputs, method, layer, trend, batch, restart, listener)


def _calibrate(
    model: str | os.PathLike[str],
    samples: list[Sample],
    outputs: Outputs,
    method: str,
    layer: int | Sequence[int] | None,
    trend: TrendKind | None,
    batch: int,
    restart: bool,
    listener: Progress,
) -> Calibration:
    folder = resolve_model(model, listener)
    config = read_config(folder)
    family = family_of(config)
    grid = family.grid(config)
    places = grid[0] * grid[1]
    plan = scoring_plan(
        method, config.get_text_config().num_hidden_layers, layer, places, family.tower_layers(config)
    )
    preprocessing = read_preprocessing(folder, family.image_size(config), grid)
    numbers = picture_numbers(samples)
    pictures = int(numbers.max()) + 1
    need_pictures(pictures)
    belongs = origin(folder, str(model), plan, grid, pictures)
    layers = [stage.layer for stage in plan.stages]
    settings = {**belongs.model_dump(mode="json"), "layers": layers, "samples": digest(samples)}
    state = State(outputs.unfinished, settings, places, len(layers), restart)
    done = state.samples
    if done < len(samples):
        listener.step("loading the model")
        scorer = Scorer(folder, plan, preprocessing, padding_mask_for(preprocessing, method))
        listener.step("measuring attention", len(samples))
        listener.advance(done)
        for turn, start in enumerate(range(done, len(samples), batch), start=1):
            part = samples[start : start + batch]
            try:
                measured = scorer.attention(part)
            except InputError:  # a damaged picture: once it is mended, the run goes on from here
                state.save()
                raise
            state.add(*measured, numbers[start : start + batch])
            if turn % _SAVE_EVERY == 0:
                state.save()
            listener.advance(len(part))
        state.save()
    listener.step("fitting trends")
    found = calibration_of(belongs, plan.stages, state.attention, trend)
    save_curve(found.curve, outputs.curve)
    state.remove()
    return found


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


class Scorer:
    """The first layers of a model, up to the last one that a pruning stage scores by.

    Args:
        folder: the model.
        plan: as `scoring_plan` makes it.
        preprocessing: of the model.
        mask: how padding masks are made.
    """

    def __init__(
        self, folder: Path, plan: PruningPlan, preprocessing: Preprocessing, mask: PaddingMask
    ) -> None:
        config = read_config(folder)
        family = family_of(config)
        self._dtype = stored_dtype(folder)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        parts = family.parts(family.load(folder, self._dtype))
        decoder = MeasuringDecoder(
            parts.text_model, plan, parts.image_token_id, preprocessing.places_per_image
        )
        self._vision = parts.vision.to(self._device).eval()
        self._decoder = decoder.to(self._device).eval()
        self._image_token_id = parts.image_token_id
        self._preprocessing, self._mask = preprocessing, mask
        self._processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
        self._processor.tokenizer.padding_side = "left"

    def attention(self, samples: Sequence[Sample]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The attention that the scoring rows pay, float32 [stages, P, V], and padding masks, float32 [P, V].

        Raises:
            InputError: a picture cannot be read.
        """
        pictures = [Image.fromarray(load_image(sample.picture)) for sample in samples]
        given = self._processor(
            images=pictures,
            text=[self._text(sample.prompt) for sample in samples],
            padding=True,
            return_tensors="pt",
        ).to(self._device)
        ids, mask = given["input_ids"], given["attention_mask"]
        visual = (ids == self._image_token_id).nonzero()[:, 1].view(len(samples), -1)
        with torch.no_grad():
            embeds = self._vision(given["pixel_values"].to(self._dtype))
            paid = self._decoder.measure(ids, embeds, visual, mask)
        valid = [visual_valid(*picture.size, self._preprocessing, self._mask) for picture in pictures]
        return paid.float().cpu().numpy(), np.stack(valid)

    def _text(self, prompt: str) -> str:
        if self._processor.chat_template is None:
            return f"{self._processor.image_token}\n{prompt}"
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text: str = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return text
