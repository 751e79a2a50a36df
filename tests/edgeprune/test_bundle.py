"""Refusing a damaged or hostile bundle."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import onnx
import pytest

from edgeprune import bundle as module
from edgeprune.bundle import (
    copy_with_sha256,
    inside,
    read_manifest,
    sha256_of,
)
from edgeprune.errors import BundleError
from edgeprune.interface import PLAN_METADATA
from edgeprune.manifest import MANIFEST_NAME, SCHEMA_VERSION
from tests.manifests import FILES, entry, graph_pointing_to, into_hub, make_manifest, relist, write_bundle

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


def test_a_copy_that_the_file_system_makes_is_hashed_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clone(target: int, request: int, source: int) -> int:
        os.sendfile(target, source, 0, 10)
        os.lseek(target, 0, os.SEEK_SET)
        return 0

    monkeypatch.setattr("fcntl.ioctl", clone)
    (tmp_path / "source").write_bytes(b"0123456789")
    assert copy_with_sha256(tmp_path / "source", tmp_path / "target") == entry("target", b"0123456789")
    assert (tmp_path / "target").read_bytes() == b"0123456789"
    assert not (tmp_path / "target").samefile(tmp_path / "source")


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY])
def test_what_the_file_system_does_not_copy_is_copied(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(target: int, request: int, source: int) -> int:
        os.pwrite(target, b"left of a clone that failed", 0)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.ioctl", fail)
    (tmp_path / "source").write_bytes(b"0123456789")
    assert copy_with_sha256(tmp_path / "source", tmp_path / "target") == entry("target", b"0123456789")
    assert (tmp_path / "target").read_bytes() == b"0123456789"


def test_a_manifest_is_read_as_it_was_written(bundle: Path) -> None:
    assert read_manifest(bundle) == make_manifest()
    assert sorted(path.name for path in bundle.iterdir()) == sorted([*FILES, MANIFEST_NAME])


# Reading


def refused(bundle: Path, message: str, **arguments: Any) -> None:
    with pytest.raises(BundleError, match=message):
        read_manifest(bundle, **arguments)


def test_not_a_folder(tmp_path: Path) -> None:
    for name in ("none", "a\0b", "x" * 300):
        refused(tmp_path / name, "is not a folder: expected a bundle")


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
        ({"cache_groups": [{"first": 0, "last": 3}]}, "the cache groups"),
        ({"padding_mask": {"kind": "share", "threshold": 2}}, "padding_mask.threshold"),
        ({"curve": {"kind": "exponential", "b": 1e9, "num_tokens": 16}}, "curve.exponential"),
    ],
)
def test_a_field_that_cannot_be_is_named(bundle: Path, changes: dict[str, Any], where: str) -> None:
    edit(bundle, **changes)
    refused(bundle, f"is not valid: {where}")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    refused(bundle, f"lacks {name}")


def test_a_truncated_file(bundle: Path) -> None:
    (bundle / "model.safetensors").write_bytes(FILES["model.safetensors"][:-1])
    refused(bundle, "model.safetensors has 199 bytes and should have 200")


@pytest.mark.parametrize("name", FILES)
def test_an_altered_small_file_shows_at_every_load(bundle: Path, name: str) -> None:
    content = bytearray(FILES[name])
    content[-1] ^= 1
    (bundle / name).write_bytes(content)
    refused(bundle, f"{name} does not match its SHA-256 sum")


@pytest.mark.parametrize("limit", ["_QUICK_FILE", "_QUICK_TOTAL"])
def test_an_altered_large_file_shows_when_everything_is_hashed(
    bundle: Path, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, limit, len(FILES["model.safetensors"]) - 1)
    (bundle / "model.safetensors").write_bytes(FILES["model.safetensors"][::-1])
    assert read_manifest(bundle)
    refused(bundle, "model.safetensors does not match its SHA-256 sum", check="hashes")
    (bundle / "tokenizer.json").write_bytes(b"[]")  # of the same size, and small
    refused(bundle, "tokenizer.json does not match its SHA-256 sum")


def test_a_wrong_hash(bundle: Path) -> None:
    edit(bundle, files=[{**listed()[0], "sha256": EMPTY_SHA}, *listed()[1:-1]])
    refused(bundle, "language.onnx does not match its SHA-256 sum", check="hashes")


def test_hashing_tells_every_byte(bundle: Path) -> None:
    told: list[int] = []
    read_manifest(bundle, check="hashes", progress=told.append)
    assert sum(told) == sum(map(len, FILES.values()))


@pytest.mark.parametrize(
    "name", ["language.onnx", "language.in-place.onnx", "tokenizer.json", "chat_template.jinja"]
)
def test_a_file_that_is_used_but_not_listed(bundle: Path, name: str) -> None:
    edit(bundle, files=[item for item in listed()[:-1] if item["path"] != name])
    refused(bundle, f"names the file {name} but does not list it")


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../outside", "", "..\\outside", "a\0b"])
def test_a_path_that_leaves_the_folder(bundle: Path, path: str) -> None:
    with pytest.raises(BundleError, match="names a path outside its folder"):
        inside(bundle, path)
    (bundle.parent / "outside").write_bytes(b"")
    edit(bundle, files=listed(path=path))
    refused(bundle, r"files\.\d+\.path: .*(leads out of the folder|cannot be printed)")


@pytest.mark.parametrize("path", ["{bundle}/extra", "sub/../extra"])
def test_a_path_that_comes_back_is_refused_too(bundle: Path, path: str) -> None:
    (bundle / "extra").write_bytes(b"")
    (bundle / "sub").mkdir()
    edit(bundle, files=listed(path=path.format(bundle=bundle)))
    refused(bundle, r"files\.\d+\.path: .*leads out of the folder")


def test_a_link_that_leaves_the_folder(bundle: Path) -> None:
    (bundle.parent / "outside").write_bytes(b"")
    (bundle / "extra").symlink_to(bundle.parent / "outside")
    edit(bundle, files=listed())
    refused(bundle, "names a path outside its folder")


def test_a_snapshot_of_the_hubs_cache_is_read(bundle: Path) -> None:
    assert read_manifest(into_hub(bundle), check="hashes")


@pytest.mark.parametrize(("repository", "blobs"), [("mine", "blobs"), ("models--me--bundle", "secrets")])
def test_links_as_in_the_hubs_cache_lead_nowhere_else(bundle: Path, repository: str, blobs: str) -> None:
    refused(into_hub(bundle, repository, blobs), "names a path outside its folder")


def test_a_link_of_a_snapshot_to_another_place_is_refused(bundle: Path) -> None:
    snapshot = into_hub(bundle)
    outside = bundle.parent / "outside"
    outside.write_bytes(FILES["tokenizer.json"])
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to(outside)
    refused(snapshot, "names a path outside its folder")
    (snapshot / "tokenizer.json").unlink()
    folder = snapshot.parent.parent / "blobs" / "folder"
    folder.mkdir()
    outside.rename(folder / "tokenizer.json")
    (snapshot / "tokenizer.json").symlink_to(folder / "tokenizer.json")
    refused(snapshot, "names a path outside its folder")


def test_a_manifest_that_is_a_link_out_of_the_folder_is_refused(bundle: Path) -> None:
    (bundle / MANIFEST_NAME).rename(bundle.parent / MANIFEST_NAME)
    (bundle / MANIFEST_NAME).symlink_to(bundle.parent / MANIFEST_NAME)
    refused(bundle, "names a path outside its folder")


@pytest.mark.parametrize("name", [MANIFEST_NAME, *FILES])
def test_a_pipe_in_place_of_a_file_does_not_hang(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    refused(bundle, "lacks|it has no")


@pytest.mark.parametrize("graph", ["language.onnx", "language.in-place.onnx", "vision.onnx"])
@pytest.mark.parametrize(
    "location", ["other.safetensors", "../outside", "/etc/passwd", "./model.safetensors", ""]
)
def test_weights_that_stand_in_no_list_are_refused(bundle: Path, graph: str, location: str) -> None:
    (bundle / "other.safetensors").write_bytes(b"\0" * 200)
    (bundle / graph).write_bytes(graph_pointing_to(location))
    edit(bundle, files=[entry(name, (bundle / name).read_bytes()).model_dump() for name in FILES])
    refused(bundle, f"{graph} keeps weights in .*does not list")


def test_an_entry_that_was_taken_out_of_the_list_is_missed(bundle: Path) -> None:
    edit(bundle, files=[item for item in listed()[:-1] if item["path"] != "model.safetensors"])
    refused(
        bundle, r"keeps weights in model\.safetensors, which edgeprune\.json does not list", check="hashes"
    )


def test_a_file_that_is_listed_twice(bundle: Path) -> None:
    edit(bundle, files=[*listed()[:-1], listed()[0]])
    refused(bundle, "files lists a path twice")


def test_endless_lists_are_refused_at_once(bundle: Path) -> None:
    entries = listed()[:-1] + [{"path": f"x/{n}", "bytes": 0, "sha256": EMPTY_SHA} for n in range(100_000)]
    edit(bundle, files=entries)
    began = time.monotonic()
    refused(bundle, "is not valid: files: ")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"schema_version": 1, "schema_version": 1}', "the key 'schema_version' twice"),
        ('{"schema_version": NaN}', "holds NaN"),
        ('{"schema_version": -Infinity}', "holds -Infinity"),
        ('{"schema_version": 1e999}', "beyond the range"),
        ('{"a": ' * 50_000, "nested too deeply|Expecting"),
        ('{"schema_version": ' + "9" * 5000 + "}", "digits"),
        (" " * ((64 << 20) + 1), "larger than 64 MB"),
    ],
    ids=["a key twice", "NaN", "Infinity", "1e999", "deep", "long number", "large"],
)
def test_json_that_hides_something_is_refused(bundle: Path, text: str, why: str) -> None:
    (bundle / MANIFEST_NAME).write_text(text)
    refused(bundle, f"cannot be read \\(.*({why})")


def test_a_message_shows_nothing_that_acts_on_the_terminal(bundle: Path) -> None:
    edit(bundle, **{"\x1b[31m\nerror: \u202e": 1})
    with pytest.raises(BundleError) as caught:
        read_manifest(bundle)
    assert str(caught.value).isprintable()
    assert r"\x1b[31m\nerror: \u202e" in str(caught.value)


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


@pytest.mark.parametrize("stated", ["other", "no plan", "same", None])
def test_a_graph_of_another_plan_is_refused(tmp_path: Path, stated: str | None) -> None:
    folder = write_bundle(tmp_path / "bundle")
    plan = read_manifest(folder).plan
    texts = {"other": plan.debiased(()).model_dump_json(), "no plan": "{", "same": plan.model_dump_json()}
    if stated is not None:
        model = onnx.load(folder / "language.onnx", load_external_data=False)
        onnx.helper.set_model_props(model, {PLAN_METADATA: texts[stated]})
        onnx.save(model, folder / "language.onnx")
        relist(folder, "language.onnx")
    if stated in ("other", "no plan"):
        with pytest.raises(BundleError, match=r"was made by another plan than edgeprune\.json says"):
            read_manifest(folder)
    else:
        assert read_manifest(folder).plan == plan
