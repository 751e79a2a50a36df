"""How large the inputs of an engine may be, and the optimization profiles that follow from it."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

from edgeprune.checks import check_count
from edgeprune.errors import InputError
from edgeprune.fields import Count, Part, Tokens
from edgeprune.image_program import PatchFeed
from edgeprune.image_sizes import MOST_ELONGATED
from edgeprune.interface import kept_axis, past_axis
from edgeprune.manifest import GraphSpec, Manifest
from edgeprune.runtime.backends.tensorrt.token_major import token_major

PREFILL, DECODE, VISION = "prefill", "decode", "vision"

DEFAULT_NEW_TOKENS = 512
# Text around the images where no `max_prompt` is given, and in what the kernels are tuned for.
_DEFAULT_TEXT = 512
_USUAL_TEXT = 64

# The function body's TopK takes K + 1 values (a sentinel stands in front), and TensorRT's takes at most this.
TOPK_LIMIT = 3840


class Limits(Part):
    """The largest inputs an engine takes, per run: prompts of a batch, and per prompt its tokens (visual ones
    included), its images, its visual tokens (those of images and videos together), and the tokens generated
    after it.
    """

    batch: Tokens
    prompt: Tokens
    images: Count
    visual: Count
    new_tokens: Tokens


class Range(NamedTuple):
    """The shapes of one input that a profile allows, and the one it is tuned for."""

    least: tuple[int, ...]
    usual: tuple[int, ...]
    most: tuple[int, ...]


Profile: TypeAlias = "dict[str, Range]"
"""Ranges by the inputs' names."""


def resolve_limits(
    manifest: Manifest,
    max_batch: int | None = None,
    max_prompt: int | None = None,
    max_images: int | None = None,
    max_new_tokens: int | None = None,
    max_visual: int | None = None,
) -> Limits:
    """Fills in what is not given: one prompt with one image and some text, as far as positions go; or with
    a usual video, where that has more visual tokens.

    Raises:
        InputError: a number is too small, does not fit the model, or they contradict each other.
    """
    positions = manifest.model.max_positions
    images = _whole("max_images", max_images, 1, 0)
    visual = _whole("max_visual", max_visual, default_visual(manifest, images), 0)
    prompt = _whole("max_prompt", max_prompt, min(positions, visual + _DEFAULT_TEXT), 1)
    if prompt > positions:
        raise InputError(
            f"`max_prompt` is {prompt}, and the model has {positions} positions: give at most that"
        )
    if visual >= prompt:
        told = f"{images} images are {visual}" if max_visual is None else f"`max_visual` is {visual}"
        raise InputError(
            f"{told} visual tokens, and a prompt of at most {prompt} tokens has no room for them and a "
            f"question: raise `max_prompt` (up to {positions}), or lower `max_images` or `max_visual`"
        )
    return Limits(
        batch=_whole("max_batch", max_batch, 1, 1),
        prompt=prompt,
        images=images,
        visual=visual,
        new_tokens=_whole("max_new_tokens", max_new_tokens, DEFAULT_NEW_TOKENS, 1),
    )


