"""The process that measures one peer; `edgeprune.runtime.child` starts it, as it does `bench.worker`."""

from __future__ import annotations

import sys
from importlib import import_module

from edgeprune.bench.peers.peer import Job, Peer, Run, timed
from edgeprune.bench.worker import serve
from edgeprune.errors import BackendError, EdgepruneError
from edgeprune.memory import PeakMemory, host_peak_memory

# Name -> module, class, and what it is based on, whose import is no part of loading a model.
CLASSES = {
    "edgeprune": ("edgeprune.bench.peers.ours", "Ours", "onnxruntime"),
    "transformers": ("edgeprune.bench.peers.huggingface", "HuggingFace", "transformers"),
    "onnxruntime-genai": ("edgeprune.bench.peers.genai", "GenAI", "onnxruntime_genai"),
    "llama.cpp": ("edgeprune.bench.peers.llama_cpp", "LlamaCpp", "xllamacpp"),
}


class Worker:
    """Loads a peer and measures it run by run."""

    def __init__(self, job: Job) -> None:
        module, name, base = CLASSES[job.peer]
        import_module(base)
        kind = getattr(import_module(module), name)
        self._job = job
        with timed() as clock:
            self._peer: Peer = kind(job)
        self._load = clock.found
        self._memory: PeakMemory | None = None

    def run(self) -> Run:
        try:
            return self._run()
        except EdgepruneError:
            raise
        except Exception as error:  # whatever a peer has of its own
            reason = " ".join(str(error).split())
            raise BackendError(f"it failed with {type(error).__name__}: {reason}") from error

    def _run(self) -> Run:
        prefill = self._peer.prefill()
        if self._memory is None:
            self._memory = host_peak_memory()
        return Run(
            first_token=self._peer.first_token(),
            prefill=prefill,
            decode={context: self._peer.decode(context) for context in self._job.contexts},
            load=self._load,
            peak_memory_bytes=self._memory.bytes,
            peak_memory_metric=f"{self._memory.metric}, until the first prompt was read",
        )


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1], lambda text: Worker(Job.model_validate_json(text))))
