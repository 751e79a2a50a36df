"""Bundles of the sample model, exported once per test process and shared by all that need a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

SAMPLE_MODEL = Path(__file__).resolve().parents[1] / "samples" / "tiny-llava"


@pytest.fixture(scope="session")
def sample_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model, FastV at keep 0.3. Tests must not change it: copy it first."""
    from edgeprune.export.pipeline import export

    output = tmp_path_factory.mktemp("sample") / "bundle"
    return export(SAMPLE_MODEL, keep=0.3, curve="fastv", output=output, verify=False)


@pytest.fixture(scope="session")
def unpruned_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model without pruning, likewise."""
    from edgeprune.export.pipeline import export

    folder = tmp_path_factory.mktemp("unpruned") / "bundle"
    return export(SAMPLE_MODEL, keep=1.0, method="none", output=folder, verify=False)
