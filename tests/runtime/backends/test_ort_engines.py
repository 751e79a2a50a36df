"""Engines of ONNX Runtime: which are run, what is said of the others, and that results stay the same."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from edgeprune import processor
from edgeprune.bundle import read_manifest
from edgeprune.ownership import SIDECAR_NAME
from edgeprune.runtime.backends import open_backend, ort_engines
from edgeprune.runtime.backends.ort import Options, OrtBackend
from edgeprune.runtime.backends.ort_engines import Engines, Load, OrtSidecar, Setting, find_engines
from edgeprune.runtime.backends.sidecars import bundle_hash, read_sidecar, this_platform
from tests.hostile import places, with_value, wrong_values
from tests.manifests import entry, graph_pointing_to, write_bundle

CONTENT = {
    "language.in-place.onnx": graph_pointing_to("language.bin"),
    "vision.onnx": graph_pointing_to("vision.bin"),
    "language.bin": b"123",
    "vision.bin": b"4",
}
LOAD = Load(seconds=0.1, cpu_seconds=0.2, resident_bytes=3, anonymous_bytes=2, peak_bytes=4)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


def fitting(bundle: Path) -> OrtSidecar:
    return OrtSidecar(
        edgeprune_version="0.1.0",
        backend="onnxruntime",
        version=onnxruntime.__version__,
        platform=this_platform(),
        bundle_sha256=bundle_hash(read_manifest(bundle)),
        cpu=ort_engines.this_cpu(),
        cpu_features=processor.features(),
        threads=3,
        spinning=False,
        steps=(Setting(threads=3, spinning=False, seconds=0.01),),
        load_of_bundle=LOAD,
        load=LOAD,
        engines={name: entry(name, content) for name, content in CONTENT.items()},
    )


def write(bundle: Path, name: str = "onnxruntime-1.0-cpu", **changes: Any) -> Path:
    folder = bundle / "engines" / name
    folder.mkdir(parents=True)
    for file, content in CONTENT.items():
        (folder / file).write_bytes(content)
    sidecar = fitting(bundle).model_copy(update=changes)
    (folder / SIDECAR_NAME).write_text(sidecar.model_dump_json(), encoding="utf-8")
    return folder


def test_what_fits_is_run(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(bundle, "onnxruntime-0.9-cpu", version="0.9")
    folder = write(bundle)
    files = {"language.in-place.onnx": "language.in-place.onnx", "vision.onnx": "vision.onnx"}
    assert find_engines(bundle) == Engines(folder, files, 3, False)
    assert not caplog.records


def test_a_bundle_without_engines_has_nothing_to_say(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert find_engines(bundle) is None
    assert not caplog.records


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "0.9"}, "built with ONNX Runtime 0.9, and 1."),
        ({"platform": "linux-abacus"}, "built on linux-abacus, and this is"),
        ({"bundle_sha256": "0" * 64}, "built from another state of the bundle"),
        ({"cpu": "Abacus"}, "built on the CPU Abacus, and this is"),
        ({"cpu_features": ("beads",)}, "built on a CPU with other instructions than this one"),
        (
            {"engines": {"language.in-place.onnx": entry("language.in-place.onnx", b"")}},
            "they lack vision.onnx",
        ),
    ],
)
def test_each_misfit_is_one_note_with_the_command(
    bundle: Path, changes: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(bundle, **changes)
    backend = open_backend("onnxruntime")
    assert isinstance(backend, OrtBackend)
    with caplog.at_level(logging.WARNING):
        assert backend.find(bundle) is None
        assert backend.find(bundle) is None
    (record,) = caplog.records
    assert words in record.message
    assert "the bundle's own graphs run instead" in record.message
    assert f"`edgeprune build {bundle} --backend onnxruntime`" in record.message
    sidecar = fitting(bundle).model_copy(update=changes)
    assert len(sidecar.misfits(read_manifest(bundle), onnxruntime.__version__)) == 1


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("language.bin", b"12", "has 2 bytes and should have 3"),
        ("language.bin", b"124", "does not match its SHA-256"),
        (SIDECAR_NAME, b"{", "cannot be read"),
        (SIDECAR_NAME, b'{"schema_version": 99}', "written by a newer edgeprune"),
    ],
)
def test_damaged_engines_are_not_run(
    bundle: Path, file: str, content: bytes, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    (write(bundle) / file).write_bytes(content)
    assert find_engines(bundle) is None
    assert words in caplog.text


def test_weights_in_files_that_nobody_vouches_for(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(
        bundle, engines={name: one for name, one in fitting(bundle).engines.items() if name != "vision.bin"}
    )
    assert find_engines(bundle) is None
    assert "vision.onnx keeps weights in a file that its sidecar does not list" in caplog.text


def test_no_value_of_a_sidecar_can_be_anything(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(bundle) / SIDECAR_NAME
    raw = json.loads(path.read_text())
    assert read_sidecar(path.parent, OrtSidecar) == fitting(bundle)
    for place, value in places(raw):
        for wrong in wrong_values(value):
            caplog.clear()
            path.write_text(json.dumps(with_value(raw, place, wrong)), encoding="utf-8")
            assert find_engines(bundle) is None, place
            assert caplog.text


def test_who_asks_for_threads_gets_them() -> None:
    engines = Engines(Path("e"), {}, threads=3, spinning=False)
    assert engines.chosen(Options()) == Options(threads=3, spinning=False)
    assert engines.chosen(Options(spinning=True)) == Options(threads=3, spinning=True)
    assert engines.chosen(Options(threads=1)) == Options(threads=1)


def test_engines_can_be_left_out(bundle: Path) -> None:
    write(bundle)
    backend = open_backend("onnxruntime", engines=False)
    assert isinstance(backend, OrtBackend)
    assert backend.find(bundle) is None
