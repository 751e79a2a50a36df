"""The picture of kept and dropped tokens, as `run` and `inspect` write it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.cli.output import check_picture_path, save_picture
from edgeprune.errors import InputError

if TYPE_CHECKING:
    from edgeprune.manifest import Manifest
    from edgeprune.runtime import Reply


def check_drawable(manifest: Manifest, images: Sequence[str], path: Path) -> None:
    """Refuses a picture of kept tokens before the model is loaded for it.

    Raises:
        InputError: there is nothing to draw, or the path is not a picture's.
        OutputError: the path cannot be written to.
    """
    if not manifest.plan.prunes:
        raise InputError(
            f"the bundle's language model drops nothing ({manifest.plan.describe()}), so there is nothing to "
            "draw: export one with a selection in the decoder that keeps less than reaches it"
        )
    if not images:
        raise InputError("there is no picture to draw the kept tokens on: give one with --image")
    check_picture_path(path)


def draw_reply(manifest: Manifest, images: Sequence[str], reply: Reply, path: Path) -> None:
    """Draws the first pruning stage, the one that debiasing acts on."""
    from edgeprune.runtime.drawing import draw_kept

    save_picture(draw_kept(manifest, images, reply.stages[0]), path)