def default_visual(manifest: Manifest, images: int) -> int:
    """Visual tokens of so many images of any size, or of a usual video where that has more and leaves half of
    the model's positions.
    """
    video = manifest.video_program
    usual = 0 if video is None or not images else video.most_tokens(manifest.image_program)
    return max(manifest.most_visual_tokens(images), min(usual, manifest.model.max_positions // 2))


def _whole(option: str, value: int | None, default: int, least: int) -> int:
    if value is None:
        return default
    check_count(option, value, least)
    return value


def most_kept(manifest: Manifest, limits: Limits, plugin: bool) -> int:
    """The most visual tokens that a stage can keep: all, unless the function body's TopK takes fewer."""
    return limits.visual if plugin else min(limits.visual, TOPK_LIMIT - 1)


def language_profiles(manifest: Manifest, limits: Limits, plugin: bool) -> dict[str, Profile]:
    """The two profiles of the language engine: whole prompts without a past, and single tokens with one.

    Args:
        plugin: whether the plugin prunes, which can keep any number of tokens.
    """
    graph = token_major(manifest.language)
    return {
        PREFILL: _profile(graph, _prefill_axes(manifest, limits, plugin)),
        DECODE: _profile(graph, _decode_axes(manifest, limits)),
    }


def vision_profile(manifest: Manifest, limits: Limits) -> Profile:
    """The profile of the vision engine: the tiles, or the squares of patches, of one batch's images and
    videos.
    """
    program, video, batch = manifest.image_program, manifest.video_program, limits.batch
    visual = max(1, limits.visual)
    tiles = program.most_of_prompt(max(1, limits.images))[0]
    usual_tiles, usual = program.most_of_prompt(1)
    if isinstance(program.feed, PatchFeed):
        each = min(usual, visual)
        # An image, or some frames of a video.
        together = 0 if video is None else -(-video.sampling.most // program.feed.frames)
        blocks = min(visual, max(1, limits.images) + together) * batch
        window = program.feed.window or 1
        axes: _Axes = {
            "visual": (1, each, visual * batch),
            "blocks": (1, 1, blocks),
            "slots": (1, each, each),
            "windows": (
                1,
                _most_windows(each, window, 1),
                _most_windows(visual * batch, window, blocks),
            ),
        }
        return _profile(manifest.vision, axes)
    frames = 1 if video is None else max(1, -(-visual // video.frame_tokens(program)))
    if video is not None and not video.own_tower:
        tiles = max(tiles, frames)
    axes = {
        "tiles": (1, min(usual_tiles, tiles), tiles * batch),
        "visual": (1, min(usual, visual), visual * batch),
        "frames": (1, frames, frames * batch),
    }
    return _profile(manifest.vision, axes)


def _most_windows(tokens: int, window: int, blocks: int) -> int:
    """The most windows of so many blocks: along each edge one may be of fewer tokens than the others.

    rows + columns is the greatest in the most elongated image; rounding to whole tokens makes a grid at most
    1.5 times as long and 1.5 times as narrow as the image, cutting off at most half as wide. Of several
    blocks with so many tokens together, the sum of all edges is the greatest where they are alike.
    """
    elongated = math.sqrt(1.5**2 * MOST_ELONGATED)
    edges = math.sqrt(tokens * blocks) * (elongated + 1 / elongated)
    ragged = tokens + (window - 1) * edges + blocks * (window - 1) ** 2
    return min(tokens, math.ceil(ragged / window**2))


_Axes: TypeAlias = "dict[str, tuple[int, int, int]]"


def _prefill_axes(manifest: Manifest, limits: Limits, plugin: bool) -> _Axes:
    usual, visual = _usual_prompt(manifest, limits)
    most = limits.visual
    kept = most_kept(manifest, limits, plugin)
    return {
        # Every number up to all of them: how many are kept is a choice of each run.
        **{
            kept_axis(stage): (0, min(counts.kept, kept), kept)
            for stage, counts in enumerate(manifest.plan.counts(visual))
        },
        "batch": (1, 1, limits.batch),
        "sequence": (1, usual, limits.prompt),
        "visual": (0, visual, most),  # a prompt may come without images
        **{past_axis(group): (0, 0, 0) for group in range(len(manifest.cache_groups))},
    }


def _decode_axes(manifest: Manifest, limits: Limits) -> _Axes:
    usual, visual = _usual_prompt(manifest, limits)
    # The last token that is generated is never read; and no past is longer than the positions.
    most = min(limits.prompt + limits.new_tokens - 1, manifest.model.max_positions)
    axes: _Axes = {
        "batch": (1, 1, limits.batch),
        # One token is all that ever comes. A fixed 1, though, makes TensorRT lay out the joint weights of q,
        # k, v and of gate, up a second time for it, and costs half as much engine and memory again.
        "sequence": (1, 1, 2),
        "visual": (0, 0, 0),
        **{kept_axis(stage): (0, 0, 0) for stage in range(len(manifest.plan.stages))},
    }
    dropped = 0
    for group in range(len(manifest.cache_groups)):
        if group:
            after = manifest.plan.stages[group - 1].counts(visual).after
            dropped, visual = dropped + visual - after, after
        middle = max(1, usual - dropped) + limits.new_tokens // 2
        # At most the whole prompt, in every group: without images nothing is dropped.
        axes[past_axis(group)] = (1, min(middle, most), most)
    return axes


def _usual_prompt(manifest: Manifest, limits: Limits) -> tuple[int, int]:
    """Tokens and visual tokens of the prompt that kernels are tuned for: one image and a question."""
    visual = min(limits.visual, manifest.most_image_tokens)
    return min(limits.prompt, visual + _USUAL_TEXT), visual


def _profile(graph: GraphSpec, axes: _Axes) -> Profile:
    def corner(shape: tuple[int | str, ...], which: int) -> tuple[int, ...]:
        return tuple(axis if isinstance(axis, int) else axes[axis][which] for axis in shape)

    return {
        spec.name: Range(corner(spec.shape, 0), corner(spec.shape, 1), corner(spec.shape, 2))
        for spec in graph.inputs
    }
