"""Exports of quantised checkpoints: the bundle has their weights bit by bit, and computes what they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

import edgeprune
from edgeprune.bundle import read_manifest
from edgeprune.cli.main import main
from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.exporter import weights
from edgeprune.exporter.families import family_of, read_config
from edgeprune.exporter.precision.choosing import precision_of_checkpoint
from edgeprune.exporter.precision.linears import stored_blocks
from edgeprune.exporter.precision.stored import QuantisedLayers
from edgeprune.plans import method_by_name
from edgeprune.runtime.backends.tensorrt import build, flavours
from tests.quantised_checkpoints import LAYOUTS, quantise_folder, save_dequantised
from tests.tiny import save_llava

FAST = ("awq", "gptq-act-order")
KINDS = {"gptq-8": "int8", "compressed-tensors-8": "int8", "int8": "int8"}
EVERY = [layout if layout in FAST else pytest.param(layout, marks=pytest.mark.slow) for layout in LAYOUTS]
needs_rtx = pytest.mark.skipif(
    not flavours.is_installed(flavours.TENSORRT_RTX), reason="pip install 'edgeprune[rtx]'"
)


def quantised(folder: Path, layout: str, dtype: torch.dtype = torch.float32) -> tuple[Path, dict[str, Any]]:
    """A folder in a layout, and what it stands for."""
    model = save_llava(folder, dtype=dtype)
    return model, quantise_folder(model, layout)


@pytest.mark.parametrize("layout", EVERY)
def test_the_bundle_is_the_checkpoint(layout: str, tmp_path: Path) -> None:
    model, meant = quantised(tmp_path / "model", layout)
    out = edgeprune.export(model, keep=0.5, output=tmp_path / "out")
    manifest = read_manifest(out)
    kind = KINDS.get(layout, "fp8" if layout.startswith("fp8") else "int4")
    assert (manifest.precision.weights, manifest.precision.scoring) == (kind, kind)
    assert (manifest.precision.head, manifest.precision.other) == ("fp32", "fp32")
    assert (manifest.precision.block, manifest.precision.method) == (16, "checkpoint")
    # The comparison is with a model of the dequantised weights.
    assert manifest.verification.checks

    built = family_of(read_config(model)).build(read_config(model), torch.float32)
    names = {name: key for key, name in weights.rename_map(built, meant).items()}
    found = dict(stored_blocks(out / manifest.language.file))
    assert len(found) == 4 * 7
    for name, blocks in found.items():
        own = names[f"model.language_model.{name.removeprefix('text_model.')}"]
        assert np.array_equal(blocks.weight().numpy(), meant[own].numpy()), name


@pytest.mark.parametrize("layout", ["awq", "gptq-act-order", "fp8-tensor"])
def test_a_loaded_model_has_the_dequantised_weights(layout: str, tmp_path: Path) -> None:
    model, meant = quantised(tmp_path / "model", layout)
    found = family_of(read_config(model)).load(model, torch.float32)
    save_dequantised(model, meant)
    expected = dict(family_of(read_config(model)).load(model, torch.float32).named_parameters())
    assert all(torch.equal(value, expected[name]) for name, value in found.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["awq", "gptq-act-order"])
def test_a_bundle_is_verified_against_the_quantised_folder(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = quantised(tmp_path / "model", layout)
    out = edgeprune.export(model, keep=0.5, output=tmp_path / "out", verify=False)
    assert main(["verify", str(out), "--against", str(model), "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    stored = checks["quantised weights, the worst matrix against the checkpoint"]
    assert stored["value"] <= stored["limit"]
    assert "unpruned prefill logits, graph against Hugging Face" in checks


@pytest.mark.slow
def test_layers_in_one_order_share_it_and_every_product_its_sums(tmp_path: Path) -> None:
    for layout, node, products in (("gptq-act-order", "Gather", 4), ("awq", "ReduceSum", 4)):
        model, _ = quantised(tmp_path / layout, layout)
        out = edgeprune.export(model, method="none", output=tmp_path / f"{layout}-out", verify=False)
        graph = onnx.load(out / "language.onnx", load_external_data=False).graph
        ends = (".order", "int64.-1")
        found = [one for one in graph.node if one.op_type == node and one.input[1].endswith(ends)]
        # Of seven products a layer three have the input of the attention, and two that of the network.
        assert len(found) == 4 * products


def test_weights_of_another_type_are_refused(tmp_path: Path) -> None:
    model, _ = quantised(tmp_path / "model", "gptq")
    message = r"weights in int8 were asked for, and the checkpoint stores int4, .*leave out `weights`"
    with pytest.raises(InputError, match=message):
        edgeprune.export(model, keep=0.5, weights="int8", output=tmp_path / "out")


@pytest.mark.slow
def test_scales_that_are_rounded_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = quantised(tmp_path / "model", "int8", torch.float16)
    edgeprune.export(model, keep=0.5, dtype="fp16", output=tmp_path / "out", verify=False)
    told = "\n".join(caplog.messages)
    assert "the checkpoint's scales are stored as bf16 and rounded to fp16" in told
    assert told.count("the checkpoint quantises activations, too") == 1


def test_scales_that_the_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    model, _ = quantised(tmp_path / "model", "int8")
    path = model / "model.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith("weight_scale"))
    save_file({**tensors, key: tensors[key] * 1e9}, path)
    layers = QuantisedLayers.of(family_of(read_config(model)).build(read_config(model), torch.float32), model)
    name = next(name for name in layers.forms if name.endswith(key.rpartition("layers.")[2][:-6]))
    with pytest.raises(
        InputError, match=r"by values that torch.float16 cannot hold: compute in a wider type"
    ):
        layers.blocks(name, torch.float16)


def test_a_checkpoint_without_a_quantised_decoder_is_refused() -> None:
    plan = method_by_name("none").plan(4, 1.0)
    with pytest.raises(UnsupportedModelError, match="quantised, and no layer of its decoder is: export the"):
        precision_of_checkpoint(None, "fp32", "fp32", plan, {})


def test_bitsandbytes_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_llava(tmp_path / "model")
    text = json.loads((model / "config.json").read_text())
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (model / "config.json").write_text(json.dumps({**text, "quantization_config": config}))
    assert main(["export", str(model), "--output", str(tmp_path / "out")]) != 0
    assert "quantised by bitsandbytes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@needs_rtx
@pytest.mark.parametrize("layout", ["awq", "gptq-act-order"])
def test_rtx_builds_zero_points_and_orders(layout: str, tmp_path: Path) -> None:
    model, _ = quantised(tmp_path / "model", layout, torch.float16)
    out = edgeprune.export(model, keep=0.5, output=tmp_path / "out", verify=False)
    build(out, backend="tensorrt-rtx", targets=["sm86"], max_images=2)
