"""Whether images give the same bytes under several releases of Pillow.

    python -m benchmarks.pillow_versions [VERSION ...]

Installs each release from PyPI into a folder of its own, puts that in front of the installed one, and runs
the tests of recorded bytes, of reading images and of padding masks with it. Exits with 1 where one fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile

VERSIONS = ("10.4.0", "11.3.0", "12.3.0", "13.0.0")
TESTS = (
    "tests/runtime/test_resizing.py",
    "tests/runtime/test_images.py",
    "tests/edgeprune/debias/test_masks.py",
)


def run(version: str) -> tuple[bool, str]:
    """Runs the tests under this release: (whether all passed, pytest's last lines)."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", folder, f"pillow=={version}"], check=True)
        environment = {**os.environ, "PYTHONPATH": folder}
        used = subprocess.run(
            [sys.executable, "-c", "import PIL; print(PIL.__version__)"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        if used.stdout.strip() != version:
            return False, f"Pillow {used.stdout.strip()} was imported instead"
        tests = [sys.executable, "-m", "pytest", "-q", "-n", "0", *TESTS]
        found = subprocess.run(tests, env=environment, capture_output=True, text=True)
    failed = [line for line in found.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return found.returncode == 0, "\n".join(failed) or found.stdout[-300:]


def main(arguments: list[str] | None = None) -> int:
    """Prints one line per release."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    results = {version: run(version) for version in parser.parse_args(arguments).versions}
    for version, (passed, output) in results.items():
        print(f"Pillow {version}: {'the same' if passed else 'different'}")
        if not passed:
            print(output)
    return 0 if all(passed for passed, _ in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
