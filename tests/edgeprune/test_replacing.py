"""Writing a folder in one piece: at every moment the output is whole, and nobody's files go."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from edgeprune import files, replacing, scratch
from edgeprune.bundle import read_manifest
from edgeprune.errors import OutputError
from edgeprune.manifest import MANIFEST_NAME
from edgeprune.ownership import BUNDLE_FOLDER, ENGINE_FOLDER, SIDECAR_NAME, Kind
from edgeprune.replacing import need_space, writing_to
from edgeprune.scratch import PARTIAL, SET_ASIDE
from tests.manifests import FILES, write_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


@pytest.fixture(params=["one step", "two steps"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without the system's exchange of two folders."""
    if request.param == "two steps":
        monkeypatch.setattr(replacing, "_renameat2", lambda: None)
    return str(request.param)


def write_half(output: Path, error: BaseException, force: bool = False) -> None:
    """A folder whose writing ends in an error."""
    with writing_to(output, force) as partial:
        (partial / "file").write_text("half")
        raise error


def not_begun(output: Path, message: str, **arguments: Any) -> None:
    """Refused before anything is written."""
    with pytest.raises(OutputError, match=message), writing_to(output, **arguments):
        raise AssertionError("the block must not run")


def replace(output: Path, **arguments: Any) -> None:
    with writing_to(output, force=True, **arguments) as partial:
        (partial / "new").write_text("x")


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*"))


def add_engines(bundle: Path, name: str = "tensorrt-10.9-sm89") -> Path:
    """A folder of engines as `build` writes it."""
    folder = bundle / "engines" / name
    folder.mkdir(parents=True)
    listed = {which: {"path": f"{which}.engine"} for which in ("language", "vision")}
    (folder / SIDECAR_NAME).write_text(json.dumps({"schema_version": 1, "engines": listed}))
    for file in ("language.engine", "vision.engine", "language.runtime.cache"):
        (folder / file).write_bytes(b"engine")
    return folder


@contextmanager
def another_process(code: str, *arguments: str) -> Iterator[None]:
    """A Python process that has printed a line, and goes on until the block ends; then it is killed."""
    command = [sys.executable, "-c", f"{code}\nprint('ready', flush=True)\ninput()", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.kill()


WRITING = """
import sys
from edgeprune.replacing import writing_to
context = writing_to(sys.argv[1], force=True)
folder = context.__enter__()
(folder / "large").write_bytes(bytes(1000))
"""


# What appears


def test_the_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    output = tmp_path / "new" / "bundle"
    with writing_to(output) as partial:
        assert partial.parent == output.parent
        assert not output.exists()
        (partial / "file").write_text("x")
    assert (output / "file").read_text() == "x"
    os.umask(mask := os.umask(0))
    assert stat.S_IMODE(output.stat().st_mode) == 0o777 & ~mask
    assert not hidden(tmp_path)


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), SystemExit(143)])
def test_a_block_that_fails_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        write_half(tmp_path / "bundle", error)
    assert not list(tmp_path.iterdir())


def test_everything_is_flushed_before_it_is_put_in_place(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, steps: str
) -> None:
    flushed: list[tuple[int, bool]] = []
    flush = os.fsync

    def seen(descriptor: int) -> None:
        flushed.append((os.fstat(descriptor).st_ino, (bundle / "new").exists()))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    with writing_to(bundle, force=True) as partial:
        (partial / "new").write_text("x")
        (partial / "sub").mkdir()
        (partial / "sub" / "file").write_text("x")
        inside = {path.stat().st_ino for path in (partial, *partial.rglob("*"))}
    assert {inode for inode, in_place in flushed if not in_place} >= inside
    assert (bundle.parent.stat().st_ino, True) in flushed


# What is replaced


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300])
def test_a_name_that_no_folder_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="choose another `output`"), writing_to(tmp_path / name):
        raise AssertionError("nothing shall be written")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_needs_force(bundle: Path) -> None:
    not_begun(bundle, "bundle exists already.*`output`.*`force=True`")
    assert read_manifest(bundle, check="hashes")


def test_force_replaces_a_bundle(bundle: Path, steps: str) -> None:
    with writing_to(bundle, force=True) as partial:
        (partial / "new").write_text("x")
        assert read_manifest(bundle)
    assert [path.name for path in bundle.iterdir()] == ["new"]
    assert not hidden(bundle.parent)


def test_what_stands_at_the_output_is_never_gone(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if replacing._renameat2() is None:
        pytest.skip("this system cannot exchange two folders")
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, target: pytest.fail(f"{self} was renamed"))
    replace(bundle)
    monkeypatch.setattr(Path, "rename", rename)
    assert [path.name for path in bundle.iterdir()] == ["new"]


