"""Tiny models exported once per test session, each for what only a real export shows."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from edgeprune import export
from edgeprune.bundle import read_manifest
from edgeprune.debias.curves import ExponentialCurve, save_curve
from edgeprune.exporter.families.llava import Llava
from edgeprune.manifest import Manifest
from tests.tiny import save_llava

# Steep enough to change which of so few tokens are kept.
CURVE = ExponentialCurve(b=0.02, num_tokens=36)


@dataclass(frozen=True)
class Exported:
    """A model folder and its bundle. Tests must not change either: copy first."""

    model: Path
    bundle: Path

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.bundle)

    def session(self, file: str = "language.onnx") -> onnxruntime.InferenceSession:
        """ONNX Runtime as it is installed: nothing is registered with it."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(
            str(self.bundle / file), options, providers=["CPUExecutionProvider"]
        )

    def huggingface(self, dtype: torch.dtype = torch.float32) -> LlavaForConditionalGeneration:
        return Llava().load(self.model, dtype)

    def copy(self, folder: Path) -> Path:
        return Path(shutil.copytree(self.bundle, folder))


def _exported(
    folder: Path, kind: str, stored: torch.dtype = torch.float32, shard: str = "1GB", **options: Any
) -> Exported:
    model = save_llava(folder / "models" / kind, kind, stored, shard=shard)
    if options.get("method") != "none":
        save_curve(CURVE, folder / "curve.json")
        options["curve"] = folder / "curve.json"
    bundle = export(model, output=folder / "bundle", **options)
    return Exported(model, bundle)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder; no export."""
    return save_llava(tmp_path_factory.mktemp("folder") / "llama")


@pytest.fixture(scope="session")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Llama, float32, FastV at keep 0.3, compared with the original."""
    return _exported(tmp_path_factory.mktemp("pruned"), "llama", keep=0.3)


@pytest.fixture(scope="session")
def half(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Gemma, stored as float32 and converted to float16: tied and scaled embeddings, a scale in a buffer."""
    return _exported(tmp_path_factory.mktemp("half"), "gemma", keep=0.3, dtype="fp16")


@pytest.fixture(scope="session")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Phi-3, stored as bfloat16 and left so."""
    return _exported(tmp_path_factory.mktemp("brain"), "phi3", torch.bfloat16, keep=0.3)


@pytest.fixture(scope="session")
def unpruned(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Qwen3 without pruning, by the newest opset, of weights in several files."""
    return _exported(tmp_path_factory.mktemp("unpruned"), "qwen3", shard="60KB", method="none", opset=23)
