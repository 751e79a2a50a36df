"""`edgeprune build`: options reach the builder, and the result is told."""

from __future__ import annotations

import json
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


def test_defaults_leave_everything_to_the_builder(cli: Cli, asked: dict[str, Any], bundle: Path) -> None:
    result = cli("build", bundle)
    assert result.code == 0
    del asked["progress"]
    assert asked.pop("bundle") == bundle
    assert asked.pop("targets") == ["current"]
    assert asked.pop("plugin") == "auto"
    assert asked.pop("force") is False
    assert set(asked.values()) == {None}
    assert "sm86 and sm89, with tensorrt-rtx 1.7.1" in result.out
    assert "by the function body" in result.out
    assert "2 prompts of 64 tokens and 1 pictures, 20 new tokens each" in result.out


def test_every_option_arrives(cli: Cli, asked: dict[str, Any], bundle: Path) -> None:
    result = cli(
        *("build", bundle, "--flavour", "tensorrt-rtx", "--target", "sm86", "--target", "sm89"),
        *("--max-batch", "2", "--max-prompt", "64", "--max-images", "3", "--max-new-tokens", "5"),
        *("--workspace", "100", "--plugin", "off", "--timing-cache", "times", "--force", "--json"),
    )
    found = json.loads(result.out)
    assert found["version"] == "1.7.1"
    assert found["folder"]
    assert (asked["flavour"], asked["targets"]) == ("tensorrt-rtx", ["sm86", "sm89"])
    limits = ("max_batch", "max_prompt", "max_images", "max_new_tokens")
    assert [asked[name] for name in limits] == [2, 64, 3, 5]
    assert (asked["workspace"], asked["plugin"], asked["force"]) == (100_000_000, "off", True)
    assert asked["timing_cache"] == Path("times")


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
