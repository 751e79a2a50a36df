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

PREFILL, DECODE, VISION = "prefill", "decode", "vision"

DEFAULT_NEW_TOKENS = 512
# Text around the images where no `max_prompt` is given, and in what the kernels are tuned for.
_DEFAULT_TEXT = 512
_USUAL_TEXT = 64

# The function body's TopK takes K + 1 values (a sentinel stands in front), and TensorRT's takes at most this.
TOPK_LIMIT = 3840


class Limits(Part):
    """The largest inputs an engine takes, per run: prompts of a batch, and per prompt its tokens (visual ones
    included), its images and the tokens generated after it.
    """

    batch: Tokens
    prompt: Tokens
    images: Count
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
) -> Limits:
    """Fills in what is not given: one prompt with one image and some text, as far as positions go.

    Raises:
        InputError: a number is too small, does not fit the model, or they contradict each other.
    """
    positions = manifest.model.max_positions
    images = _whole("max_images", max_images, 1, 0)
    visual = manifest.most_visual_tokens(images)
    prompt = _whole("max_prompt", max_prompt, min(positions, visual + _DEFAULT_TEXT), 1)
    if prompt > positions:
        raise InputError(
            f"`max_prompt` is {prompt}, and the model has {positions} positions: give at most that"
        )
    if visual >= prompt:
        raise InputError(
            f"{images} images are {visual} visual tokens, and a prompt of at most {prompt} tokens has no "
            f"room for them and a question: raise `max_prompt` (up to {positions}) or lower `max_images`"
        )
    return Limits(
        batch=_whole("max_batch", max_batch, 1, 1),
        prompt=prompt,
        images=images,
        new_tokens=_whole("max_new_tokens", max_new_tokens, DEFAULT_NEW_TOKENS, 1),
    )


def _whole(option: str, value: int | None, default: int, least: int) -> int:
    if value is None:
        return default
    check_count(option, value, least)
    return value


def most_kept(manifest: Manifest, limits: Limits, plugin: bool) -> int:
    """The most visual tokens that a stage can keep: all, unless the function body's TopK takes fewer."""
    visual = manifest.most_visual_tokens(limits.images)
    return visual if plugin else min(visual, TOPK_LIMIT - 1)


def language_profiles(manifest: Manifest, limits: Limits, plugin: bool) -> dict[str, Profile]:
    """The two profiles of the language engine: whole prompts without a past, and single tokens with one.

    Args:
        plugin: whether the plugin prunes, which can keep any number of tokens.
    """
    return {
        PREFILL: _profile(manifest.language, _prefill_axes(manifest, limits, plugin)),
        DECODE: _profile(manifest.language, _decode_axes(manifest, limits)),
    }


def vision_profile(manifest: Manifest, limits: Limits) -> Profile:
    """The profile of the vision engine: the tiles, or the squares of patches, of one batch's images."""
    program, images = manifest.image_program, max(1, limits.images) * limits.batch
    each, tokens = program.most_of_prompt(1)
    most, most_tokens = program.most_of_prompt(max(1, limits.images))
    axes: _Axes = {
        "tiles": (1, each, most * limits.batch),
        "visual": (1, tokens, most_tokens * limits.batch),
    }
    if isinstance(program.feed, PatchFeed):
        windows = _most_windows(each, program.feed.window or 1)
        axes |= {
            "blocks": (1, 1, images),
            "slots": (1, each, each),
            "windows": (1, windows, images * windows),
        }
    return _profile(manifest.vision, axes)


def _most_windows(tokens: int, window: int) -> int:
    """The most windows of an image: along each edge one may be of fewer tokens than the others.

    rows + columns is the greatest in the most elongated image; rounding to whole tokens makes a grid at most
    1.5 times as long and 1.5 times as narrow as the image, cutting off at most half as wide.
    """
    elongated = math.sqrt(1.5**2 * MOST_ELONGATED)
    edges = math.sqrt(tokens) * (elongated + 1 / elongated)
    ragged = tokens + (window - 1) * edges + (window - 1) ** 2
    return min(tokens, math.ceil(ragged / window**2))


_Axes: TypeAlias = "dict[str, tuple[int, int, int]]"


def _prefill_axes(manifest: Manifest, limits: Limits, plugin: bool) -> _Axes:
    usual, visual = _usual_prompt(manifest, limits)
    most = manifest.most_visual_tokens(limits.images)
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
    visual = min(1, limits.images) * manifest.most_image_tokens
    return min(limits.prompt, visual + _USUAL_TEXT), visual


def _profile(graph: GraphSpec, axes: _Axes) -> Profile:
    def corner(shape: tuple[int | str, ...], which: int) -> tuple[int, ...]:
        return tuple(axis if isinstance(axis, int) else axes[axis][which] for axis in shape)

    return {
        spec.name: Range(corner(spec.shape, 0), corner(spec.shape, 1), corner(spec.shape, 2))
        for spec in graph.inputs
    }
