"""Refusing a damaged or hostile bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeprune import bundle as module
from edgeprune.bundle import (
    copy_with_sha256,
    inside,
    read_manifest,
    sha256_of,
)
from edgeprune.errors import BundleError
from edgeprune.manifest import MANIFEST_NAME, SCHEMA_VERSION
from tests.manifests import FILES, entry, make_manifest, write_bundle

EMPTY_SHA = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


def edit(bundle: Path, **changes: Any) -> None:
    """Changes fields of the manifest's root, as a damaged or hostile one may have them."""
    path = bundle / MANIFEST_NAME
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, **changes}))


def listed(**replaced: Any) -> list[dict[str, Any]]:
    """The manifest's file entries, with one more whose fields are given."""
    entries = [entry(name, content).model_dump() for name, content in FILES.items()]
    return [*entries, {"path": "extra", "bytes": 0, "sha256": EMPTY_SHA, **replaced}]


# Hashing


def test_hash_of_a_file_is_sha256_and_progress_adds_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK", 4)
    path = tmp_path / "abc"
    path.write_bytes(b"abc" * 3)
    told: list[int] = []
    assert sha256_of(path, told.append) == "76b99ab4be8521d78b19bcff7d1078aabeb477bd134f404094c92cd39f051c3e"
    assert told == [4, 4, 1]


def test_a_copy_is_hashed_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 3)
    (tmp_path / "source").write_bytes(b"0123456789")
    told: list[int] = []
    copied = copy_with_sha256(tmp_path / "source", tmp_path / "target", told.append)
    assert (tmp_path / "target").read_bytes() == b"0123456789"
    assert copied == entry("target", b"0123456789")
    assert sum(told) == copied.bytes


def test_a_manifest_is_read_as_it_was_written(bundle: Path) -> None:
    assert read_manifest(bundle) == make_manifest()
    assert sorted(path.name for path in bundle.iterdir()) == sorted([*FILES, MANIFEST_NAME])


# Reading


def refused(bundle: Path, message: str, **arguments: Any) -> None:
    with pytest.raises(BundleError, match=message):
        read_manifest(bundle, **arguments)


def test_not_a_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none", "is not a folder: expected a bundle")


def test_a_folder_without_manifest(tmp_path: Path) -> None:
    refused(tmp_path, f"is not a bundle: it has no {MANIFEST_NAME}")


@pytest.mark.parametrize("text", ["{", "\xff\xfe", "", "[" * 100_000], ids=["cut", "bytes", "empty", "deep"])
def test_a_manifest_that_is_not_json(bundle: Path, text: str) -> None:
    (bundle / MANIFEST_NAME).write_bytes(text.encode("latin-1"))
    refused(bundle, "cannot be read")


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"schema_version": "1"}', '{"schema_version": true}'])
def test_json_that_is_no_manifest(bundle: Path, text: str) -> None:
    (bundle / MANIFEST_NAME).write_text(text)
    refused(bundle, "names no schema_version")


def test_a_newer_schema_says_so_before_anything_else(bundle: Path) -> None:
    edit(bundle, schema_version=SCHEMA_VERSION + 1, model="of another shape")
    refused(bundle, f"schema {SCHEMA_VERSION + 1}, written by a newer edgeprune.*upgrade")


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"opset": "many"}, "opset"),
        ({"surprise": 1}, "surprise"),
        ({"max_visual_tokens": 0}, "max_visual_tokens"),
        ({"cache_groups": [{"first": 0, "last": 3}]}, "its root"),
        ({"padding_mask": {"kind": "share", "threshold": 2}}, "padding_mask.threshold"),
        ({"curve": {"kind": "exponential", "b": 1e9, "num_tokens": 16}}, "curve.exponential"),
    ],
)
def test_a_field_that_cannot_be_is_named(bundle: Path, changes: dict[str, Any], where: str) -> None:
    edit(bundle, **changes)
    refused(bundle, f"is not valid at {where}")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    refused(bundle, f"lacks {name}")


def test_a_truncated_file(bundle: Path) -> None:
    (bundle / "model.safetensors").write_bytes(FILES["model.safetensors"][:-1])
    refused(bundle, "model.safetensors has 199 bytes and should have 200")


def test_an_altered_file_shows_by_its_hash_only(bundle: Path) -> None:
    (bundle / "model.safetensors").write_bytes(FILES["model.safetensors"][::-1])
    assert read_manifest(bundle)
    refused(bundle, "model.safetensors does not match its SHA-256 sum", check="hashes")


def test_a_wrong_hash(bundle: Path) -> None:
    edit(bundle, files=[{**listed()[0], "sha256": EMPTY_SHA}, *listed()[1:-1]])
    refused(bundle, "language.onnx does not match its SHA-256 sum", check="hashes")


def test_hashing_tells_every_byte(bundle: Path) -> None:
    told: list[int] = []
    read_manifest(bundle, check="hashes", progress=told.append)
    assert sum(told) == sum(map(len, FILES.values()))


@pytest.mark.parametrize("name", ["language.onnx", "tokenizer.json", "chat_template.jinja"])
def test_a_file_that_is_used_but_not_listed(bundle: Path, name: str) -> None:
    edit(bundle, files=[item for item in listed()[:-1] if item["path"] != name])
    refused(bundle, f"names the file {name} but does not list it")


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../outside", "", "..\\outside", "a\0b"])
def test_a_path_that_leaves_the_folder(bundle: Path, path: str) -> None:
    (bundle.parent / "outside").write_bytes(b"")
    edit(bundle, files=listed(path=path))
    refused(bundle, "names a path outside its folder")


@pytest.mark.parametrize("path", ["{bundle}/extra", "sub/../extra"])
def test_a_path_that_comes_back_is_refused_too(bundle: Path, path: str) -> None:
    (bundle / "extra").write_bytes(b"")
    (bundle / "sub").mkdir()
    edit(bundle, files=listed(path=path.format(bundle=bundle)))
    refused(bundle, "names a path outside its folder")


def test_a_link_that_leaves_the_folder(bundle: Path) -> None:
    (bundle.parent / "outside").write_bytes(b"")
    (bundle / "extra").symlink_to(bundle.parent / "outside")
    edit(bundle, files=listed())
    refused(bundle, "names a path outside its folder")


def test_a_link_that_leads_in_a_circle(bundle: Path) -> None:
    (bundle / "extra").symlink_to(bundle / "extra")
    edit(bundle, files=listed())
    refused(bundle, "circle|lacks extra")


def test_paths_inside_are_fine(bundle: Path) -> None:
    assert inside(bundle, "engines/x/language.engine") == bundle / "engines/x/language.engine"
    (bundle / "link").symlink_to(bundle / "language.onnx")
    assert inside(bundle, "link").read_bytes() == FILES["language.onnx"]


def test_the_bundle_itself_may_be_reached_by_a_link(bundle: Path) -> None:
    (bundle.parent / "link").symlink_to(bundle)
    assert read_manifest(bundle.parent / "link", check="hashes")
