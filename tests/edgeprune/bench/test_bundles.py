"""Which bundles can be measured beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeprune.bench.bundles import NO_DEBIAS, PRUNED, UNPRUNED, Measured, forms, opened
from edgeprune.errors import BundleError, InputError
from edgeprune.image_program import PixelValues
from edgeprune.manifest import Precision
from edgeprune.runtime.backends import open_backend
from tests.manifests import make_manifest, relist, write_bundle

BASE = make_manifest()
MODEL, PROGRAM = BASE.model, BASE.image_program


def measured(bundle: Path, *baselines: Path) -> list[Measured]:
    return opened(bundle, baselines, open_backend("onnxruntime"))


def kept_by_form(method: str, keep: float | None = None, **changes: Any) -> dict[str, tuple[int, int]]:
    """Of 16 visual tokens an image how many are left of what reaches the decoder, and how many debias by."""
    manifest = make_manifest(method, **changes)
    own = Measured("own", Path("own"), manifest, manifest.plan, None, 0)
    found = {}
    for form in forms(own, keep):
        assert (form.bundle, form.manifest) == (own.bundle, own.manifest)
        visual = form.manifest.most_image_tokens
        left = form.plan.counts(visual)[-1].after if form.plan.stages else visual
        found[form.name] = (left, len(form.plan.debias))
    return found


def test_the_forms_of_a_bundle_end_with_itself() -> None:
    assert kept_by_form("fastv") == {UNPRUNED: (16, 2), NO_DEBIAS: (5, 0), PRUNED: (5, 2)}
    assert list(kept_by_form("fastv")) == [UNPRUNED, NO_DEBIAS, PRUNED]
    assert kept_by_form("fastv", 0.5) == {UNPRUNED: (16, 2), NO_DEBIAS: (8, 0), PRUNED: (8, 2)}
    assert kept_by_form("fastv", debias="") == {UNPRUNED: (16, 0), PRUNED: (5, 0)}


def test_what_prunes_nothing_has_one_form() -> None:
    assert kept_by_form("fastv", 1) == {UNPRUNED: (16, 2)}
    assert kept_by_form("none", debias="") == {UNPRUNED: (16, 0)}


def test_a_tower_that_merges_has_no_unpruned_form() -> None:
    found = kept_by_form("illava")
    assert list(found) == [NO_DEBIAS, PRUNED]
    with pytest.raises(InputError, match="illava merges inside the vision tower, which is part of its graph"):
        kept_by_form("illava", 0.5)


@pytest.mark.parametrize("name", [UNPRUNED, PRUNED])
def test_a_baseline_that_is_called_as_a_form_is_told_apart_from_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_bundle(tmp_path / "own")
    write_bundle(tmp_path / name, method="none")
    assert [variant.name for variant in measured(Path("own"), Path(name))] == [f"./{name}", "own"]


def test_baselines_come_first_by_the_names_they_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(tmp_path / "own", model=MODEL.model_copy(update={"source": "elsewhere"}))
    write_bundle(tmp_path / "none", method="none")
    write_bundle(tmp_path / "other", method="pyramiddrop")
    monkeypatch.chdir(tmp_path)
    found = measured(Path("own"), Path("none"), tmp_path / "other")
    assert [variant.name for variant in found] == ["none", str(tmp_path / "other"), "own"]
    assert [variant.manifest.plan.method for variant in found] == ["none", "pyramiddrop", "fastv"]
    assert {variant.engine for variant in found} == {None}
    assert all(variant.plan == variant.manifest.plan for variant in found)
    assert found[0].bundle == tmp_path / "none"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": Precision.plain("fp16")}, "its precision is fp16 instead of fp32;"),
        (
            {"model": MODEL.model_copy(update={"kv_heads": 4, "hidden_size": 64})},
            "its hidden size is 64 instead of 32; its kv heads is 4 instead of 2;",
        ),
        (
            {"image_program": PROGRAM.model_copy(update={"pixels": PixelValues(resample=2)})},
            "it prepares images in another way;",
        ),
        (
            {"prompt": BASE.prompt.model_copy(update={"image_token_id": 6})},
            "its tokenizer or chat template is another one;",
        ),
    ],
)
def test_a_baseline_that_differs_in_more_than_pruning(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    own, other = write_bundle(tmp_path / "own"), write_bundle(tmp_path / "other", method="none", **changes)
    with pytest.raises(InputError) as caught:
        measured(own, other)
    message = str(caught.value)
    assert message.startswith(f"the baseline {other} does not fit the bundle {own}: {words}")
    assert message.endswith(
        "from the same model with the same options, but for `method`, `keep` and `debias`"
    )


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_another_tokenizer_makes_another_prompt(tmp_path: Path, name: str) -> None:
    own, other = write_bundle(tmp_path / "own"), write_bundle(tmp_path / "other")
    (other / name).write_text("another")
    relist(other, name)
    with pytest.raises(InputError, match="its tokenizer or chat template is another one"):
        measured(own, other)


def test_nothing_is_measured_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = write_bundle(tmp_path / "own"), write_bundle(tmp_path / "other")
    with pytest.raises(InputError, match=r"own would be measured twice: .*leave it out once"):
        measured(own, own)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^other would be measured twice"):
        measured(own, other, Path("other"))


def test_a_baseline_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a folder"):
        measured(write_bundle(tmp_path / "own"), tmp_path / "nothing")
