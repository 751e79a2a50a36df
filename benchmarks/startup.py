"""How long the command line takes to answer: whole processes of `edgeprune --help` and `import edgeprune`.

    python benchmarks/startup.py

Prints one JSON object: wall-clock seconds of each, least, median and greatest of several runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

WAYS = {
    "edgeprune --help": ["-m", "edgeprune.cli.main", "--help"],
    "import edgeprune": ["-c", "import edgeprune"],
    "python alone": ["-c", "pass"],
}


def seconds(arguments: list[str]) -> float:
    """Of one process of this interpreter, from start to end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Start-up times of the command line.")
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args(arguments)
    found = {}
    for name, way in WAYS.items():
        taken = sorted(seconds(way) for _ in range(options.runs))
        found[name] = {"least": taken[0], "median": statistics.median(taken), "greatest": taken[-1]}
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
