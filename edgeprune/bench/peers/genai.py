"""onnxruntime-genai, with a graph that its own builder makes of the language part."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.bench.peers.llama import Llama, write_llama
from edgeprune.bench.peers.peer import Cost, Job, Weights, text_tokens, timed
from edgeprune.bundle import read_manifest
from edgeprune.errors import BackendError
from edgeprune.files import write_text

_CONFIG = "genai_config.json"
_ROOM = 2  # tokens behind the steps that are measured


def convert(llama: Llama, model: Path, folder: Path, weights: Weights) -> Path:
    """Writes what the peer loads; returns its folder.

    Raises:
        BackendError: the builder failed.
    """
    plain, output = folder / "llama", folder / "genai"
    write_llama(llama, model, plain)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(plain), "-o", str(output)]
    command += ["-p", weights, "-e", "cpu", "-c", str(folder / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise BackendError(f"its builder ended with status {done.returncode}: {last}")
    return output


class GenAI:
    """See `peer.Peer`."""

    def __init__(self, job: Job) -> None:
        import onnxruntime_genai as og

        path = job.source / _CONFIG
        config = json.loads(path.read_text(encoding="utf-8"))
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = job.threads
        write_text(path, json.dumps(config))
        self._og, self._job = og, job
        self._manifest = read_manifest(job.bundle)
        self._model = og.Model(str(job.source))
        self._generators: dict[int, Any] = {}

    def first_token(self) -> Cost | None:
        return None

    def prefill(self) -> Cost:
        generator = self._generator(self._job.tokens)
        with timed() as clock:
            self._read(generator, self._job.tokens)
        return clock.found

    def decode(self, context: int) -> Cost:
        generator, steps = self._generators.get(context), self._job.steps
        if generator is None:
            generator = self._generators[context] = self._generator(context)
            self._read(generator, context)
        else:
            generator.rewind_to(context - 1)
            generator.append_tokens(self._text(context)[:, -1:])
        # The first token's logits are there; with the second one the steps begin.
        for _ in range(2):
            generator.generate_next_token()
        with timed() as clock:
            for _ in range(steps):
                generator.generate_next_token()
        return clock.found.over(steps)

    def _text(self, count: int) -> Any:
        manifest = self._manifest
        found = text_tokens(count, manifest.model.vocab_size, manifest.prompt.image_token_id)
        return found[None].astype(np.int32)

    def _generator(self, context: int) -> Any:
        parameters = self._og.GeneratorParams(self._model)
        length = context + self._job.steps + _ROOM + 1
        parameters.set_search_options(
            max_length=length, min_length=length, do_sample=False, past_present_share_buffer=True
        )
        return self._og.Generator(self._model, parameters)

    def _read(self, generator: Any, count: int) -> None:
        generator.append_tokens(self._text(count))
