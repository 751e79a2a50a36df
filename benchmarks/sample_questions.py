"""Questions about drawn images as a benchmark's files, for `edgeprune eval` and `edgeprune calibrate`.

    python benchmarks/sample_questions.py -o questions --questions 1200

Makes questions.jsonl (LLaVA's question file with the answer in each line, and the visual token that shows
what is asked about) and images/*.png. The images come from seeds that nothing was trained or tuned on, unless
--seeds says otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script: make the package `samples` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from samples.scenes import HELD_OUT_SEEDS, TUNING_SEEDS, scene

RANGES = {
    # `samples/evaluate.py` begins at the start of the held-out seeds.
    "held-out": HELD_OUT_SEEDS[30_000:60_000],
    "tuning": TUNING_SEEDS[30_000:],
}


def write(folder: Path, questions: int, seeds: range) -> int:
    """Writes at least so many questions; returns how many.

    Every image is asked about in all its ways, so that the last one is not cut short.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for seed in seeds:
        if len(lines) >= questions:
            break
        drawn = scene(seed)
        name = f"{seed}.png"
        drawn.image.save(folder / "images" / name)
        for number, (question, token) in enumerate(zip(drawn.questions, drawn.asked_tokens, strict=True)):
            entry = {
                "question_id": f"{seed}-{number}",
                "image": f"images/{name}",
                "text": question.text,
                "answer": question.answer,
                "category": question.text.split()[1],
                "asked_token": token,
            }
            lines.append(json.dumps(entry))
    (folder / "questions.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write questions about drawn images as benchmark files.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--questions", type=int, default=1200, help="how many at least (default: 1200)")
    parser.add_argument("--seeds", choices=sorted(RANGES), default="held-out", help="which images to draw")
    options = parser.parse_args(arguments)
    seeds = RANGES[options.seeds]
    if not 1 <= options.questions <= 12 * len(seeds):
        most = 12 * len(seeds)
        print(f"error: --questions must be 1 to {most}, not {options.questions}", file=sys.stderr)
        return 1
    written = write(options.output, options.questions, seeds)
    print(f"wrote {written} questions to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
