"""`edgeprune build`: options reach the builder, and the result is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgeprune.ownership import SIDECAR_NAME
from edgeprune.runtime.backends import ort_building
from edgeprune.runtime.backends.tensorrt import building, flavours
from tests.edgeprune.cli.conftest import Cli
from tests.runtime.backends.tensorrt.test_sidecar import FITTING
from tests.runtime.backends.test_ort_engines import write


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the builder was asked for; it only writes a sidecar."""
    seen: dict[str, Any] = {}

    def fake(bundle: Path, **options: Any) -> Path:
        seen.update(options, bundle=bundle)
        (tmp_path / SIDECAR_NAME).write_text(FITTING.model_dump_json(), encoding="utf-8")
        return tmp_path

    monkeypatch.setattr(building, "build", fake)
    return seen


def test_mistakes_are_one_sentence(cli: Cli, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavours, "is_installed", lambda flavour: False)
    assert "pip install 'edgeprune[rtx]'" in cli("build", bundle).message
    assert "'tensorrt', 'tensorrt-rtx'" in cli("build", bundle, "--backend", "onnx").message
    assert "--max-prompt is 0: expected" in cli("build", bundle, "--max-prompt", "0").message
    assert "not a bundle" in cli("build", bundle.parent).message


@pytest.mark.parametrize(
    "option", [("--max-prompt", "64"), ("--target", "sm89"), ("--plugin", "off"), ("--force",)]
)
def test_what_says_nothing_of_onnxruntime_is_refused(cli: Cli, bundle: Path, option: tuple[str, ...]) -> None:
    result = cli("build", bundle, "--backend", "onnxruntime", *option)
    assert result.code == 2
    assert f"'{option[0]}': it says nothing of engines of onnxruntime" in result.message


def test_engines_of_onnxruntime_are_told(
    cli: Cli, bundle: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    monkeypatch.setattr(ort_building, "build", lambda found, **_: write(found))
    told = json.loads(cli("build", bundle, "--backend", "onnxruntime", "--json").out)
    assert (told["backend"], told["threads"]) == ("onnxruntime", 3)
    shutil.rmtree(bundle / "engines")
    text = cli("build", bundle, "--backend", "onnxruntime").out
    assert "3, not spinning (a decode step with 3 10 ms)" in text
    assert (
        "100 ms (200 ms of CPU time), then 3 B resident, 2 B of it mapped from no file, at most 4 B" in text
    )
    assert not asked


def test_a_workspace_is_refused_in_the_unit_that_it_was_given_in(cli: Cli) -> None:
    result = cli("build", "out", "--workspace", "-1")
    assert result.code == 2
    assert "'--workspace'" in result.message
    assert "1000000" not in result.message
