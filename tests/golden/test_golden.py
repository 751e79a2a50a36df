"""The golden bundles: what edgeprune's own runtime makes of them, and what it refuses."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprune.bundle import read_manifest
from edgeprune.errors import BundleError
from edgeprune.image_program import ImageProgram
from edgeprune.manifest import MANIFEST_NAME
from edgeprune.runtime.model import Model, load
from tests.golden.layouts import PROGRAMS, layout_case
from tests.golden.make import BUNDLES, GOLDEN, asked, recorded, results

# Largest difference of logits, in units of their own spread: other processors and releases round otherwise.
LIMITS = {"fp32": 1e-3, "fp16": 2e-2}
MOST_BYTES = 2_500_000


def cases_of(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))["cases"]
    return cases


@cache
def model_of(name: str) -> Model:
    return load(GOLDEN / name, "onnxruntime", check="hashes", threads=1)


def agree(found: dict[str, Any], case: dict[str, Any], limit: float) -> None:
    """Everything alike, logits within the limit."""
    for field in found:
        if field != "logits":
            assert found[field] == case[field], field
    expected = np.array(case["logits"])
    assert np.abs(np.array(found["logits"]) - expected).max() <= limit * max(1.0, float(expected.std()))


EVERY = [
    pytest.param(name, case, id=f"{name}: {case['name']}") for name in BUNDLES for case in cases_of(name)
]


@pytest.mark.parametrize(("name", "case"), EVERY)
def test_a_case_is_reproduced(name: str, case: dict[str, Any]) -> None:
    model = model_of(name)
    found = recorded(model, {key: case[key] for key in ("name", "prompt", "images")} | _choices(case))
    assert set(found) == set(case)
    agree(found, case, LIMITS[model.manifest.precision.compute])


@pytest.mark.parametrize("name", BUNDLES)
def test_what_was_asked_is_what_the_script_asks(name: str) -> None:
    asked_now = BUNDLES[name].cases
    assert [
        {key: case.get(key) for key in now} for now, case in zip(asked_now, cases_of(name), strict=True)
    ] == [*asked_now]


def _choices(case: dict[str, Any]) -> dict[str, Any]:
    return {key: case[key] for key in ("keep", "debias") if key in case}


def test_the_cases_of_a_plan_are_the_same_in_one_batch() -> None:
    model = model_of("one-stage")
    batch = [
        case
        for case in cases_of("one-stage")
        if case["name"] in ("as exported", "image last", "conversation")
    ]
    prompts = [asked(model, case) for case in batch]
    assert len({len(prompt.input_ids) for prompt, _ in prompts}) == 3  # so there is padding on the left
    for found, case in zip(results(model, prompts), batch, strict=True):
        agree(found, case, LIMITS["fp32"])


def test_what_is_recorded_is_what_the_cases_are_named() -> None:
    kept = {case["name"]: case["kept_slots"] for case in cases_of("one-stage")}
    assert (kept["as exported"], kept["fewer"], kept["all"], kept["no image"]) == ([11], [7], [36], [0])
    assert kept["two images"] == [22]
    by_name = {case["name"]: case for case in cases_of("one-stage")}
    own, plain = by_name["as exported"], by_name["no debias"]
    assert own["kept_visual"] != plain["kept_visual"]
    assert all(own["padding_mask"][place] for place in own["kept_visual"][0])
    assert not all(plain["padding_mask"][place] for place in plain["kept_visual"][0])
    assert by_name["image last"]["kept_visual"][0][-1] == 35
    assert any(averaged for case in cases_of("means") for averaged in case["averaged"])


@pytest.mark.parametrize(
    "case", cases_of("image_programs"), ids=lambda c: f"{c['name']} {c['width']}x{c['height']}"
)
def test_an_image_program_gives_what_is_recorded(case: dict[str, Any]) -> None:
    program = PROGRAMS[case["name"]]
    if "image_program" in case:
        assert ImageProgram.model_validate(case["image_program"]) == program
    found = layout_case(case["name"], program, case["width"], case["height"])
    assert found == {key: value for key, value in case.items() if key != "image_program"}


def _refused() -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in cases_of("refused")]


@pytest.mark.parametrize("case", _refused())
def test_a_damaged_bundle_is_refused(case: dict[str, Any], tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(GOLDEN / case["bundle"], tmp_path / "bundle"))
    path = bundle / MANIFEST_NAME
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for place, value in case.get("set", ()):
        part = manifest
        for step in place[:-1]:
            part = part[step]
        part[place[-1]] = value
    if "unlist" in case:
        manifest["files"] = [entry for entry in manifest["files"] if entry["path"] != case["unlist"]]
    text = case.get("text", json.dumps(manifest))
    if "manifest" in case:
        text = (GOLDEN / case["manifest"]).read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    if "append" in case:
        with (bundle / case["append"]).open("a") as file:
            file.write(" ")
    if "remove" in case:
        (bundle / case["remove"]).unlink()
    with pytest.raises(BundleError, match=case["says"]):
        read_manifest(bundle)


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_holds_its_files_and_names_no_machine(name: str) -> None:
    manifest = read_manifest(GOLDEN / name, "hashes")
    assert {path.name for path in (GOLDEN / name).iterdir()} == {
        MANIFEST_NAME,
        *(entry.path for entry in manifest.files),
    }
    assert manifest.model.source == f"tiny-{name}"
    assert manifest.verification.checks
    assert all(check.holds for check in manifest.verification.checks)


def test_all_of_it_is_small() -> None:
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.suffix != ".pyc") < MOST_BYTES
