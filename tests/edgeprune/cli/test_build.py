"""`edgeprune build`: options reach the builder, and the result is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeprune.ownership import SIDECAR_NAME
from edgeprune.runtime.backends.tensorrt import building, flavours
from tests.edgeprune.cli.conftest import Cli
from tests.runtime.backends.tensorrt.test_sidecar import FITTING


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
    assert "'tensorrt', 'tensorrt-rtx'" in cli("build", bundle, "--flavour", "onnx").message
    assert "--max-prompt is 0: expected" in cli("build", bundle, "--max-prompt", "0").message
    assert "not a bundle" in cli("build", bundle.parent).message


def test_a_workspace_is_refused_in_the_unit_that_it_was_given_in(cli: Cli) -> None:
    result = cli("build", "out", "--workspace", "-1")
    assert result.code == 2
    assert "'--workspace'" in result.message
    assert "1000000" not in result.message
