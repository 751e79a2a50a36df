"""What many tests need: bundles of the sample model, exported once per test process; Pillow's older order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

SAMPLE_MODEL = Path(__file__).resolve().parents[1] / "samples" / "tiny-llava"


@pytest.fixture(scope="session")
def sample_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model, FastV at keep 0.3. Tests must not change it: copy it first."""
    from edgeprune import export

    output = tmp_path_factory.mktemp("sample") / "bundle"
    return export(SAMPLE_MODEL, keep=0.3, curve="fastv", output=output, verify=False)


@pytest.fixture(scope="session")
def unpruned_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model without pruning, likewise."""
    from edgeprune import export

    folder = tmp_path_factory.mktemp("unpruned") / "bundle"
    return export(SAMPLE_MODEL, keep=1.0, method="none", output=folder, verify=False)


@pytest.fixture(scope="module")
def width_first() -> Iterator[None]:
    """Hugging Face's processors on a Pillow that resizes the width first, as all did until 12.3.

    From 13 on, Pillow takes the height first where that shrinks more, and with it they give other bytes.
    """
    resize = Image.Image.resize

    def in_order(self: Image.Image, size: Any, *arguments: Any, **options: Any) -> Image.Image:
        narrow = resize(self, (size[0], self.height), *arguments, **options)
        return resize(narrow, tuple(size), *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", in_order)
        yield