def test_force_replaces_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    replace(tmp_path / "bundle")
    assert (tmp_path / "bundle/new").exists()


def test_a_link_to_a_bundle_stays_a_link(bundle: Path) -> None:
    link = bundle.parent / "link"
    link.symlink_to(bundle)
    replace(link)
    assert link.is_symlink()
    assert [path.name for path in bundle.iterdir()] == ["new"]
    assert not hidden(bundle.parent)


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_force_replaces_nothing_but_bundles(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "precious"
    if kind == "folder":
        output.mkdir()
        (output / "thesis.tex").write_text("x")
    elif kind == "file":
        output.write_text("x")
    else:
        output.symlink_to(tmp_path / "nowhere")
    not_begun(output, "was not written by edgeprune", force=True)
    assert output.is_symlink() or output.exists()


@pytest.mark.parametrize(
    "marker",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        "{}",
        "\xff\xfe",
        "[" * 100_000,
        '{"schema_version": 1}',
        '{"schema_version": true, "files": []}',
        '{"schema_version": "1", "files": []}',
        '{"schema_version": 1, "files": [1]}',
        '{"schema_version": 1, "files": [{"path": null}]}',
        '{"schema_version": 1, "files": {"thesis.tex": 1}}',
    ],
)
def test_a_file_named_as_the_manifest_makes_no_bundle(tmp_path: Path, marker: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    (tmp_path / "out" / MANIFEST_NAME).write_bytes(marker.encode("latin-1"))
    not_begun(tmp_path / "out", f"was not written by edgeprune .*no {MANIFEST_NAME} that lists", force=True)
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_a_pipe_as_manifest_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / MANIFEST_NAME)
    not_begun(tmp_path / "out", "was not written by edgeprune", force=True)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("notes.txt", r"\(notes.txt\)"),
        ("sub/photo.jpg", r"\(sub/\)"),
        ("sub/", r"\(sub/\)"),
        ("engines/notes.txt", r"\(engines/notes.txt\)"),
        ("engines/mine/language.engine", r"\(engines/mine/\)"),
        ("engines/tensorrt-10.9-sm89/notes.txt", r"\(engines/tensorrt-10.9-sm89/notes.txt\)"),
    ],
)
def test_what_no_list_accounts_for_is_named_and_stays(bundle: Path, path: str, named: str) -> None:
    add_engines(bundle)
    added = bundle / path
    if path.endswith("/"):
        added.mkdir()
    else:
        added.parent.mkdir(parents=True, exist_ok=True)
        added.write_text("mine")
    not_begun(bundle, f"holds what edgeprune did not write {named}: move it elsewhere", force=True)
    assert added.exists()
    assert read_manifest(bundle, check="hashes")


def test_of_many_foreign_files_some_are_named(bundle: Path) -> None:
    for number in range(8):
        (bundle / f"note-{number}").touch()
    not_begun(bundle, "note-0, note-1, note-2, note-3, note-4 and 3 more", force=True)


def test_a_link_in_a_bundle_is_foreign_and_what_it_leads_to_stays(bundle: Path) -> None:
    (bundle.parent / "mine").mkdir()
    (bundle.parent / "mine" / SIDECAR_NAME).write_text('{"schema_version": 1, "engines": {}}')
    (bundle / "engines").symlink_to(bundle.parent / "mine")
    not_begun(bundle, r"did not write \(engines\)", force=True)
    assert (bundle.parent / "mine" / SIDECAR_NAME).exists()


def test_a_file_that_comes_while_it_is_written_is_seen(bundle: Path, steps: str) -> None:
    with pytest.raises(OutputError, match=r"did not write \(notes.txt\)"), writing_to(bundle, force=True):
        (bundle / "notes.txt").write_text("mine")
    assert (bundle / "notes.txt").exists()
    assert read_manifest(bundle, check="hashes")
    assert not hidden(bundle.parent)


def test_links_that_the_manifest_lists_are_replaced_and_not_followed(bundle: Path) -> None:
    blobs = bundle.parent / "blobs"
    blobs.mkdir()
    for name in FILES:
        (bundle / name).rename(blobs / name)
        (bundle / name).symlink_to(blobs / name)
    replace(bundle)
    assert sorted(path.name for path in blobs.iterdir()) == sorted(FILES)


