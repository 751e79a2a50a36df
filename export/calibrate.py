"""Measuring a model's own bias curve: the attention that its first pruning stage scores by, over pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from transformers import AutoProcessor
from transformers.image_utils import load_image

from edgeprune.calibration import Calibration, Sample, State, digest, picture_numbers, read_samples
from edgeprune.curves import save_curve
from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.export.decoder import PrunedDecoder
from edgeprune.export.families import family_of, read_config
from edgeprune.export.origin import origin
from edgeprune.export.pipeline import resolve_model, stored_dtype
from edgeprune.export.processor import padding_mask_for, read_preprocessing
from edgeprune.fitting import TrendKind, fit, need_pictures
from edgeprune.manifest import PaddingMask, Preprocessing
from edgeprune.masks import full_valid, letterbox_valid, letterbox_valid_bilinear
from edgeprune.plans import Merge, PruningPlan, Ranking, method_by_name
from edgeprune.progress import Progress, Silent

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
    """Measures the attention of a method's first scoring rows, fits trends, and writes the curve.

    Runs on a GPU where torch has one. A run that was stopped goes on with the same arguments.

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
    if batch < 1:
        raise InputError(f"--batch is {batch}: expected at least 1")
    listener = progress or Silent()
    target = Path(output)
    samples = read_samples(Path(images), None if prompts is None else Path(prompts), limit)
    folder = resolve_model(model, listener)
    config = read_config(folder)
    family = family_of(config)
    grid = family.grid(config)
    plan = scoring_plan(method, config.get_text_config().num_hidden_layers, layer)
    preprocessing = read_preprocessing(folder, family.image_size(config), grid)
    numbers = picture_numbers(samples)
    pictures = int(numbers.max()) + 1
    need_pictures(pictures)
    belongs = origin(folder, str(model), plan, grid, pictures)
    settings = {**belongs.model_dump(mode="json"), "samples": digest(samples)}
    state = State(
        target.with_name(f"{target.name}.unfinished.npz"), settings, preprocessing.tokens_per_image, restart
    )
    done = state.attention.samples
    if done < len(samples):
        listener.step("loading the model")
        scorer = Scorer(folder, plan, preprocessing, padding_mask_for(preprocessing, method, True))
        listener.step("measuring attention", len(samples))
        listener.advance(done)
        for turn, start in enumerate(range(done, len(samples), batch), start=1):
            part = samples[start : start + batch]
            paid, valid = scorer.attention(part)
            state.attention.add(paid, valid, numbers[start : start + batch])
            if turn % _SAVE_EVERY == 0:
                state.save()
            listener.advance(len(part))
        state.save()
    listener.step("fitting trends")
    found = fit(state.attention, trend)
    source = f"measured on {belongs.model}, {method} before layer {belongs.layer}, {pictures} pictures"
    curve = found.trend.curve.model_copy(update={"fitted_to": belongs, "source": source})
    save_curve(curve, target)
    state.remove()
    return Calibration(belongs, state.attention, found, curve)


def scoring_plan(method: str, layers: int, layer: int | Sequence[int] | None) -> PruningPlan:
    """A plan of the method's first stage alone, ranked by plain attention and keeping next to nothing.

    Raises:
        InputError: the method is unknown or pays no attention, or the layer is out of range.
    """
    plan = method_by_name(method).plan(layers, layer=layer)
    first = plan.stages[0] if plan.stages else None
    if first is None or first.score_layer is None:
        raise InputError(
            f"the method {method} does not select by attention: there is no bias to measure; choose another"
        )
    changes = {"ranking": Ranking.ATTENTION, "merge": Merge.DROP, "debiased": False, "keep": 1}
    return PruningPlan(method=method, stages=(first.model_copy(update=changes),))


class Scorer:
    """The first layers of a model, up to the first pruning stage.

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
        self._dtype = stored_dtype(folder, config)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = family.load(folder, self._dtype)
        parts = family.parts(model)
        # The stage belongs to the layer behind it, which sees hardly any token; all others are let go.
        parts.text_model.layers = nn.ModuleList(list(parts.text_model.layers)[: plan.stages[0].layer + 1])
        curve = torch.ones(preprocessing.tokens_per_image)
        decoder = PrunedDecoder(parts.text_model, nn.Identity(), plan, parts.image_token_id, curve)
        self._vision = parts.vision.to(self._device).eval()
        self._decoder = decoder.to(self._device).eval()
        self._image_token_id = parts.image_token_id
        text = config.get_text_config()
        heads = text.num_attention_heads
        self._cache_shape = (
            getattr(text, "num_key_value_heads", None) or heads,
            0,
            getattr(text, "head_dim", None) or text.hidden_size // heads,
        )
        self._preprocessing, self._mask = preprocessing, mask
        self._processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
        self._processor.tokenizer.padding_side = "left"

    def attention(self, samples: Sequence[Sample]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The attention that the scoring rows pay, and the padding masks, each float32 [P, V].

        Raises:
            InputError: a picture cannot be read.
        """
        pictures = [_opened(sample.picture) for sample in samples]
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
            layers = len(self._decoder.text_model.layers)
            empty = torch.zeros(len(samples), *self._cache_shape, dtype=self._dtype, device=self._device)
            no_mask = torch.zeros(len(samples), 0, dtype=torch.int64, device=self._device)
            outputs = self._decoder(
                ids,
                embeds,
                visual,
                torch.ones(visual.shape, device=self._device),
                (mask.cumsum(1) - 1).clamp_min(0),
                mask,
                [no_mask] * self._decoder.groups,
                [empty] * layers,
                [empty] * layers,
            )
        # Logits, the kept positions of the one stage, its score.
        score = outputs[2].gather(1, visual).float().cpu().numpy()
        valid = np.stack([self._valid(*picture.size) for picture in pictures])
        return score, valid

    def _text(self, prompt: str) -> str:
        if self._processor.chat_template is None:
            return f"{self._processor.image_token}\n{prompt}"
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text: str = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return text

    def _valid(self, width: int, height: int) -> NDArray[np.float32]:
        spec, mask = self._preprocessing, self._mask
        if mask.kind == "none":
            return full_valid(spec.grid)
        side = spec.image_size[0]
        resized = (spec.resize_to or (spec.resize_shortest_edge or side,))[0]
        if resized != side:
            raise UnsupportedModelError(
                f"the image processor letterboxes, resizes to {resized} and crops to {side} pixels, which is "
                "not supported for calibration: expected both alike"
            )
        rule = letterbox_valid_bilinear if mask.kind == "bilinear" else letterbox_valid
        return rule(width, height, spec.grid, side, mask.threshold)


def _opened(path: Path) -> Image.Image:
    try:
        return load_image(str(path))
    except Exception as error:  # Pillow's plugins raise errors of many kinds on damaged files
        raise InputError(f"the picture {path} cannot be read ({error}): use an undamaged copy") from error
