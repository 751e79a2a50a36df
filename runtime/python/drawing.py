"""Pictures of kept and dropped visual tokens."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from edgeprune.manifest import Manifest
from edgeprune.runtime.images import Picture
from edgeprune.runtime.session import StageResult


def draw_kept(
    manifest: Manifest, images: Sequence[Picture], stage: StageResult, title: str | None = None
) -> Image.Image:
    """Kept and dropped tokens over the pictures as the model saw them, without and with debias side by side.

    Args:
        manifest: of the bundle.
        images: the prompt's pictures, as they were given to `Model.generate`.
        stage: one of `Reply.stages`.
        title: a line above; None for the plan's description.

    Returns:
        An RGB picture, one row per picture of the prompt.

    Raises:
        InputError: the pictures do not match the stage's visual tokens.
    """
    raise NotImplementedError
