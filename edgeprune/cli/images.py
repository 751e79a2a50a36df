"""Images on the command line: those of a folder, and the drawing of kept and dropped tokens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.cli.output import check_image_path, save_image
from edgeprune.errors import InputError
from edgeprune.files import refuse_same

if TYPE_CHECKING:
    from edgeprune.manifest import Manifest
    from edgeprune.runtime import Reply


def images_of(folder: Path) -> list[Path]:
    """The images of a folder by name; other files, and folders in it, are passed over.

    Raises:
        InputError: it is no folder, or has none.
    """
    from edgeprune.questions.llava import IMAGE_ENDINGS

    if not os.path.isdir(folder):
        raise InputError(f"{folder} is not a folder: expected one with images; give one file with --image")
    found = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in IMAGE_ENDINGS and path.is_file()
    )
    if not found:
        raise InputError(f"{folder} has no images: expected files that end in {', '.join(IMAGE_ENDINGS)}")
    return found


def check_drawable(manifest: Manifest, images: Sequence[str], path: Path) -> None:
    """Refuses a drawing of kept tokens before the model is loaded for it.

    Raises:
        InputError: there is nothing to draw, the path is not an image's, or is one of the images.
        OutputError: the path cannot be written to.
    """
    if not manifest.plan.prunes:
        raise InputError(
            f"the bundle's language model drops nothing ({manifest.plan.describe()}), so there is nothing to "
            "draw: export one with a stage in the decoder that keeps less than reaches it"
        )
    if not images:
        raise InputError("there is no image to draw the kept tokens on: give one with --image")
    check_image_path(path)
    refuse_same([path], images)


def draw_reply(manifest: Manifest, images: Sequence[str], reply: Reply, path: Path) -> None:
    """Draws the first pruning stage, the one that debiasing acts on."""
    from edgeprune.runtime.drawing import draw_kept

    save_image(draw_kept(manifest, images, reply.stages[0], reply.plan.describe()), path)
