"""Prints constraints.txt for what is installed beside the interpreter that runs this."""

from __future__ import annotations

from importlib.metadata import Distribution, distributions

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

OLDEST = "3.10"
HEADER = f"""\
# The releases that edgeprune is tested with, direct and transitive, for `pip install -c constraints.txt`.
# `make constraints` writes this file again from what is installed in .venv: upgrade there, test, commit.
# A release that no longer installs on Python {OLDEST} is pinned for later Pythons only; there, {OLDEST} takes
# the newest that it can.
"""
# The project itself, what every virtual environment brings, and the extra `peers`, which few have.
LEFT_OUT = {"edgeprune", "pip", "setuptools", "wheel", "gguf", "onnxruntime-genai", "xllamacpp"}


def pin(distribution: Distribution) -> str:
    # A local version such as 2.13.0+cpu names a build that only one index has.
    line = f"{canonicalize_name(distribution.name)}=={Version(distribution.version).public}"
    needs = SpecifierSet(distribution.metadata.get("Requires-Python") or "")
    return line if OLDEST in needs or f"{OLDEST}.99" in needs else f'{line}; python_version > "{OLDEST}"'


if __name__ == "__main__":
    installed = {canonicalize_name(found.name): found for found in distributions()}
    lines = [pin(found) for name, found in sorted(installed.items()) if name not in LEFT_OUT]
    print(HEADER + "\n".join(lines))
