"""Rounding weights by what they are multiplied with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgeprune.calibration import rounding
from edgeprune.errors import InputError
from edgeprune.exporter.decision import ExportOptions, decide
from edgeprune.exporter.families import family_of, read_config
from edgeprune.exporter.precision.blocks import BlockForm, quantise
from edgeprune.manifest import Manifest
from edgeprune.progress import Silent
from tests.tiny import save_llava

FORM = BlockForm("int4", 16)
NAMES = [
    f"model.language_model.layers.{layer}.{part}.weight"
    for layer in range(2)
    for part in ("self_attn.q_proj", "mlp.down_proj")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(place / f"{number}.png")
    return place


@pytest.fixture(scope="module")
def manifest(folder: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    config = read_config(folder)
    options = ExportOptions(keep=0.3, weights="int4", calibrate_images=images)
    manifest, _ = decide(folder, "tiny", config, family_of(config), options, tmp_path_factory.mktemp("out"))
    return manifest


def gptq(folder: Path, manifest: Manifest, images: Path) -> rounding.Gptq:
    return rounding.by_gptq(folder, manifest, images, None, Silent())


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    model: Any = family_of(read_config(folder)).load(folder, torch.float32)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_the_manifest_says_how(manifest: Manifest) -> None:
    assert manifest.precision.method == "gptq"
    assert "by GPTQ" in manifest.precision.describe()


def test_products_err_less_than_by_rounding_to_the_nearest(
    folder: Path, manifest: Manifest, images: Path
) -> None:
    weights, rounds = weights_of(folder), gptq(folder, manifest, images)
    for name in NAMES:
        found = rounds(name, weights[name], FORM)
        moment = rounds._moments[id(rounds._linear[name][1])]
        near = quantise(weights[name], FORM, torch.float32)
        errors = [blocks.weight() - weights[name] for blocks in (found, near)]
        mine, nearest = (float((error @ moment * error).sum()) for error in errors)
        assert mine < nearest
        assert found.values.shape == near.values.shape
        assert found.scale.dtype == torch.float32


def test_the_head_reads_what_the_rounded_layers_make(folder: Path, manifest: Manifest, images: Path) -> None:
    weights, rounds = weights_of(folder), gptq(folder, manifest, images)
    found = rounds("lm_head.weight", weights["lm_head.weight"], BlockForm("int8", 16))
    assert float((found.weight() - weights["lm_head.weight"]).abs().max()) < 0.02


def test_eight_bit_floats_are_rounded_to_the_nearest(folder: Path, manifest: Manifest, images: Path) -> None:
    weight, form = weights_of(folder)[NAMES[0]], BlockForm("fp8", 16)
    found = gptq(folder, manifest, images)(NAMES[0], weight, form)
    assert torch.equal(found.weight(), quantise(weight, form, torch.float32).weight())


def test_only_the_first_of_many_images_are_read(
    folder: Path,
    manifest: Manifest,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(rounding, "MOST_SAMPLES", 2)
    assert len(gptq(folder, manifest, images)._tokens) == 2
    assert "of 6 images to round weights by, the first 2 are read" in caplog.text


def test_images_that_are_not_there(folder: Path, manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        gptq(folder, manifest, tmp_path / "nowhere")
