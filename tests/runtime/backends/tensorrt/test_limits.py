"""Limits and the profiles that follow from them."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgeprune.errors import InputError
from edgeprune.image_program import PatchFeed
from edgeprune.image_sizes import FixedSize
from edgeprune.interface import vision_interface
from edgeprune.manifest import GraphSpec
from edgeprune.runtime.backends.tensorrt.limits import (
    TOPK_LIMIT,
    language_profiles,
    most_kept,
    resolve_limits,
    vision_profile,
)
from edgeprune.video_program import FrameSampling, VideoProgram
from edgeprune.vision_inputs import vision_inputs
from tests.programs import qwen
from tests.runtime.fakes import fake_manifest

MANIFEST = fake_manifest()  # 16 visual tokens an image
POSITIONS = MANIFEST.model.max_positions


def test_defaults_are_one_prompt_with_one_picture() -> None:
    limits = resolve_limits(MANIFEST)
    assert (limits.batch, limits.images) == (1, 1)
    assert limits.prompt == min(POSITIONS, 16 + 512)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_batch": 0}, "`max_batch` is 0: expected a whole number of at least 1"),
        ({"max_images": -1}, "`max_images` is -1"),
        ({"max_new_tokens": True}, "`max_new_tokens` is True"),
        ({"max_prompt": POSITIONS + 1}, f"the model has {POSITIONS} positions"),
        ({"max_prompt": 16}, "1 images are 16 visual tokens.*no room.*raise `max_prompt`"),
        ({"max_prompt": 40, "max_images": 3}, "3 images are 48 visual tokens"),
        ({"max_prompt": 40, "max_visual": 50}, "`max_visual` is 50 visual tokens.*no room.*lower"),
        ({"max_visual": -1}, "`max_visual` is -1"),
    ],
)
def test_limits_that_make_no_sense(options: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        resolve_limits(MANIFEST, **options)


def test_every_range_is_in_order_and_every_input_has_one() -> None:
    limits = resolve_limits(MANIFEST, 3, 64, 2, 20)
    for profile in language_profiles(MANIFEST, limits, False).values():
        assert profile.keys() == {spec.name for spec in MANIFEST.language.inputs}
        for name, (least, usual, most) in profile.items():
            assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True)), name


def test_profiles_span_prompts_with_and_without_pictures_and_all_steps() -> None:
    limits = resolve_limits(MANIFEST, 3, 64, 2, 20)
    profiles = language_profiles(MANIFEST, limits, False)
    prefill, decode = profiles["prefill"], profiles["decode"]
    assert (prefill["input_ids"].least, prefill["input_ids"].most) == ((1, 1), (3, 64))
    assert (prefill["visual_index"].least, prefill["visual_index"].most) == ((1, 0), (3, 32))
    assert prefill["past_key.0"].most == (0, 3, MANIFEST.model.kv_heads, MANIFEST.model.head_dim)
    assert decode["visual_index"].most == (3, 0)
    # The last of 20 new tokens is not read, and the one before has a past of 64 + 18; one more is room.
    assert decode["past_mask.0"].most == decode["past_mask.1"].most == (3, 83)
    # Pruned layers are tuned for the shorter past.
    assert decode["past_mask.1"].usual < decode["past_mask.0"].usual
    assert vision_profile(MANIFEST, limits)["pixel_values"].most[0] == 6


def test_visual_tokens_have_a_limit_of_their_own() -> None:
    assert resolve_limits(MANIFEST, max_images=2).visual == 32
    limits = resolve_limits(MANIFEST, max_images=2, max_visual=20)
    assert language_profiles(MANIFEST, limits, False)["prefill"]["visual_index"].most == (1, 20)
    program = qwen(2, 16, 4000)
    model = MANIFEST.model.model_copy(update={"max_positions": 8192})
    vision = vision_interface(MANIFEST.model, MANIFEST.precision, MANIFEST.plan, program)
    manifest = MANIFEST.model_copy(
        update={
            "image_program": program,
            "model": model,
            "vision": GraphSpec(file="vision.onnx", inputs=vision.inputs, outputs=()),
        }
    )
    limits = resolve_limits(manifest, max_batch=2, max_visual=100)
    profile = vision_profile(manifest, limits)
    assert profile["pixel_values"].most[0] == 200
    assert profile["block_slots"].most == (2, 100)


def test_videos_widen_what_images_need() -> None:
    video = VideoProgram(sampling=FrameSampling(frames=8), size=FixedSize(height=1, width=1), own_tower=True)
    manifest = MANIFEST.model_copy(update={"video_program": video})
    # 8 frames of 16 tokens and one in front of each.
    assert resolve_limits(manifest).visual == min(8 * 17, POSITIONS // 2)
    assert resolve_limits(manifest, max_images=0).visual == 0
    assert resolve_limits(manifest, max_visual=34).visual == 34


def test_no_past_is_longer_than_the_positions() -> None:
    limits = resolve_limits(MANIFEST, max_prompt=POSITIONS, max_new_tokens=1000)
    assert language_profiles(MANIFEST, limits, False)["decode"]["past_mask.0"].most == (1, POSITIONS)


def test_decode_sequence_is_not_fixed() -> None:
    """With a fixed 1, TensorRT for RTX 1.7 stores the joint weights twice; see `_decode_axes`."""
    limits = resolve_limits(MANIFEST)
    assert language_profiles(MANIFEST, limits, False)["decode"]["input_ids"].most == (1, 2)


def test_a_run_may_keep_any_number_up_to_all_of_them() -> None:
    limits = resolve_limits(MANIFEST, 3, 64, 2, 20)
    profiles = language_profiles(MANIFEST, limits, False)
    (usual,) = (counts.kept for counts in MANIFEST.plan.counts(16))
    assert profiles["prefill"]["kept_slots.0"] == ((1, 0), (1, usual), (1, 32))
    assert profiles["decode"]["kept_slots.0"] == ((1, 0), (1, 0), (1, 0))


def test_without_the_plugin_no_more_are_kept_than_topk_selects() -> None:
    roomy = MANIFEST.model_copy(
        update={"model": MANIFEST.model.model_copy(update={"max_positions": 1 << 20})}
    )
    limits = resolve_limits(roomy, max_images=TOPK_LIMIT // 16 + 2)
    assert most_kept(roomy, limits, plugin=False) == TOPK_LIMIT - 1
    assert most_kept(roomy, limits, plugin=True) == TOPK_LIMIT + 32
    prefill = language_profiles(roomy, limits, False)["prefill"]
    assert prefill["kept_slots.0"].most == (1, TOPK_LIMIT - 1)
    assert prefill["visual_index"].most == (1, TOPK_LIMIT + 32)


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 8))
@example(5, 939, 6)  # 235 x 1 tokens
def test_no_image_has_more_windows_than_the_profile_takes(width: int, height: int, window: int) -> None:
    width, height = min(width, 200 * height), min(height, 200 * width)
    program = qwen(2, 16, 4000, feed=PatchFeed(size=2, window=window))
    image = program.layout(width, height)
    manifest = MANIFEST.model_copy(
        update={
            "image_program": program,
            "model": MANIFEST.model.model_copy(update={"max_positions": 4096}),
            "vision": GraphSpec(
                file="vision.onnx",
                inputs=vision_interface(MANIFEST.model, MANIFEST.precision, MANIFEST.plan, program).inputs,
                outputs=(),
            ),
        }
    )
    profile = vision_profile(manifest, resolve_limits(manifest))
    for name, value in vision_inputs(program, [image]).items():
        least, _, most = profile[name]
        assert all(a <= b <= c for a, b, c in zip(least, value.shape, most, strict=True)), name