def test_engines_go_with_their_bundle_and_it_is_said(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_engines(bundle)
    add_engines(bundle, "tensorrt-rtx-1.1-sm89")
    replace(bundle)
    assert [path.name for path in bundle.iterdir()] == ["new"]
    assert "the engines in" in caplog.text
    assert "tensorrt-10.9-sm89, tensorrt-rtx-1.1-sm89" in caplog.text
    assert "build them again" in caplog.text


def test_a_bundle_without_engines_is_replaced_in_silence(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (bundle / "engines").mkdir()  # as a first build that failed leaves it
    replace(bundle)
    assert not caplog.text


def test_engines_are_replaced_by_their_own_list(bundle: Path) -> None:
    folder = add_engines(bundle)
    replace(folder, kind=ENGINE_FOLDER)
    assert [path.name for path in folder.iterdir()] == ["new"]
    add_engines(bundle, "other")
    (bundle / "engines" / "other" / "notes.txt").write_text("mine")
    not_begun(bundle / "engines" / "other", r"did not write \(notes.txt\)", force=True, kind=ENGINE_FOLDER)


@pytest.mark.parametrize(
    ("kind", "advice"),
    [(BUNDLE_FOLDER, "choose another `output`"), (ENGINE_FOLDER, "build in a copy of the bundle elsewhere")],
)
def test_no_parameter_is_named_that_the_caller_has_not(tmp_path: Path, kind: Kind, advice: str) -> None:
    with writing_to(tmp_path / "new", kind=kind):
        not_begun(tmp_path / "new", f"wait until it ends, or {advice}", kind=kind)
    not_begun(tmp_path / "new", f"exists already: {advice}", kind=kind)
    with pytest.raises(OutputError, match=f"free some space or {advice}"):
        need_space(tmp_path, 1 << 60, kind)


def test_a_failed_replacement_keeps_the_earlier_bundle(bundle: Path) -> None:
    with pytest.raises(RuntimeError):
        write_half(bundle, RuntimeError(), force=True)
    assert read_manifest(bundle, check="hashes")
    assert not hidden(bundle.parent)


@pytest.mark.parametrize("error", [OSError(errno.EBUSY, "busy"), KeyboardInterrupt()])
def test_a_rename_that_fails_brings_the_earlier_bundle_back(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    rename = Path.rename

    def fails_for_the_new_one(self: Path, target: Path) -> Path:
        if self.name.endswith(PARTIAL):
            raise error
        return rename(self, target)

    monkeypatch.setattr(replacing, "_renameat2", lambda: None)
    monkeypatch.setattr(Path, "rename", fails_for_the_new_one)
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected), writing_to(bundle, force=True):
        pass
    assert read_manifest(bundle, check="hashes")
    assert not hidden(bundle.parent)


def test_an_exchange_that_fails_is_an_error_and_one_that_cannot_be_is_done_in_two_steps(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(code: int) -> Any:
        monkeypatch.setattr("ctypes.get_errno", lambda: code)
        return lambda: lambda *_: -1

    monkeypatch.setattr(replacing, "_renameat2", failing(errno.EACCES))
    with pytest.raises(OutputError, match=r"cannot be put in place \(Permission denied\)"):
        replace(bundle)
    assert read_manifest(bundle, check="hashes")
    monkeypatch.setattr(replacing, "_renameat2", failing(errno.EINVAL))  # NFS, for one
    replace(bundle)
    assert [path.name for path in bundle.iterdir()] == ["new"]


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    context = writing_to(output)
    context.__enter__()
    output.mkdir()
    (output / "theirs").write_text("x")
    with pytest.raises(OutputError, match="made by something else meanwhile"):
        context.__exit__(None, None, None)
    assert (output / "theirs").exists()
    assert not hidden(tmp_path)


def test_a_mount_point_is_refused_before_the_work(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: path == bundle)
    not_begun(bundle, "is a mount point", force=True)


def test_what_cannot_be_removed_of_the_replaced_one_is_said(
    bundle: Path, steps: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda path, **options: None)
        replace(bundle)
    (left,) = hidden(bundle.parent)
    assert f"what is left of it lies in {bundle.parent / left}" in caplog.text
    replace(bundle.parent / "other")
    assert not hidden(bundle.parent)


# What others left, and what they use


def test_a_killed_write_is_removed_by_the_next_one_in_the_folder(tmp_path: Path) -> None:
    with another_process(WRITING, str(tmp_path / "killed")):
        pass
    assert hidden(tmp_path)
    with writing_to(tmp_path / "other"):
        pass
    assert not hidden(tmp_path)


def test_a_write_that_still_runs_is_left_alone_and_refuses_a_second(tmp_path: Path) -> None:
    with another_process(WRITING, str(tmp_path / "out")):
        with writing_to(tmp_path / "other"):
            pass
        (running,) = tmp_path.glob(f".*{PARTIAL}")
        assert (running / "large").stat().st_size == 1000
        not_begun(tmp_path / "out", "another run is writing to .*out: wait until it ends")
        assert running.is_dir()
    with writing_to(tmp_path / "out"):
        pass
    assert not hidden(tmp_path)


def test_a_bundle_whose_engines_are_being_built_is_not_replaced(bundle: Path) -> None:
    with another_process(WRITING, str(bundle / "engines" / "tensorrt-10.9-sm89")):
        not_begun(bundle, "another run is writing to .*bundle", force=True)
    replace(bundle)
    assert [path.name for path in bundle.iterdir()] == ["new"]


def test_what_a_killed_build_left_in_engines_is_removed_by_the_next(bundle: Path) -> None:
    with another_process(WRITING, str(bundle / "engines" / "one")):
        pass
    with writing_to(bundle / "engines" / "two"):
        pass
    assert not hidden(bundle)


def test_a_bundle_that_was_set_aside_when_the_process_was_killed_comes_back(bundle: Path) -> None:
    bundle.rename(bundle.with_name(f".{bundle.name}{SET_ASIDE}"))
    with writing_to(bundle.parent / "other"):
        pass
    assert read_manifest(bundle, check="hashes")
    not_begun(bundle, "exists already")


def test_a_bundle_set_aside_whose_successor_is_in_place_is_removed(bundle: Path) -> None:
    write_bundle(bundle.with_name(f".{bundle.name}{SET_ASIDE}"))
    with writing_to(bundle.parent / "other"):
        pass
    assert not hidden(bundle.parent)
    assert read_manifest(bundle)


@pytest.mark.parametrize(
    "name", [".bundle.partial", f"x{PARTIAL}", PARTIAL, SET_ASIDE, ".old", f"link{PARTIAL}"]
)
def test_what_others_name_alike_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with writing_to(tmp_path / "other"):
        pass
    assert (tmp_path / name).exists()


def test_a_link_named_as_scratch_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    (tmp_path / f".x{PARTIAL}").symlink_to(tmp_path / "mine")
    with writing_to(tmp_path / "other"):
        pass
    assert (tmp_path / "mine" / "file").exists()


def test_without_locks_everything_is_written_and_nothing_swept(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = bundle.parent / f".left{PARTIAL}"
    left.mkdir()
    monkeypatch.setattr(scratch, "fcntl", None)
    replace(bundle)
    assert [path.name for path in bundle.iterdir()] == ["new"]
    assert hidden(bundle.parent) == [left.name]


# What cannot be written


def test_what_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f".out{PARTIAL}").symlink_to(tmp_path)
    monkeypatch.setattr(scratch, "_PAUSE", 0)
    not_begun(tmp_path / "out", f"cannot be written to .*out{PARTIAL} is in the way: remove it")


def test_a_name_that_is_too_long_is_said(tmp_path: Path) -> None:
    for force in (False, True):
        not_begun(tmp_path / ("n" * 250), "cannot be written to .File name too long", force=force)
        not_begun(tmp_path / ("n" * 300), "cannot be written to .File name too long", force=force)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EACCES])
def test_a_folder_that_cannot_be_flushed_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    fsync = os.fsync

    def of_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, "no folders")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files)
    replace(tmp_path / "out")
    assert (tmp_path / "out" / "new").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, code: int) -> None:
    with pytest.raises(OutputError, match=r"disk of .* is full"):
        write_half(tmp_path / "bundle", OSError(code, "no space"))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_at_the_flush_is_said(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"disk of .* is full"):
        replace(bundle)
    assert read_manifest(bundle, check="hashes")


def test_another_error_of_a_file_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_half(tmp_path / "bundle", FileNotFoundError("a bug"))


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(self: Path, *arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    # Not by the folder's rights, which do not hold for root.
    monkeypatch.setattr(Path, "mkdir", refuses)
    not_begun(tmp_path / "bundle", r"cannot be written to \(Permission denied\)")


def test_a_place_below_a_file_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    not_begun(tmp_path / "file" / "bundle", "cannot be made")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize(
    ("free", "wanted", "words"),
    [
        (1_500_000_000, 2_000_000_000, "2 GB are needed and 1.5 GB are free, 500 MB too little"),
        (1_000_000, 2_300_000, "2.3 MB are needed and 1 MB are free, 1.3 MB too little"),
        (0, 12, "12 B are needed and 0 B are free"),
    ],
)
def test_too_little_space_is_said_in_sensible_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, wanted: int, words: str
) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(free))
    need_space(tmp_path, free)
    with pytest.raises(OutputError, match=words):
        need_space(tmp_path, wanted)


def test_new_folders_on_the_way_are_flushed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(files, "flush", flushed.append)
    files.make_folder(tmp_path / "a" / "b")
    assert flushed == [tmp_path, tmp_path / "a"]
