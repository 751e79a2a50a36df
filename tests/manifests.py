"""Small bundles made by hand: every part of the manifest, and files that only have to be there."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgeprune.bundle import sha256_of, write_manifest
from edgeprune.debias.curves import ExponentialCurve
from edgeprune.debias.masks import PaddingMask
from edgeprune.image_program import GridTokens, ImageProgram, Letterbox, TileFeed
from edgeprune.image_sizes import FixedSize
from edgeprune.interface import language_interface, vision_interface
from edgeprune.manifest import (
    MANIFEST_NAME,
    CacheGroup,
    Check,
    FileEntry,
    GraphSpec,
    Manifest,
    ModelInfo,
    Precision,
    Prompt,
    Verification,
)
from edgeprune.plans import Debias, method_by_name
from edgeprune.positions import SequentialPositions


def field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message that holds bytes, fewer than 128."""
    return bytes([number << 3 | 2, len(content)]) + content


def graph_pointing_to(location: str, name: str = "w") -> bytes:
    """An ONNX file with one initializer, whose values lie in another file."""
    entry = field(1, b"location") + field(2, location.encode())
    return field(7, field(5, field(8, name.encode()) + field(13, entry) + bytes([14 << 3, 1])))


FILES = {
    "language.onnx": graph_pointing_to("model.safetensors"),
    "language.in-place.onnx": graph_pointing_to("model.safetensors", "i"),
    "vision.onnx": graph_pointing_to("model.safetensors", "v"),
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"template",
    "model.safetensors": bytes(range(200)),
}


def entry(name: str, content: bytes) -> FileEntry:
    return FileEntry(path=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def make_manifest(method: str = "fastv", debias: str = "position padding", **changes: Any) -> Manifest:
    """The manifest of a four-layer LLaVA with 4 x 4 visual tokens; `changes` replace fields of the root.

    The graphs' interface and the cache groups follow from model, plan and image program.
    """
    of_picture = {"visual_tokens": 16, "tower_layers": 2} if method == "illava" else {}
    plan = method_by_name(method).plan(4, 0.3, **of_picture)
    plan = plan.debiased([Debias(name) for name in debias.split()][method == "random" :])
    plan = changes.get("plan") or plan
    model = changes.get("model") or ModelInfo(
        family="llava",
        architecture="LlavaForConditionalGeneration",
        text_model="llama",
        source="handmade",
        layers=4,
        hidden_size=32,
        intermediate_size=48,
        heads=4,
        kv_heads=2,
        head_dim=8,
        vocab_size=64,
        max_positions=512,
    )
    program = changes.get("image_program") or ImageProgram(
        fit=Letterbox(),
        sizes=(FixedSize(height=24, width=24),),
        feed=TileFeed(height=24, width=24),
        tokens=GridTokens(rows=4, columns=4),
    )
    precision = changes.get("precision") or Precision.plain("fp32")
    language = language_interface(model, precision, plan, SequentialPositions())
    vision = vision_interface(model, precision, plan, program)
    layers = [0, *(stage.layer for stage in plan.stages), model.layers]
    fields: dict[str, Any] = {
        "edgeprune_version": "0.1.0",
        "opset": 18,
        "model": model,
        "precision": precision,
        "plan": plan,
        "curve": ExponentialCurve(b=0.01, num_tokens=16) if Debias.POSITION in plan.debias else None,
        "padding_mask": PaddingMask(kind="share" if program.pads else "none", threshold=0.5),
        "language": GraphSpec(file="language.onnx", inputs=language.inputs, outputs=language.outputs),
        "language_forms": {"in-place": "language.in-place.onnx"},
        "vision": GraphSpec(file="vision.onnx", inputs=vision.inputs, outputs=vision.outputs),
        "cache_groups": [CacheGroup(first=a, last=b - 1) for a, b in pairwise(layers)],
        "image_program": program,
        "prompt": Prompt(
            tokenizer="tokenizer.json",
            chat_template="chat_template.jinja",
            image_token="<image>",
            image_token_id=5,
            pad_token_id=0,
            eos_token_ids=(2,),
        ),
        "verification": Verification(checks=(Check(name="prefill logits", value=1e-6, limit=1e-4),)),
        "files": [entry(name, content) for name, content in FILES.items()],
    }
    return Manifest(**{**fields, **changes})


def write_bundle(folder: Path, **changes: Any) -> Path:
    """A bundle that `read_manifest` accepts; its graphs are no graphs."""
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    write_manifest(folder, make_manifest(**changes))
    return folder


def into_hub(bundle: Path, repository: str = "models--me--bundle", blobs: str = "blobs") -> Path:
    """The bundle as the hub's cache keeps it: files by their sums, and links to them in a snapshot."""
    snapshot = bundle.parent / repository / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    (files := bundle.parent / repository / blobs).mkdir()
    for path in bundle.iterdir():
        name = sha256_of(path)
        path.rename(files / name)
        (snapshot / path.name).symlink_to(Path("../..", blobs, name))
    return snapshot


def relist(folder: Path, name: str) -> Manifest:
    """Makes the manifest agree with a changed file, as whoever tampers would."""
    manifest = Manifest.model_validate_json((folder / MANIFEST_NAME).read_text())
    path = folder / name
    files = tuple(
        entry.model_copy(update={"bytes": path.stat().st_size, "sha256": sha256_of(path)})
        if entry.path == name
        else entry
        for entry in manifest.files
    )
    changed = manifest.model_copy(update={"files": files})
    write_manifest(folder, changed)
    return changed
