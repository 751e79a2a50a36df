"""`edgeprune export`: what it passes on, what it prints, and every mistake that can be made with it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from edgeprune.bundle import read_manifest
from edgeprune.errors import VerificationError
from edgeprune.log import note
from edgeprune.manifest import Verification
from edgeprune.plans import METHODS
from tests.conftest import SAMPLE_MODEL
from tests.edgeprune.cli.conftest import Cli, snapshot
from tests.manifests import write_bundle


class FakeExporter:
    """Stands in for the pipeline: writes a handmade bundle and remembers what it was asked for."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.model: str | None = None
        self.arguments: dict[str, Any] = {}
        self.changes: dict[str, Any] = {}

    def __call__(self, model: str, **arguments: Any) -> Path:
        self.model, self.arguments = model, arguments
        arguments["progress"].step("tracing the language graph")
        note("the curve is resampled")
        return write_bundle(self.output, **self.changes)


@pytest.fixture
def exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeExporter:
    fake = FakeExporter(tmp_path / "out")
    monkeypatch.setattr("edgeprune.export", fake)
    return fake


def test_only_model_and_share_are_needed(cli: Cli, exporter: FakeExporter) -> None:
    assert cli("export", "some/model", "--keep", "0.3").code == 0
    assert exporter.model == "some/model"
    exporter.arguments.pop("progress")
    assert exporter.arguments == {
        "keep": 0.3,
        "output": None,
        "method": "fastv",
        "layer": None,
        "curve": None,
        "debias": None,
        "dtype": None,
        "weights": None,
        "calibrate_images": None,
        "calibrate_prompts": None,
        "opset": None,
        "seed": 0,
        "max_pixels": None,
        "force": False,
        "link": False,
        "verify": True,
    }


def test_without_a_share_the_method_decides(cli: Cli, exporter: FakeExporter) -> None:
    assert cli("export", "some/model").code == 0
    assert exporter.arguments["keep"] is None


def test_shares_and_layers_of_several_selections(cli: Cli, exporter: FakeExporter) -> None:
    assert cli("export", "some/model", "--keep", "0.5,0.25,0.125", "--layer", "8,16,24").code == 0
    assert exporter.arguments["keep"] == (0.5, 0.25, 0.125)
    assert exporter.arguments["layer"] == (8, 16, 24)


@pytest.mark.parametrize(
    ("text", "keep"), [("192/576", "192/576"), ("115/576, 0.1", ("115/576", 0.1))], ids=str
)
def test_fractions_are_handed_on_as_they_are(cli: Cli, exporter: FakeExporter, text: str, keep: Any) -> None:
    assert cli("export", "some/model", "--method", "himap", "--keep", text).code == 0
    assert exporter.arguments["keep"] == keep


def test_the_help_lists_every_method(cli: Cli) -> None:
    # Lines break inside a name too.
    out = re.sub(r"[^a-z-]", "", cli("export", "--help").out)
    assert not [name for name in METHODS if name not in out]


def test_the_result_says_plan_curve_sizes_and_verification(cli: Cli, exporter: FakeExporter) -> None:
    result = cli("export", "some/model", "--keep", "0.3")
    for text in (
        str(exporter.output),
        "fastv: before layer 2 keep 0.3 (debias position, padding)",
        "exponential curve",
        "more than 0.5 of it is padding",
        "in 6 files",
        "prefill logits",
        "1e-06",
    ):
        assert text in result.out
    assert result.err.splitlines() == ["tracing the language graph ...", "note: the curve is resampled"]


def test_what_was_not_compared_is_said(cli: Cli, exporter: FakeExporter) -> None:
    exporter.changes["verification"] = Verification(skipped="it needs more memory")
    out = cli("export", "some/model", "--keep", "0.3").out
    assert "not compared with the original model: it needs more memory" in out


def test_an_unpruned_bundle_speaks_of_no_curve(cli: Cli, exporter: FakeExporter) -> None:
    exporter.changes["method"] = "none"
    out = cli("export", "some/model", "--keep", "1").out
    assert "none: no pruning" in out
    assert "bias curve" not in out


def test_json_is_the_manifest_with_its_place(cli: Cli, exporter: FakeExporter) -> None:
    found = json.loads(cli("export", "some/model", "--keep", "0.3", "--json").out)
    manifest = read_manifest(exporter.output)
    assert found.pop("bundle") == str(exporter.output)
    assert found.pop("bytes") == sum(entry.bytes for entry in manifest.files)
    assert found.pop("format") == "edgeprune.bundle/1"
    assert found == manifest.model_dump(mode="json")


