"""The child process that builds one engine, its job on stdin; `edgeprune.runtime.child` starts it.

TensorRT ends its process in some situations, and the system ends it where memory runs out; in a child neither
takes the caller along, its memory is given back as a whole, and its peak is that of one engine alone.

On stdout a JSON object a line: {"step", "total"}, {"advance"}, and last {"error"} or {"done"}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TextIO

from edgeprune.errors import EdgepruneError
from edgeprune.memory import host_peak_memory
from edgeprune.runtime.backends.tensorrt import flavours
from edgeprune.runtime.backends.tensorrt.compile import Job, build_engine
from edgeprune.runtime.child import take_stdout


class _Reporter:
    """Progress as lines for the parent."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def step(self, name: str, total: int | None = None) -> None:
        self.send(step=name, total=total)

    def advance(self, amount: int) -> None:
        self.send(advance=amount)

    def send(self, **message: object) -> None:
        try:
            print(json.dumps(message), file=self._file, flush=True)
        except BrokenPipeError:
            os._exit(1)  # the parent is gone; an exception would be lost inside TensorRT


def main() -> None:
    """Builds what stdin says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends this process
    reporter = _Reporter(take_stdout())
    job = Job.model_validate_json(sys.stdin.read())
    flavour = flavours.flavour_by_name(job.flavour)
    try:
        trt = flavours.load(flavour, f"building engines for {flavour.title}")
        build_engine(trt, flavour, job, reporter)
    except EdgepruneError as error:
        reporter.send(error=str(error))
        return
    memory = host_peak_memory()
    reporter.send(done=memory.bytes, metric=memory.metric)


if __name__ == "__main__":
    main()
