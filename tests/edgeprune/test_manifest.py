"""The manifest's schema."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from edgeprune.curves import ExponentialCurve
from edgeprune.manifest import (
    SCHEMA_VERSION,
    CacheGroup,
    Check,
    FileEntry,
    Manifest,
    PaddingMask,
    Verification,
    failures,
)
from edgeprune.plans import PruningPlan, PruningStage
from tests.manifests import make_manifest


def test_a_manifest_survives_json() -> None:
    manifest = make_manifest()
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert manifest.schema_version == SCHEMA_VERSION


def test_a_picture_has_as_many_tokens_as_its_grid() -> None:
    assert make_manifest().preprocessing.model_copy(update={"grid": (3, 5)}).places_per_image == 15


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
        ("model", "dtype", "int4"),
        ("preprocessing", "grid", (0, 4)),
        ("preprocessing", "image_size", (24, -1)),
        ("preprocessing", "resize_shortest_edge", 0),
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
