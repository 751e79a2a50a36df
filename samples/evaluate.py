"""States the accuracy of a LLaVA folder on pictures it was not trained on.

    python samples/evaluate.py samples/tiny-llava

Every question is its own prompt, answered by transformers' greedy `generate`; an answer is right where the
decoded text is exactly the expected word.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script: make the package `samples` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from samples.scenes import HELD_OUT_SEEDS, TUNING_SEEDS, Question, prompt, scene

RANGES = {"held-out": HELD_OUT_SEEDS, "tuning": TUNING_SEEDS}


def measure(folder: Path, questions: int, seeds: range = HELD_OUT_SEEDS, batch: int = 48) -> tuple[int, int]:
    """Asks a model every question about the first pictures of a seed range.

    Args:
        folder: a Hugging Face LLaVA folder.
        questions: how many to ask at least; twelve belong to each picture.
        seeds: which pictures to draw.
        batch: prompts per forward pass.

    Returns:
        How many answers were right, and how many questions were asked.
    """
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    asked: list[tuple[Image.Image, Question]] = []
    for seed in seeds:
        if len(asked) >= questions:
            break
        drawn = scene(seed)
        asked += [(drawn.image, question) for question in drawn.questions]
    right = 0
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        inputs = processor(
            images=[image for image, _ in part],
            text=[prompt(question.text) for _, question in part],
            padding=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=4)
        texts = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(text.strip() == question.answer for text, (_, question) in zip(texts, part, strict=True))
    return right, len(asked)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Accuracy on held-out pictures, with its standard error.")
    parser.add_argument("folder", type=Path, help="a Hugging Face LLaVA folder")
    parser.add_argument(
        "--questions", type=int, default=6000, help="how many to ask at least (default: 6000)"
    )
    parser.add_argument("--seeds", choices=sorted(RANGES), default="held-out", help="which pictures to draw")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    options = parser.parse_args(arguments)
    if not (options.folder / "config.json").is_file():
        print(f"error: {options.folder} holds no config.json; expected a model folder", file=sys.stderr)
        return 1
    seeds = RANGES[options.seeds]
    for name, value, most in (
        ("--questions", options.questions, 12 * len(seeds)),
        ("--threads", options.threads, 64),
    ):
        if not 1 <= value <= most:
            print(f"error: {name} must be 1 to {most}, not {value}", file=sys.stderr)
            return 1

    import torch

    torch.set_num_threads(options.threads)
    right, asked = measure(options.folder, options.questions, seeds)
    share = right / asked
    error = math.sqrt(share * (1 - share) / asked)
    print(f"{right} of {asked} {options.seeds} questions right: {share:.2%} +- {error:.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
