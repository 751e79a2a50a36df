"""`edgeprune run`: answer, statistics, and every mistake with images and prompts."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from edgeprune.manifest import MANIFEST_NAME, Generation
from edgeprune.runtime.images import MAX_PIXELS
from tests.conftest import SAMPLE_MODEL
from tests.edgeprune.cli.conftest import Cli, snapshot
from tests.edgeprune.cli.fakes import FakeModel, make_reply
from tests.manifests import relist, write_bundle

PICTURE = SAMPLE_MODEL.parent / "pictures" / "wide.png"
SAMPLING = list(Generation.model_fields)
ASK = ("--image", PICTURE, "--prompt", "what shape is green")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()
    monkeypatch.setattr("edgeprune.runtime.load", fake.load, raising=False)
    return fake


def test_the_answer_streams_to_stdout_and_the_statistics_to_stderr(
    cli: Cli, model: FakeModel, bundle: Path
) -> None:
    result = cli("run", bundle, "--image", "a.png", "--prompt", "what?")
    assert (result.code, result.out) == (0, "a red ring\n")
    for text in (
        "16, kept 5 (padding among them: 0)",
        "25 in the prompt, 4 generated (stop)",
        "after 6.4 ms (vision 2 ms, prefill 3 ms)",
        "250 ms, 1234 tokens/s",
        "4.1 kB",
        "123 MB (resident set)",
        "fake",
    ):
        assert text in result.err


def test_an_unpruned_reply_speaks_of_no_kept_tokens(cli: Cli, model: FakeModel, bundle: Path) -> None:
    model.reply = make_reply(pruned=False)
    assert "visual tokens  16\n" in cli("run", bundle, "--prompt", "what?").err


def test_what_the_vision_tower_leaves_is_told(cli: Cli, model: FakeModel, bundle: Path) -> None:
    model.reply = make_reply(tower_tokens=8)
    assert "16, 8 left by the vision tower, kept 5" in cli("run", bundle, "--prompt", "what?").err


def test_json_is_the_reply_and_nothing_is_streamed(cli: Cli, model: FakeModel, bundle: Path) -> None:
    result = cli("run", bundle, "--prompt", "what?", "--json")
    assert json.loads(result.out) == json.loads(
        json.dumps({"format": "edgeprune.run/1", "backend": "fake", "engines": None, **model.reply.to_dict()})
    )
    assert result.err == ""


def test_a_system_message_stands_in_front(cli: Cli, model: FakeModel, bundle: Path) -> None:
    cli("run", bundle, "--image", "a.png", "--prompt", "what?", "--system", "Be brief.")
    assert model.asked is not None
    assert model.asked[0] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
    ]


def test_a_conversation_goes_on_until_the_input_ends(
    cli: Cli, model: FakeModel, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\nand how large?\n  \n"))
    given = ("--image", "a.png", "--prompt", "what?", "--system", "Be brief.", "--keep", "0.2", "--seed", "3")
    result = cli("run", bundle, "--chat", *given, "--reselect")
    assert (result.code, result.out) == (0, "a red ring\na red ring\n")
    assert "> " not in result.err
    assert model.questions == [("what?", ["a.png"]), ("and how large?", [])]
    assert model.talking is not None
    assert model.talking["system"] == "Be brief."
    assert (model.talking["keep"], model.talking["reselect"]) == (0.2, True)
    assert model.asked is not None
    assert model.asked[2]["seed"] == 3
    alone = cli("run", bundle, "--prompt", "what?", "--reselect").message
    assert "'--reselect': it is of conversations: give --chat, too" in alone


def test_what_was_read_before_is_told(cli: Cli, model: FakeModel, bundle: Path) -> None:
    statistics = replace(model.reply.statistics, reused_tokens=20)
    model.reply = replace(model.reply, statistics=statistics)
    assert (
        "25 in the prompt, 20 of them read before, 4 generated" in cli("run", bundle, "--prompt", "what?").err
    )


@pytest.mark.parametrize("content", [b"caf\xe9?\n", b"fine?\n\xff\n"])
def test_a_line_of_a_conversation_that_is_not_text(
    cli: Cli, model: FakeModel, bundle: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="latin-1"))
    result = cli("run", bundle, "--chat")
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith("error: the question on stdin is not text")


def test_a_question_is_asked_about_each_image_of_a_folder(
    cli: Cli, model: FakeModel, bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    names = ["a.png", "b.JPG", "c\x1b[2J.png", "c.jpeg", "d.webp", "e.bmp", "f.tif", "g.TIFF", "h.gif"]
    for name in (*names, "notes.txt"):
        (folder / name).write_bytes(b"")
    result = cli("run", bundle, "--images", folder, "--prompt", "what?")
    shown = [name.replace("\x1b", r"\x1b") for name in names]  # a name must not steer the terminal
    assert (result.code, result.out) == (0, "".join(f"{name}: a red ring\n" for name in shown))
    found = json.loads(cli("run", bundle, "--images", folder, "--prompt", "what?", "--json").out)
    assert [Path(reply["image"]).name for reply in found["replies"]] == names


def test_an_image_that_cannot_be_read_does_not_stop_the_others(
    cli: Cli, sample_bundle: Path, tmp_path: Path
) -> None:
    shutil.copyfile(PICTURE, tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes(b"no image")
    result = cli("run", sample_bundle, "--images", tmp_path, "--prompt", "what shape is green")
    assert result.code == 1
    assert result.out.startswith("a.png: \nb.png: ")
    assert "left out: " in result.err
    assert result.err.splitlines()[-1].startswith("error: 1 of 2 images could not be asked about")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "'--prompt': expected a question, or --chat"),
        (
            ["--images", "d", "--image", "a.png", "--prompt", "x"],
            "'--images': it asks about one image",
        ),
        (["--images", "d", "--chat"], "'--images': it asks about one image"),
        (["--chat", "--json"], "'--chat': --draw and --json do not go with a conversation"),
        (["--chat", "--prompt", "-"], "'--prompt': with --chat every line of stdin is a question"),
        (["--images", "nowhere", "--prompt", "x"], "nowhere is not a folder"),
    ],
)
def test_ways_to_ask_that_do_not_go_together(
    cli: Cli, model: FakeModel, bundle: Path, options: list[str], message: str
) -> None:
    assert message in cli("run", bundle, *options).message
    assert model.loaded is None


def test_a_folder_without_images(cli: Cli, model: FakeModel, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "has no images" in cli("run", bundle, "--images", tmp_path / "empty", "--prompt", "x").message


def test_the_prompt_can_come_from_stdin(
    cli: Cli, model: FakeModel, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("what\nis it?\n"))
    cli("run", bundle, "--prompt", "-")
    assert model.asked is not None
    assert model.asked[0] == "what\nis it?"


@pytest.mark.parametrize(("content", "message"), [(b" \n", "is empty"), (b"\xff\xfe", "is not text")])
def test_a_prompt_on_stdin_that_is_none(
    cli: Cli, model: FakeModel, bundle: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    assert f"the prompt on stdin {message}" in cli("run", bundle, "--prompt", "-").message


def test_a_drawing_is_refused_before_the_model_is_loaded(
    cli: Cli, model: FakeModel, bundle: Path, tmp_path: Path
) -> None:
    unpruned = write_bundle(tmp_path / "unpruned", method="none")
    mistakes = [
        (unpruned, ["--image", "a.png"], tmp_path / "kept.png", "the bundle's language model drops nothing"),
        (bundle, [], tmp_path / "kept.png", "no image to draw"),
        (bundle, ["--image", "a.png"], tmp_path / "kept.doc", "does not end as an image's name"),
        (bundle, ["--image", "a.png"], tmp_path / "none" / "kept.png", "in a folder that exists"),
    ]
    for given, images, path, message in mistakes:
        result = cli("run", given, "--prompt", "what?", *images, "--draw", path)
        assert message in result.message
    assert model.loaded is None


@pytest.mark.parametrize("command", ["run", "inspect"])
@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
def test_no_drawing_replaces_the_image_it_is_of(
    cli: Cli, model: FakeModel, bundle: Path, tmp_path: Path, command: str, link: str | None
) -> None:
    photo, drawing = tmp_path / "photo.png", tmp_path / "kept.png"
    shutil.copyfile(PICTURE, photo)
    before = photo.read_bytes()
    if link is None:
        drawing = tmp_path / "." / "photo.png"
    else:
        getattr(drawing, link)(photo)
    message = cli(command, bundle, "--image", photo, "--prompt", "what?", "--draw", drawing).message
    assert "are one file: expected the output to be another" in message
    assert photo.read_bytes() == before
    assert model.loaded is None


# With the sample model


def test_a_reply_in_json_has_text_tokens_times_and_memory(cli: Cli, sample_bundle: Path) -> None:
    found = json.loads(cli("run", sample_bundle, *ASK, "--json").out)
    assert found["visual_tokens"] == 144
    assert found["kept"] == [43]
    (kept,) = found["kept_visual"]
    assert kept == sorted(set(kept))
    assert len(kept) == 43
    assert set(kept) <= set(range(144))
    assert found["padded_kept"] == [0]
    assert len(found["token_ids"]) == found["new_tokens"]
    assert all(value > 0 for name, value in found.items() if name.endswith(("_seconds", "_bytes")))
    assert found["peak_memory_metric"]
    assert cli("run", sample_bundle, *ASK).out == found["text"] + "\n"


def test_a_drawing_of_the_kept_tokens(cli: Cli, sample_bundle: Path, tmp_path: Path) -> None:
    result = cli("run", sample_bundle, *ASK, "--draw", tmp_path / "kept.png")
    assert result.code == 0
    assert f"kept tokens drawn in {tmp_path / 'kept.png'}" in result.err
    with Image.open(tmp_path / "kept.png") as picture:
        assert min(picture.size) > 144


def ask(picture: Path | str, prompt: str = "what shape is green") -> tuple[Path | str, ...]:
    return ("--image", picture, "--prompt", prompt)


def _huge(path: Path) -> None:
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(path)


def _no_height(path: Path) -> None:
    path.write_bytes(b"P5 4 0 255\n")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "there is no image"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_text("no image"), "is not an image"),
        (lambda path: path.write_bytes(PICTURE.read_bytes()[:3000]), "truncated or damaged"),
        (lambda path: path.write_bytes(b""), "is not an image"),
        (_no_height, "is a PNM image (PBM, PGM, PPM): expected JPEG"),
        (_huge, "is too large"),
    ],
    ids=["missing", "folder", "text", "truncated", "empty", "no height", "huge"],
)
def test_a_picture_that_is_none(
    cli: Cli, sample_bundle: Path, tmp_path: Path, write: Callable[[Path], None], message: str
) -> None:
    write(tmp_path / "picture.png")
    found = cli("run", sample_bundle, *ask(tmp_path / "picture.png")).message
    assert message in found
    assert "picture.png" in found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--prompt", "<image> what shape is green"), "1 image place"),
        (ask(PICTURE, "<image> <image> what"), "2 image places"),
        ((*ask(PICTURE, "<image> what"), "--image", PICTURE), "1 image place"),
        (ask(PICTURE, "what " * 3000), "2048"),
        ((*ASK, "--max-new-tokens", "0"), "--max-new-tokens is 0"),
        ((*ASK, "--temperature", "-1"), "--temperature is -1.0"),
        ((*ASK, "--temperature", "nan"), "--temperature is nan"),
        ((*ASK, "--top-p", "0"), "--top-p is 0.0"),
        ((*ASK, "--top-p", "1.5"), "--top-p is 1.5"),
        ((*ASK, "--seed", "-1"), "--seed is -1"),
        ((*ASK, "--stop", ""), "stop strings"),
        ((*ASK, "--threads", "0"), "--threads is 0"),
        ((*ASK, "--backend", "abacus"), "there is no back end 'abacus': choose one of auto"),
    ],
)
def test_a_request_that_cannot_be_met(
    cli: Cli, sample_bundle: Path, given: tuple[str | Path, ...], message: str
) -> None:
    assert message in cli("run", sample_bundle, *given).message


def test_a_back_end_that_is_not_installed_names_the_extra(
    cli: Cli, sample_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert (
        "pip install 'edgeprune[ort]'" in cli("run", sample_bundle, *ASK, "--backend", "onnxruntime").message
    )


# Damaged bundles


def _newer(folder: Path) -> None:
    raw = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps({**raw, "schema_version": 99}))


def _leaving(folder: Path) -> None:
    raw = json.loads((folder / MANIFEST_NAME).read_text())
    raw["files"][-1]["path"] = "../outside"
    (folder / MANIFEST_NAME).write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "is not a folder"),
        (lambda folder: (folder / MANIFEST_NAME).unlink(), "is not a bundle"),
        (lambda folder: (folder / "vision.onnx").unlink(), "lacks vision.onnx"),
        (lambda folder: (folder / "vision.onnx").write_bytes(b"vis"), "truncated or altered"),
        (_newer, "written by a newer edgeprune"),
        (_leaving, "leads out of the folder"),
    ],
    ids=["missing", "no manifest", "missing file", "truncated file", "newer schema", "leaving"],
)
@pytest.mark.parametrize(
    "command",
    ["run --prompt x --image x.png", "inspect", "verify", "bench"],
    ids=lambda text: text.split()[0],
)
def test_a_damaged_bundle_is_refused_by_every_command(
    cli: Cli, bundle: Path, command: str, damage: Callable[[Path], object], message: str
) -> None:
    damage(bundle)
    before = snapshot(bundle.parent)
    name, *rest = command.split()
    assert message in cli(name, bundle, *rest).message
    assert snapshot(bundle.parent) == before


@pytest.mark.parametrize("name", ["vision.onnx", "language.in-place.onnx", "tokenizer.json"])
def test_a_file_that_is_listed_but_no_good_is_named(
    cli: Cli, sample_bundle: Path, tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(sample_bundle, tmp_path / "bundle"))
    (folder / name).write_bytes(b"[]")
    relist(folder, name)
    assert name in cli("run", folder, *ASK).message


def test_what_is_loaded_is_told_caches_and_context(cli: Cli, model: FakeModel, bundle: Path) -> None:
    given = ("--caches", "copied", "--max-context", "700", "--threads", "2")
    assert cli("run", bundle, "--prompt", "what?", *given).code == 0
    assert model.loaded is not None
    assert model.loaded[2] == {"max_context": 700, "threads": 2, "caches": "copied"}
