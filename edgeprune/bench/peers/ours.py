"""The bundle itself, as it is measured beside others: on the CPU by ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgeprune.bench.peers.peer import Cost, Job, text_tokens, timed
from edgeprune.positions import prompt_positions
from edgeprune.runtime import load
from edgeprune.runtime.batching import PromptInputs


class Ours:
    """See `peer.Peer`. A context has the prompt's images in it where it is long enough, and is text alone
    otherwise.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._model = load(job.bundle, "onnxruntime", threads=job.threads)
        images = [np.load(path) for path in job.images]
        self._inputs = self._model.prepare(job.prompt, images)
        self._text = self._model.prepare("")

    def first_token(self) -> Cost | None:
        return self._prefill(self._inputs)[0]

    def prefill(self) -> Cost:
        return self._prefill(self._inputs)[1]

    def decode(self, context: int) -> Cost:
        job = self._job
        state = self._model.session.prefill([self._inputs_of(context)], job.plan)
        token = state.logits.argmax(axis=1)
        state.step(token)
        with timed() as clock:
            for _ in range(job.steps):
                state.step(token)
        return clock.found.over(job.steps)

    def _prefill(self, inputs: PromptInputs) -> tuple[Cost, Cost]:
        """Of vision and language, and of language alone."""
        with timed() as clock:
            state = self._model.session.prefill([inputs], self._job.plan)
        both = clock.found
        # Within one call only the wall clock is told apart; both parts use the threads alike.
        share = state.prefill_seconds / (state.prefill_seconds + state.vision_seconds)
        return both, Cost(wall=state.prefill_seconds, cpu=both.cpu * share)

    def _inputs_of(self, context: int) -> PromptInputs:
        """A prompt of exactly so many tokens."""
        manifest = self._model.manifest
        image = manifest.prompt.image_token_id
        whole = self._inputs if len(self._inputs.input_ids) <= context else self._text
        text = text_tokens(context, manifest.model.vocab_size, image)
        kept = whole.input_ids[:context]
        ids = np.concatenate([kept, text[len(kept) :]])
        positions = prompt_positions(manifest.positions, ids == image, whole.layout)
        found: PromptInputs = replace(whole, input_ids=ids, positions=positions)
        return found
