"""The manifest's schema."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edgeprune.debias.curves import ExponentialCurve, FittedTo
from edgeprune.debias.masks import PaddingMask
from edgeprune.fields import first_fault
from edgeprune.image_program import GridTokens, ImageText, PixelValues
from edgeprune.manifest import (
    SCHEMA_VERSION,
    CacheGroup,
    Check,
    FileEntry,
    Manifest,
    Verification,
    failures,
)
from edgeprune.plans import PruningPlan, PruningStage, TowerStage
from tests.hostile import Place, places, with_value, wrong_values
from tests.manifests import make_manifest
from tests.programs import internvl


def test_a_manifest_survives_json() -> None:
    manifest = make_manifest()
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert manifest.schema_version == SCHEMA_VERSION


def test_tokens_of_an_image_and_places_of_the_curve_follow_from_the_image_program() -> None:
    whole = make_manifest()
    assert (whole.tokens_per_tile, whole.image_tokens, whole.most_image_tokens) == (16, 16, 16)
    assert whole.curve_places == 16
    assert make_manifest(debias="").curve_places == 0
    tiled = internvl(side=24, most=4, tokens=GridTokens(rows=4, columns=4), text=ImageText())
    curve = ExponentialCurve(b=0.01, num_tokens=50)
    several = make_manifest(debias="position", image_program=tiled, curve=curve)
    assert (several.tokens_per_tile, several.image_tokens, several.most_image_tokens) == (16, None, 80)
    assert several.curve_places == 50
    merging = make_manifest("illava", debias="")
    left = merging.plan.tower[-1].kept
    assert (merging.tokens_per_tile, merging.image_tokens) == (left, left)


def test_what_an_image_program_does_not_do_is_not_claimed() -> None:
    tiled = internvl(side=24, most=4, tokens=GridTokens(rows=4, columns=4), text=ImageText(prefix="<image>"))
    with pytest.raises(ValidationError, match="text holds the image token <image>"):
        make_manifest(debias="", image_program=tiled)
    stretched = tiled.model_copy(update={"text": ImageText()})
    with pytest.raises(ValidationError, match="there is a padding mask, and the image program never pads"):
        make_manifest(debias="", image_program=stretched, padding_mask=PaddingMask(kind="share"))


def test_one_cache_group_without_stages_and_one_more_for_each() -> None:
    assert make_manifest("none").cache_groups == (CacheGroup(first=0, last=3),)
    assert make_manifest().cache_groups == (CacheGroup(first=0, last=1), CacheGroup(first=2, last=3))


@pytest.mark.parametrize(
    "groups", [[], [(0, 3)], [(0, 1), (2, 4)], [(0, 0), (1, 3)], [(0, 1), (3, 3)], [(0, 1), (1, 3)]]
)
def test_cache_groups_that_do_not_follow_the_plan_are_refused(groups: list[tuple[int, int]]) -> None:
    with pytest.raises(ValidationError, match=r"do not fit 4 layers pruned before \[2\]"):
        make_manifest(cache_groups=[CacheGroup(first=first, last=last) for first, last in groups])


def test_a_stage_behind_the_last_layer_is_refused() -> None:
    plan = PruningPlan(method="fastv", stages=(PruningStage(layer=4, score_layer=3, keep=3000),))
    groups = [CacheGroup(first=0, last=3), CacheGroup(first=4, last=3)]
    with pytest.raises(ValidationError, match="do not fit 4 layers"):
        make_manifest(plan=plan, cache_groups=groups, curve=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"curve": None}, "there is no bias curve, and the plan is fastv"),
        ({"method": "none", "curve": ExponentialCurve(b=0.01, num_tokens=16)}, "there is a bias curve"),
        ({"padding_mask": PaddingMask(kind="none")}, "there is no padding mask, and the plan is fastv"),
    ],
)
def test_a_plan_is_debiased_by_what_there_is(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_manifest(**changes)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("model", "layers", 0),
        ("model", "head_dim", -8),
        ("precision", "compute", "int4"),
        ("precision", "weights", "int4"),
        ("precision", "block", 128),
        ("image_program", "crop", (24, -1)),
        ("image_program", "surprise", 0),
        ("padding_mask", "kind", "guess"),
        ("padding_mask", "threshold", -0.1),
        ("prompt", "surprise", 1),
    ],
)
def test_a_value_that_cannot_be_is_refused(part: str, field: str, value: Any) -> None:
    raw = make_manifest().model_dump()
    raw[part][field] = value
    with pytest.raises(ValidationError, match=field):
        Manifest.model_validate(raw)


@pytest.mark.parametrize("sha256", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64])
def test_a_hash_is_64_lower_case_hex_digits(sha256: str) -> None:
    with pytest.raises(ValidationError, match="sha256"):
        FileEntry(path="x", bytes=0, sha256=sha256)


def test_a_manifest_does_not_change() -> None:
    with pytest.raises(ValidationError):
        make_manifest().opset = 20


def test_figures_beyond_their_limits_are_named_and_nan_is_beyond() -> None:
    good = Check(name="logits", value=1e-5, limit=1e-4)
    edge = Check(name="kept", value=0.0, limit=0.0)
    bad = Check(name="score", value=0.25, limit=1e-5)
    nothing = Check(name="decode", value=math.nan, limit=1.0)
    assert good.holds
    assert edge.holds
    assert failures([good, edge]) == ""
    assert failures([good, bad, nothing]) == "score 0.25 (limit 1e-05); decode nan (limit 1)"


def test_an_unverified_bundle_says_so() -> None:
    raw = make_manifest().model_dump()
    del raw["verification"]
    assert Manifest.model_validate(raw).verification == Verification(skipped="not run")


# Every value that stands anywhere in a manifest, whatever fields are added to it.

METHODS_SHOWN = ("fastv", "illava", "none")
# Floats that only people read.
_FREE = {("verification", "checks", 0, "value"), ("verification", "checks", 0, "limit")}


def full_manifest(method: str = "fastv") -> dict[str, Any]:
    """A manifest in JSON that leaves no field empty that can be filled."""
    base = make_manifest(method)
    prompt = base.prompt.model_copy(
        update={"bos_token": "<s>", "eos_token": "</s>", "template_variables": {"unk_token": "<unk>"}}
    )
    pixels = PixelValues(mean=(0.5,) * 3, std=(0.5,) * 3)
    program = base.image_program.model_copy(update={"crop": (24, 24), "pixels": pixels})
    fitted = FittedTo(model="m", weights="0", method=method, layer=2, grid=(4, 4), images=3)
    curve = ExponentialCurve(b=0.01, num_tokens=16, source="here", fitted_to=fitted)
    parts = {"prompt": prompt, "image_program": program, "curve": base.curve and curve}
    changed = base.model_copy(update=parts)
    raw: dict[str, Any] = json.loads(changed.model_dump_json())
    return raw


def refused(raw: dict[str, Any]) -> str | None:
    """The first fault of a manifest."""
    try:
        Manifest.model_validate(raw)
    except ValidationError as error:
        return first_fault(error)
    return None


@pytest.mark.parametrize("method", METHODS_SHOWN)
def test_no_value_of_a_manifest_can_be_anything(method: str) -> None:
    raw = full_manifest(method)
    assert Manifest.model_validate(raw)
    tried = 0
    for place, value in places(raw):
        for wrong in wrong_values(value):
            if place in _FREE and isinstance(wrong, float):
                continue
            assert refused(with_value(raw, place, wrong)), f"{place} may be {wrong!r:.40}"
            tried += 1
    assert tried > 500


def test_line_breaks_stand_in_tokens_alone() -> None:
    raw = full_manifest()
    for place, value in places(raw):
        if not isinstance(value, str):
            continue
        allowed = place[0] == "prompt" and place[1] not in ("tokenizer", "chat_template")
        allowed = allowed or place[:2] == ("image_program", "text")
        assert (refused(with_value(raw, place, f"{value}\n")) is None) == allowed, place


CONTRADICTIONS: dict[str, tuple[Place, Any, str]] = {
    "image token": (("prompt", "image_token_id"), 64, r"image_token_id 64 is beyond the vocabulary of 64"),
    "padding token": (("prompt", "pad_token_id"), 64, r"pad_token_id 64 is beyond"),
    "end token": (("prompt", "eos_token_ids"), [2, 64], r"eos_token_ids 64 is beyond"),
    "no end token": (("prompt", "eos_token_ids"), [], r"eos_token_ids"),
    "no logits": (("language", "outputs", 0, "name"), "x", r"language graph has no output logits"),
    "a cache too few": (("language", "outputs"), -1, r"language graph has no output present_value\.3"),
    "no outputs": (("language", "outputs"), [], r"language graph has no output logits"),
    "no inputs": (("vision", "inputs"), [], r"vision graph has no input pixel_values"),
    "twice": (("vision", "outputs"), 2, r"vision graph's outputs stand in another order"),
    "of another type": (("language", "inputs", 0, "dtype"), "float32", r"input input_ids is float32 \[batch"),
    "of another shape": (
        ("vision", "inputs", 0, "shape", 2),
        25,
        r"pixel_values is float32 \[tiles, 3, 25, 24\]: model and plan demand float32 \[tiles, 3, 24, 24\]",
    ),
    "unknown": (("language", "outputs", 1, "name"), "x", r"no output kept_index\.0"),
    "another size": (("image_program", "feed", "height"), 20, r"output of 24 x 24 pixels"),
    "a size that depends": (("image_program", "sizes"), [], r"output size, which depends on the image"),
    "a grid of parts of pixels": (("image_program", "tokens", "rows"), 25, r"more cells than .* pixels"),
    "deviation 0": (("image_program", "pixels", "std"), [0.5, 0.0, 0.5], r"image_program\.pixels\.std\.1"),
    "a short table": (("curve",), {"kind": "tabulated", "weights": [1.0, 0.5]}, r"table of 2 weights for 16"),
    "opset": (("opset",), 17, "opset"),
    "resampling": (("image_program", "pixels", "resample"), 4, "resample"),
    "colour": (("image_program", "fit", "color"), [0, 256, 0], r"color\.1"),
    "schema": (("schema_version",), 3, "schema_version"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_parts_that_contradict_one_another_are_refused(name: str) -> None:
    place, value, message = CONTRADICTIONS[name]
    raw = json.loads(make_manifest().model_dump_json())
    if isinstance(value, int) and place[-1] in ("inputs", "outputs"):
        whole = raw[place[0]][place[1]]
        value = whole[:value] if value < 0 else whole * value
    with pytest.raises(ValidationError, match=message):
        Manifest.model_validate(with_value(raw, place, value))


def test_a_tower_that_keeps_more_than_there_is() -> None:
    plan = PruningPlan(method="illava", tower=(TowerStage(layer=0, kept=17),))
    with pytest.raises(ValidationError, match="the vision tower keeps 17 of 16 tokens"):
        make_manifest(plan=plan)


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("field", ["value", "limit"])
def test_figures_of_a_comparison_are_finite(field: str, number: float) -> None:
    check = {"name": "logits", "value": 0.1, "limit": 0.2, field: number}
    with pytest.raises(ValidationError, match="the figures of a comparison are finite numbers"):
        make_manifest(verification={"checks": [check]})


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_manifest_that_is_read_can_be_written_and_read_again(data: st.DataObject) -> None:
    """Whatever is changed, a manifest is refused by a ValidationError alone, or is one to the last field."""
    raw = full_manifest(data.draw(st.sampled_from(METHODS_SHOWN)))
    value = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.lists(st.integers(0, 9), max_size=4),
        st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    )
    for place in data.draw(
        st.lists(st.sampled_from([place for place, _ in places(raw)]), min_size=1, max_size=3)
    ):
        try:
            raw = with_value(raw, place, data.draw(value))
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    if fault := refused(raw):
        assert fault.isprintable()
    else:
        manifest = Manifest.model_validate(raw)
        assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
