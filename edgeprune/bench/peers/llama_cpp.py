"""llama.cpp, by the wheel xllamacpp, with a GGUF file of the language part.

Its caches are in its default type, half precision. The time of a step includes its sampler.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgeprune.bench.peers.gguf_file import write_gguf
from edgeprune.bench.peers.llama import Llama
from edgeprune.bench.peers.peer import Cost, Job, Weights, text_tokens, timed
from edgeprune.bundle import read_manifest
from edgeprune.errors import BackendError

_BATCH, _MICRO_BATCH = 2048, 512  # the program's own defaults


def convert(llama: Llama, model: Path, folder: Path, weights: Weights) -> Path:
    """Writes what the peer loads; returns the file."""
    folder.mkdir(parents=True)
    write_gguf(llama, folder / "language.gguf", weights)
    return folder / "language.gguf"


class LlamaCpp:
    """See `peer.Peer`."""

    def __init__(self, job: Job) -> None:
        import xllamacpp

        self._job = job
        self._manifest = read_manifest(job.bundle)
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(job.source)
        parameters.n_ctx = max(job.tokens, *job.contexts) + 2 * job.steps + 8
        parameters.n_parallel = 1
        parameters.n_batch, parameters.n_ubatch = _BATCH, _MICRO_BATCH
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = job.threads
        parameters.n_gpu_layers = 0
        parameters.warmup = False
        self._server = xllamacpp.Server(parameters)

    def first_token(self) -> Cost | None:
        return None

    def prefill(self) -> Cost:
        return self._complete(self._job.tokens, 1, reuse=False)

    def decode(self, context: int) -> Cost:
        # What the caches hold of the prompt is not read again, but for its last token.
        self._complete(context, 1, reuse=True)
        steps = self._job.steps
        return self._complete(context, steps + 1, reuse=True).over(steps + 1)

    def _complete(self, context: int, new: int, reuse: bool) -> Cost:
        info = self._manifest.model
        tokens = text_tokens(context, info.vocab_size, self._manifest.prompt.image_token_id)
        request = {
            "prompt": tokens.tolist(),
            "n_predict": new,
            "temperature": 0,
            "cache_prompt": reuse,
            "ignore_eos": True,
        }
        with timed() as clock:
            reply: Any = self._server.handle_completions(request)
        answer = json.loads(reply) if isinstance(reply, (str, bytes)) else reply
        if answer.get("timings", {}).get("predicted_n") != new:
            raise BackendError(f"llama.cpp did not generate {new} tokens: it answered {answer!r:.200}")
        return clock.found
