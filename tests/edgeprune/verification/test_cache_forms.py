"""Comparing the forms: what differs is told, and a form that computes otherwise is seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from edgeprune.manifest import failures
from edgeprune.verification import original as verify
from tests.export.conftest import Exported


def _double_scale(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "scale":
                attribute.f *= 2


def _no_mask(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            node.input[10] = ""


@pytest.mark.slow
@pytest.mark.parametrize("change", [_double_scale, _no_mask])
def test_another_form_that_computes_otherwise_is_seen(change: Any, pruned: Exported, tmp_path: Path) -> None:
    bundle = pruned.copy(tmp_path / "copy")
    path = bundle / pruned.manifest.language_forms["in-place"]
    model = onnx.load(path, load_external_data=False)
    change(model)
    onnx.save(model, path)
    found = failures(verify.compare(bundle, pruned.manifest, pruned.model))
    assert "in-place caches against copied ones" in found
    assert "graph against torch" not in found
