"""The sidecar: what does not fit is said in words, with the command that builds it again."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune.errors import BackendError
from edgeprune.manifest import FileEntry
from edgeprune.ownership import SIDECAR_NAME
from edgeprune.runtime.backends.sidecars import bundle_hash, has_engines, this_platform
from edgeprune.runtime.backends.tensorrt.flavours import TENSORRT, TENSORRT_RTX
from edgeprune.runtime.backends.tensorrt.limits import Limits
from edgeprune.runtime.backends.tensorrt.sidecar import (
    EngineFile,
    Here,
    PluginLibrary,
    Sidecar,
    find_engines,
    misfits,
    read_sidecar,
)
from tests.hostile import places, with_value, wrong_values
from tests.runtime.fakes import fake_manifest

MANIFEST = fake_manifest(
    files=(FileEntry(path="b", bytes=1, sha256="b" * 64), FileEntry(path="a", bytes=1, sha256="a" * 64))
)
HERE = Here(TENSORRT_RTX, "1.7.1", "sm89", "RTX 4090")
ENGINE = EngineFile(
    path="x.engine",
    bytes=3,
    sha256=hashlib.sha256(b"123").hexdigest(),
    build_seconds=1.0,
    peak_memory_bytes=5,
)
FITTING = Sidecar(
    edgeprune_version="0.1.0",
    backend="tensorrt-rtx",
    version="1.7.1",
    targets=("sm86", "sm89"),
    gpu=None,
    platform=this_platform(),
    bundle_sha256=bundle_hash(MANIFEST),
    limits=Limits(batch=2, prompt=64, images=1, visual=16, new_tokens=20),
    pruning="function body",
    memory_metric="of a test",
    engines={"language": ENGINE, "vision": ENGINE},
)


def write(bundle: Path, name: str = "tensorrt-rtx-1.7.1-sm89", **changes: Any) -> Path:
    folder = bundle / "engines" / name
    folder.mkdir(parents=True)
    (folder / SIDECAR_NAME).write_text(FITTING.model_copy(update=changes).model_dump_json(), encoding="utf-8")
    (folder / "x.engine").write_bytes(b"123")
    return folder


def test_what_fits_is_found(tmp_path: Path) -> None:
    write(tmp_path, "tensorrt-rtx-1.6.0-sm89", version="1.6.0")
    folder = write(tmp_path)
    assert find_engines(tmp_path, MANIFEST, HERE) == (folder, FITTING)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "1.6.0"}, "built with TensorRT for RTX 1.6.0, and 1.7.1 is installed"),
        ({"targets": ("sm120",)}, "built for sm120, and this GPU is sm89"),
        ({"gpu": "RTX 4060"}, "built for the GPU RTX 4060, and this one is RTX 4090"),
        ({"platform": "linux-aarch64"}, "built on linux-aarch64, and this is "),
        ({"bundle_sha256": "0" * 64}, "built from another state of the bundle"),
    ],
)
def test_each_misfit_is_one_sentence_with_the_command(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    write(tmp_path, **changes)
    with pytest.raises(BackendError, match=words) as caught:
        find_engines(tmp_path, MANIFEST, HERE)
    command = f"edgeprune build {tmp_path} --backend tensorrt-rtx --target sm89 --max-batch 2 --max-prompt 64"
    assert command in str(caught.value)
    assert len(misfits(FITTING.model_copy(update=changes), MANIFEST, HERE)) == 1


def test_no_engine_names_the_command(tmp_path: Path) -> None:
    write(tmp_path)
    there = replace(HERE, flavour=TENSORRT)
    with pytest.raises(BackendError, match=r"has no engine for TensorRT: .*--backend tensorrt --target sm89"):
        find_engines(tmp_path, MANIFEST, there)
    assert has_engines(tmp_path, "tensorrt-rtx")
    assert not has_engines(tmp_path, "tensorrt")


def test_a_truncated_or_missing_engine(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "x.engine").write_bytes(b"12")
    with pytest.raises(BackendError, match=r"x\.engine has 2 bytes and should have 3: .*edgeprune build"):
        find_engines(tmp_path, MANIFEST, HERE)
    (folder / "x.engine").unlink()
    with pytest.raises(BackendError, match=r"lacks x\.engine: .*edgeprune build"):
        find_engines(tmp_path, MANIFEST, HERE)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read"),
        (json.dumps({"schema_version": 99}), "has schema 99, written by a newer edgeprune"),
        (json.dumps({"schema_version": 1, "backend": "abacus"}), "cannot be read"),
    ],
)
def test_a_damaged_sidecar(tmp_path: Path, content: str, words: str) -> None:
    (write(tmp_path) / SIDECAR_NAME).write_text(content, encoding="utf-8")
    with pytest.raises(BackendError, match=f"{SIDECAR_NAME} {words}"):
        find_engines(tmp_path, MANIFEST, HERE)


def test_no_value_of_a_sidecar_can_be_anything(tmp_path: Path) -> None:
    plugin = PluginLibrary(file="x.so", sha256="d" * 64)
    full = FITTING.model_copy(update={"gpu": "RTX 4090", "plugin": plugin, "workspace_bytes": 1 << 20})
    raw = json.loads(full.model_dump_json())
    path = write(tmp_path) / SIDECAR_NAME
    for place, value in places(raw):
        for wrong in wrong_values(value):
            path.write_text(json.dumps(with_value(raw, place, wrong)), encoding="utf-8")
            with pytest.raises(BackendError, match=r"cannot be read|written by a newer") as caught:
                read_sidecar(path.parent)
            assert str(caught.value).isprintable()
    path.write_text(json.dumps(raw), encoding="utf-8")
    assert read_sidecar(path.parent) == full


def test_a_pipe_in_place_of_a_sidecar_does_not_hang(tmp_path: Path) -> None:
    path = write(tmp_path) / SIDECAR_NAME
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BackendError, match=r"is a pipe: expected a regular file"):
        find_engines(tmp_path, MANIFEST, HERE)


def test_an_altered_engine(tmp_path: Path) -> None:
    (write(tmp_path) / "x.engine").write_bytes(b"124")
    with pytest.raises(BackendError, match=r"x\.engine does not match its SHA-256 .*edgeprune build"):
        find_engines(tmp_path, MANIFEST, HERE)


def test_a_path_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    outside = ENGINE.model_copy(update={"path": "../../x"})
    write(tmp_path, engines={"language": ENGINE, "vision": outside})
    with pytest.raises(BackendError, match=r"engines\.vision\.path: .*leads out of the folder"):
        find_engines(tmp_path, MANIFEST, HERE)


def test_folders_still_being_written_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, ".tensorrt-rtx-1.7.1-sm89.edgeprune-partial")
    with pytest.raises(BackendError, match="has no engine"):
        find_engines(tmp_path, MANIFEST, HERE)
    assert not has_engines(tmp_path, "tensorrt-rtx")


def test_the_bundle_hash_is_of_contents_not_of_order() -> None:
    other = MANIFEST.model_copy(update={"files": MANIFEST.files[::-1]})
    assert bundle_hash(other) == bundle_hash(MANIFEST)
    changed = MANIFEST.model_copy(update={"files": MANIFEST.files[:1]})
    assert bundle_hash(changed) != bundle_hash(MANIFEST)
