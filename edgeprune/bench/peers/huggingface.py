"""transformers, as it runs the original model: eager PyTorch with its default attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, DynamicCache
from transformers.utils import logging

from edgeprune.bench.peers.peer import Cost, Job, text_tokens, timed
from edgeprune.bundle import read_manifest
from edgeprune.runtime.preparing import Preparation


class HuggingFace:
    """See `peer.Peer`."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        logging.disable_progress_bar()
        self._job = job
        self._model = AutoModelForImageTextToText.from_pretrained(
            job.source, dtype=torch.float32, local_files_only=True
        ).eval()
        self._config = self._model.config.get_text_config()
        self._manifest = read_manifest(job.bundle)
        self._caches: dict[int, Any] = {}

    @torch.no_grad()
    def first_token(self) -> Cost | None:
        manifest = self._manifest
        # Of other families the pixels go in with more than their values.
        if manifest.model.family != "llava":
            return None
        preparation = Preparation.of(self._job.bundle, manifest)
        inputs = preparation.prepare(self._job.prompt, [np.load(path) for path in self._job.images])
        ids, pixels = torch.from_numpy(inputs.input_ids)[None], torch.from_numpy(inputs.pixel_values)
        with timed() as clock:
            self._model(input_ids=ids, pixel_values=pixels, use_cache=True, logits_to_keep=1)
        return clock.found

    def prefill(self) -> Cost:
        with timed() as clock:
            self._read(self._job.tokens)
        return clock.found

    @torch.no_grad()
    def decode(self, context: int) -> Cost:
        if context not in self._caches:
            self._caches[context] = self._read(context)
        cache, steps = self._caches[context], self._job.steps
        if (extra := cache.get_seq_length() - context) > 0:
            cache.crop(-extra)
        token = torch.tensor([[int(self._text(1)[0, 0])]])

        def step() -> None:
            self._model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)

        step()
        with timed() as clock:
            for _ in range(steps):
                step()
        return clock.found.over(steps)

    def _text(self, count: int) -> torch.Tensor:
        image = self._manifest.prompt.image_token_id
        return torch.from_numpy(text_tokens(count, self._config.vocab_size, image))[None]

    @torch.no_grad()
    def _read(self, count: int) -> Any:
        cache = DynamicCache(config=self._config)
        self._model(input_ids=self._text(count), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache
