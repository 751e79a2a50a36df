"""Rounding a model's weights with an eye on what it reads: GPTQ, layer by layer. Needs torch.

Images and questions run through the layers one after the other, unpruned. In front of each its inputs are
gathered as second moments, its weights are rounded (`edgeprune.exporter.precision.gptq`), and what the layer
then makes of its inputs goes on, so that later layers make up for it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeprune.calibration.measure import Reader, device
from edgeprune.calibration.samples import Sample, read_samples
from edgeprune.exporter.attention import PassingCache
from edgeprune.exporter.decision import stored_dtype
from edgeprune.exporter.decoder import PrunedDecoder
from edgeprune.exporter.families import family_of, read_config
from edgeprune.exporter.graph import TORCH_DTYPES
from edgeprune.exporter.precision.blocks import (
    BITS,
    VALUE_DTYPES,
    BlockForm,
    Blocks,
    best_scale,
    quantise,
)
from edgeprune.exporter.precision.gptq import quantise_gptq
from edgeprune.log import note
from edgeprune.manifest import Manifest
from edgeprune.plans import PruningPlan
from edgeprune.progress import Progress

MOST_SAMPLES = 128
"""Images that are read; more change little and take their time."""

_UNPRUNED = PruningPlan(method="none")


def by_gptq(
    folder: Path,
    manifest: Manifest,
    images: str | os.PathLike[str],
    prompts: str | os.PathLike[str] | None,
    progress: Progress,
) -> Gptq:
    """What brings the weights of a model into blocks by GPTQ.

    Args:
        folder: the model.
        manifest: of the bundle to be.
        images, prompts: as for `edgeprune.calibration.samples.read_samples`; the first ones of many.
        progress: told the steps.

    Raises:
        InputError: an image or a question cannot be read.
    """
    samples = read_samples(Path(images), None if prompts is None else Path(prompts))
    if len(samples) > MOST_SAMPLES:
        note(f"of {len(samples)} images to round weights by, the first {MOST_SAMPLES} are read")
    progress.step("reading images to round weights by")
    return Gptq(folder, manifest, samples[:MOST_SAMPLES])


class _Layers(PrunedDecoder):
    """The layers of a language model, run one at a time on whole prompts."""

    def begin(
        self,
        input_ids: torch.Tensor,
        visual_embeds: torch.Tensor,
        visual_index: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        deepstack: Sequence[torch.Tensor],
    ) -> Any:
        tokens, _ = self._begin(
            input_ids,
            visual_embeds,
            visual_index,
            position_ids,
            attention_mask,
            deepstack,
            attention_mask[:, :0],
        )
        tokens.hidden = tokens.hidden.float()
        return tokens

    def see(self, number: int, tokens: Any) -> torch.Tensor:
        """What layer `number` makes of tokens, which stay as they are."""
        return self._run(number, tokens, PassingCache(), None)

    def go_on(self, number: int, tokens: Any) -> None:
        tokens.hidden = self.see(number, tokens)
        self._deepen(tokens, number)


class Gptq:
    """Brings a model's weights into blocks, in the order of its layers.

    The model is loaded whole, in the type that it is stored in; a layer at a time is widened to float32.

    Args:
        folder: the model.
        manifest: of the bundle to be.
        samples: what is read.
    """

    def __init__(self, folder: Path, manifest: Manifest, samples: Sequence[Sample]) -> None:
        family, dtype = family_of(read_config(folder)), stored_dtype(folder)
        model = family.load(folder, dtype)
        parts = family.parts(model)
        self._scale = TORCH_DTYPES[manifest.precision.compute]
        self._head: nn.Module = parts.lm_head.to(device()).float().eval()
        self._layers = _Layers(
            parts.text_model, nn.Identity(), _UNPRUNED, parts.image_token_id, torch.ones(1), 1, parts.two_way
        )
        self._layers.to(device()).eval()
        reader = Reader(
            folder,
            parts.vision.to(device()).eval(),
            dtype,
            manifest.image_program,
            manifest.padding_mask,
            manifest.video_program,
        )
        with torch.no_grad():
            self._tokens = [
                self._layers.begin(**reader.feeds([reader.prepare(sample)], _UNPRUNED)) for sample in samples
            ]
        self._linear: dict[str, tuple[int, nn.Linear]] = {}
        modules = {id(module): name for name, module in model.named_modules()}
        for number, part in enumerate([*self._layers.text_model.layers, self._head]):
            for one in part.modules():
                if isinstance(one, nn.Linear):
                    self._linear[f"{modules[id(one)]}.weight"] = number, one
        self._at = -1
        self._moments: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, name: str, weight: torch.Tensor, form: BlockForm) -> Blocks:
        """A weight [N, K] in blocks.

        Args:
            name: of the parameter; those of earlier layers were asked for before.
            weight: its values.
            form: what it becomes. Floats are rounded to the nearest.
        """
        number, linear = self._linear[name]
        while self._at < number:
            self._advance()
        if VALUE_DTYPES[form.kind].is_floating_point:
            found = quantise(weight, form, self._scale)
        else:
            values, scale = quantise_gptq(
                weight.to(device()),
                self._moments[id(linear)],
                form.block,
                BITS[form.kind],
                lambda block: best_scale(block, form.kind, self._scale)[:, 0],
            )
            found = Blocks(values.cpu(), scale.to(self._scale).cpu())
        linear.weight = nn.Parameter(found.weight().to(device()), requires_grad=False)
        return found

    def _advance(self) -> None:
        """Goes on to the next layer, or to the head, and gathers what its linear layers read."""
        layers = self._layers.text_model.layers
        if self._at >= 0:
            for tokens in self._tokens:
                self._layers.go_on(self._at, tokens)
            layers[self._at] = nn.Identity()  # its weights are not needed any more
        self._at += 1
        self._moments = {}
        part = self._head if self._at == len(layers) else layers[self._at].float()
        hooks = [
            one.register_forward_pre_hook(self._gather)
            for one in part.modules()
            if isinstance(one, nn.Linear)
        ]
        for tokens in self._tokens:
            if self._at == len(layers):
                self._head(self._layers.text_model.norm(tokens.hidden))
            else:
                self._layers.see(self._at, tokens)
        for hook in hooks:
            hook.remove()

    def _gather(self, linear: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        read = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
        moment = read.T @ read
        known = self._moments.get(id(linear))
        self._moments[id(linear)] = moment if known is None else known.add_(moment)
