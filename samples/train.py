"""Trains the sample model from nothing.

    python samples/train.py -o samples/tiny-llava

Everything is drawn from fixed seeds and the number of steps is fixed; with one thread, the same machine and
the same versions give the same weights. The folder appears only once training is complete.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprune.errors import OutputError
from edgeprune.ownership import Kind
from edgeprune.replacing import writing_to

if __package__ in (None, ""):  # run as a script: make the package `samples` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Train the sample model on drawn pictures.")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder to write; a sample model there is replaced"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the initial weights and sketches (default: 0)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument(
        "--steps",
        type=int,
        nargs=3,
        metavar=("TOWER", "DECODER", "TOGETHER"),
        help="steps of the three stages (default: as in samples/stages.py)",
    )
    parser.add_argument(
        "--batch", type=int, help="rows per step in every stage (default: as in samples/stages.py)"
    )
    options = parser.parse_args(arguments)
    problem = _problem(options)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1

    import torch

    torch.set_num_threads(options.threads)
    began = time.perf_counter()
    try:
        with writing_to(options.output, force=True, kind=_SAMPLE_MODEL) as folder:
            _train(options, folder)
    except OutputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.output} after {(time.perf_counter() - began) / 60:.1f} minutes", flush=True)
    return 0


def _problem(options: argparse.Namespace) -> str | None:
    """What is wrong with the arguments, in one sentence."""
    if options.threads < 1:
        return f"--threads must be at least 1, not {options.threads}"
    if options.seed < 0:
        return f"--seed must not be negative, but is {options.seed}"
    if options.steps and min(options.steps) < 1:
        return f"every stage needs at least one step, not {min(options.steps)}"
    if options.batch is not None and options.batch < 1:
        return f"--batch must be at least 1, not {options.batch}"
    if not options.output.parent.is_dir():
        return f"{options.output.parent} is not a folder; create it first"
    return None


def _files_of(config: Mapping[str, Any]) -> list[str]:
    """What lies beside the config of a sample model; ValueError where it is another model's."""
    from samples.model import WIDTH

    if config["model_type"] != "llava" or config["text_config"]["hidden_size"] != WIDTH:
        raise ValueError(config["model_type"])
    return [
        "chat_template.jinja",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


_SAMPLE_MODEL = Kind("config.json", _files_of, "is no sample model", "choose another output")


def _train(options: argparse.Namespace, folder: Path) -> None:
    """All stages; writes the trained model to `folder`."""
    import numpy as np
    import transformers
    from transformers import LlavaForConditionalGeneration

    from samples import model as sample
    from samples import stages
    from samples.scenes import TUNING_SEEDS

    def log(line: str) -> None:
        print(line, flush=True)

    plans = [stages.TOWER, stages.DECODER, stages.TOGETHER]
    if options.steps:
        plans = [
            dataclasses.replace(plan, steps=steps) for plan, steps in zip(plans, options.steps, strict=True)
        ]
    if options.batch:
        plans = [dataclasses.replace(plan, batch=options.batch) for plan in plans]

    transformers.set_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    parts = sample.processor()
    model = LlavaForConditionalGeneration(sample.config(parts.tokenizer))
    log(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    pictures = stages.TrainingPictures()
    stages.train_tower(model, parts, plans[0], pictures, log)
    stages.train_decoder(model, parts, plans[1], rng, log)
    stages.train_together(model, parts, plans[2], pictures, rng, log)
    share, asked = stages.accuracy(model, parts, TUNING_SEEDS[:100])
    log(f"right on {share:.1%} of {asked} tuning questions")
    sample.save(model, parts, folder)


if __name__ == "__main__":
    sys.exit(main())
