"""The child process that builds one engine, its job on stdin; `edgeprune.runtime.child` starts it.

TensorRT ends its process in some situations, and the system ends it where memory runs out; in a child neither
takes the caller along, its memory is given back as a whole, and its peak is that of one engine alone.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from edgeprune.memory import host_peak_memory
from edgeprune.progress import Progress
from edgeprune.runtime.backends.tensorrt import flavours
from edgeprune.runtime.backends.tensorrt.compile import Job, build_engine
from edgeprune.runtime.child import serve_job


def work(text: str, progress: Progress) -> dict[str, Any]:
    """Builds what a `Job` says; returns the process's peak memory."""
    job = Job.model_validate_json(text)
    flavour = flavours.flavour_by_name(job.flavour)
    trt = flavours.load(flavour, f"building engines for {flavour.title}")
    build_engine(trt, flavour, job, progress)
    return asdict(host_peak_memory())


if __name__ == "__main__":
    serve_job(work)
