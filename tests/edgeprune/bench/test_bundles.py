"""Which bundles can be measured beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeprune.bench.bundles import Measured, bundles_as_they_are
from edgeprune.errors import BundleError, InputError
from edgeprune.image_program import PixelValues
from edgeprune.runtime.backends import open_backend
from tests.manifests import make_manifest, relist, write_bundle

BASE = make_manifest()
MODEL, PROGRAM = BASE.model, BASE.image_program


def measured(bundle: Path, *baselines: Path) -> list[Measured]:
    return bundles_as_they_are(bundle, baselines, open_backend("onnxruntime"))


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
    assert {(variant.graphs, variant.engine) for variant in found} == {(None, None)}
    assert found[0].bundle == tmp_path / "none"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": MODEL.model_copy(update={"dtype": "fp16"})}, "its dtype is fp16 instead of fp32;"),
        (
            {"model": MODEL.model_copy(update={"kv_heads": 4, "hidden_size": 64})},
            "its hidden size is 64 instead of 32; its kv heads is 4 instead of 2;",
        ),
        (
            {"image_program": PROGRAM.model_copy(update={"pixels": PixelValues(resample=2)})},
            "it prepares pictures in another way;",
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