def test_a_failed_comparison_is_the_users(
    cli: Cli, exporter: FakeExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(model: str, **arguments: Any) -> Path:
        raise VerificationError("the graph does not agree: logits 1 (limit 0.0001)")

    monkeypatch.setattr("edgeprune.export", fails)
    assert "logits 1 (limit 0.0001)" in cli("export", "some/model", "--keep", "0.3").message


# Mistakes, met by the real exporter. None gets as far as tracing.


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A bundle of an earlier export, at the place that the next one is told to write to."""
    return write_bundle(tmp_path / "out" / "bundle")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--keep 0", "the keep ratio is 0: expected a number above 0 and at most 1"),
        ("--keep -0.3", "the keep ratio is -0.3"),
        ("--keep 1.01", "the keep ratio is 1.01"),
        ("--keep 30", "the keep ratio is 30: expected a number above 0 and at most 1; 0.3 keeps 30 %"),
        ("--keep nan", "the keep ratio is 'nan'"),
        ("--keep 1/0", "the keep ratio is '1/0'"),
        ("--keep 577/576", "the keep ratio is 577/576: expected a number above 0 and at most 1"),
        ("--keep a-third", "the keep ratio is 'a-third'"),
        ("--keep 0.3 --layer 0", "layer 0 cannot be pruned at: the model has 4 decoder layers"),
        ("--keep 0.3 --layer 4", "--layer must be a whole number from 1 to 3"),
        ("--keep 0.3 --layer two", "Invalid value for '--layer'"),
        ("--keep 0.3,0.2", "2 keep ratios were given and fastv has 1 stage"),
        ("--method himap --keep 0.3,0.4", "the keep ratios 0.3, 0.4 rise"),
        ("--method himap --keep 0.3,2", "the keep ratio is 2"),
        ("--method himap --layer 1", "1 layer was given and himap has 2 stages"),
        ("--method himap --layer 2,1", "the layers 2, 1 do not ascend"),
        ("--debias everything", "--debias is 'everything': expected position, padding"),
        (
            "--debias padding --curve fastv",
            "fastv was given, and --debias leaves positions as they are",
        ),
        ("--method random --curve fastv", "the method random has no attention"),
        ("--method random --seed -1", "--seed is -1"),
        ("--keep 0.3 --method guess", "unknown pruning method 'guess': choose one of"),
        ("--keep 0.3 --curve nowhere.json", "'nowhere.json' is neither a bias curve preset nor a file"),
        ("--keep 0.3 --curve {short}", "the bias curve is a table of 5 weights and 144 visual tokens"),
        ("--keep 0.3 --curve {broken}", "is not JSON"),
        ("--keep 0.3 --dtype int4", "Invalid value for '--dtype'"),
        ("--keep 0.3 --opset 17", "opset 17 is not supported"),
    ],
)
def test_a_wrong_value_leaves_the_earlier_bundle(
    cli: Cli, tmp_path: Path, earlier: Path, arguments: str, message: str
) -> None:
    short, broken = tmp_path / "short.json", tmp_path / "broken.json"
    short.write_text('{"kind": "tabulated", "weights": [1, 1, 1, 1, 1]}')
    broken.write_text("{")
    before = snapshot(earlier.parent)
    given = arguments.format(short=short, broken=broken).split()
    assert message in cli("export", SAMPLE_MODEL, *given, "--force", "-o", earlier).message
    assert snapshot(earlier.parent) == before


def test_an_output_that_exists_needs_force(cli: Cli, earlier: Path) -> None:
    before = snapshot(earlier.parent)
    assert (
        "exists already: choose another --output, or replace it with --force"
        in cli("export", SAMPLE_MODEL, "--keep", "0.3", "-o", earlier).message
    )
    assert snapshot(earlier.parent) == before


def test_a_folder_that_is_no_bundle_is_not_replaced_by_force(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    before = snapshot(tmp_path)
    result = cli("export", SAMPLE_MODEL, "--keep", "0.3", "--force", "-o", tmp_path / "thesis")
    assert "was not written by edgeprune" in result.message
    assert snapshot(tmp_path) == before


def test_an_output_that_cannot_be_written(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    result = cli("export", SAMPLE_MODEL, "--keep", "0.3", "-o", tmp_path / "file" / "bundle")
    assert "cannot be made (File exists)" in result.message


def test_a_full_disk(cli: Cli, earlier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int = 1000

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage())
    before = snapshot(earlier.parent)
    result = cli("export", SAMPLE_MODEL, "--keep", "0.3", "--force", "-o", earlier)
    assert "is full" in result.message
    assert snapshot(earlier.parent) == before


def test_a_model_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    missing = cli("export", tmp_path / "none", "--keep", "0.3", "-o", tmp_path / "out").message
    assert f"{tmp_path / 'none'} is not a folder" in missing


def test_a_hub_id_that_cannot_be_had(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, **arguments: Any) -> str:
        raise OSError("offline\nwith details")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    message = cli("export", "no/such-model", "--keep", "0.3", "-o", tmp_path / "out").message
    assert "no/such-model is neither a folder here nor a model" in message
    assert "(offline)" in message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "is not a Hugging Face model folder: it has no config.json"),
        ("{", "config.json"),
        ('{"model_type": "martian"}', "'martian'"),
        ('{"model_type": "bert", "architectures": ["BertModel"]}', "BertModel is not supported. Supported: "),
    ],
    ids=["no config", "broken config", "unknown type", "unsupported architecture"],
)
def test_a_folder_that_holds_no_model_that_can_be_exported(
    cli: Cli, tmp_path: Path, config: str | None, message: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(config)
    assert message in cli("export", folder, "--keep", "0.3", "-o", tmp_path / "out").message
    assert not (tmp_path / "out").exists()


def test_a_text_model_with_another_rotary_scaling_is_refused_by_name(cli: Cli, tmp_path: Path) -> None:
    config = json.loads((SAMPLE_MODEL / "config.json").read_text())
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    config["text_config"] = {"model_type": "mistral", "rope_parameters": rope}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    message = cli("export", tmp_path / "model", "--keep", "0.3", "-o", tmp_path / "out").message
    assert "'mistral' uses 'yarn' rotary scaling" in message
    assert "Supported: Gemma3ForConditionalGeneration, Idefics3ForConditional" in message
