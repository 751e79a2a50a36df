"""Throws altered inputs of every kind at the code that reads them.

    python -m benchmarks.fuzz [TARGET ...] [--runs 2000] [--seed 0]

Every input is valid, or was valid before it was altered; a seed gives the same inputs again. An input is
accepted, or refused with an EdgepruneError whose message can be printed. Anything else is a fault, and is
printed with the number of the run that repeats it; so is a run that takes longer than it may. Exits with 1
where there is one.

A new target is a function that makes and tries one input, in `TARGETS`.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence

from benchmarks import fuzz_files as files
from benchmarks import fuzz_inputs as inputs
from edgeprune.errors import EdgepruneError
from edgeprune.log import LOGGER
from edgeprune.runtime.templates import MAX_SECONDS

# Beside what templates may take themselves.
SLOW_SECONDS = MAX_SECONDS + 5
Target = Callable[[random.Random], object]

TARGETS: dict[str, Target] = {
    "images": inputs.try_image,
    "videos": inputs.try_video,
    "prompts": inputs.try_prompt,
    "templates": inputs.try_template,
    "tokenizers": inputs.try_tokenizer,
    "manifests": files.try_manifest,
    "graphs": files.try_graph,
    "checkpoints": files.try_checkpoint,
    "curves": files.try_curve,
    "questions": files.try_questions,
    "predictions": files.try_predictions,
}


def run(target: str, runs: int, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Tries a target: how often each outcome came ("accepted", "refused", "fault"), and the faults."""
    counts: Counter[str] = Counter({"accepted": 0, "refused": 0, "fault": 0})
    faults = []
    for number in range(runs):
        outcome = "accepted"
        started = time.monotonic()
        try:
            TARGETS[target](random.Random(f"{target} {seed} {number}"))
        except EdgepruneError as error:
            outcome = "refused"
            # Escape sequences reach the terminal; the command line joins lines.
            if not " ".join(str(error).split()).isprintable():
                outcome = "fault"
                faults.append(f"{target}, seed {seed}, run {number}: unprintable: {error!r:.300}")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # panics of libraries are no Exception
            outcome = "fault"
            faults.append(f"{target}, seed {seed}, run {number}:\n{traceback.format_exc()}")
        if time.monotonic() - started > SLOW_SECONDS:
            outcome = "fault"
            faults.append(f"{target}, seed {seed}, run {number}: it took more than {SLOW_SECONDS:g} seconds")
        counts[outcome] += 1
    return counts, faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one row per target, then the faults."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    unknown = set(options.targets) - TARGETS.keys()
    if unknown:
        parser.error(f"unknown target {min(unknown)}: choose of {', '.join(TARGETS)}")
    logging.getLogger(LOGGER).addHandler(logging.NullHandler())
    every = []
    print("| target | runs | accepted | refused | faults | seconds |\n|---|---|---|---|---|---|")
    for target in options.targets or TARGETS:
        started = time.monotonic()
        counts, faults = run(target, options.runs, options.seed)
        row = (options.runs, counts["accepted"], counts["refused"], counts["fault"])
        print(f"| {target} | {' | '.join(map(str, row))} | {time.monotonic() - started:.0f} |", flush=True)
        every += faults
    print("\n".join(every[:20]))
    return 1 if every else 0


if __name__ == "__main__":
    sys.exit(main())
