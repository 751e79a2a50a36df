"""Loading and generating on the sample model's bundles, against Hugging Face's own generate."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

import edgeprune
from edgeprune import bundle as bundle_module
from edgeprune.debias.masks import PaddingMask
from edgeprune.debias.selection import select_visual
from edgeprune.errors import BackendError, BundleError, InputError, MissingDependencyError
from edgeprune.manifest import Generation
from edgeprune.runtime import Model, Reply
from edgeprune.runtime.backends import open_backend, ort
from tests.conftest import SAMPLE_MODEL
from tests.manifests import into_hub, make_manifest, relist

PICTURES = SAMPLE_MODEL.parent / "pictures"
NAMES = ["wide.png", "square.png", "tall.png", "banner.png", "small.png", "column.png"]
QUESTIONS = [
    "what color is the star",
    "what shape is cyan",
    "what color is the big cross ASSISTANT: red what shape is red",
]
STEPS = 5


def text(question: str, pictures: int) -> str:
    return "USER: " + "<image>\n" * pictures + f"{question} ASSISTANT:"


def paths(*names: str) -> list[str]:
    return [str(PICTURES / name) for name in names]


def endless(bundle: Path) -> Model:
    """The model without end-of-sequence tokens, so that every reply has the same length."""
    manifest = edgeprune.load(bundle, threads=1).manifest
    prompt = manifest.prompt.model_copy(update={"eos_token_ids": ()})
    return Model(
        bundle, manifest.model_copy(update={"prompt": prompt}), open_backend("onnxruntime", threads=1)
    )


@pytest.fixture(scope="module")
def pruned(sample_bundle: Path) -> Model:
    return edgeprune.load(sample_bundle, "onnxruntime", threads=1)


@pytest.fixture(scope="module")
def unpruned(unpruned_bundle: Path) -> Model:
    return endless(unpruned_bundle)


@pytest.fixture(scope="module")
def reference(width_first: None) -> tuple[Any, Any]:
    model = LlavaForConditionalGeneration.from_pretrained(SAMPLE_MODEL, local_files_only=True).eval()
    # Neither side may end early, so that several decode steps are compared.
    model.generation_config.eos_token_id = None
    return model, AutoProcessor.from_pretrained(SAMPLE_MODEL, local_files_only=True)


@pytest.mark.parametrize(("batch", "pictures"), list(itertools.product((1, 2, 3), (1, 2, 3))))
def test_unpruned_equals_hugging_face(
    unpruned: Model, reference: tuple[Any, Any], batch: int, pictures: int
) -> None:
    model, processor = reference
    shift = batch + pictures
    images = [
        paths(*(NAMES[(shift + row + n) % len(NAMES)] for n in range(pictures))) for row in range(batch)
    ]
    prompts = [text(QUESTIONS[(shift + row) % 3], pictures) for row in range(batch)]
    inputs = processor(
        images=[Image.open(path) for row in images for path in row],
        text=prompts,
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        expected = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=STEPS,
            output_logits=True,
            return_dict_in_generate=True,
        )
    ids = expected.sequences[:, inputs["input_ids"].shape[1] :]
    logits = torch.stack(expected.logits, dim=1).numpy()

    seen: list[list[np.ndarray]] = [[] for _ in range(batch)]

    def picker(row: int) -> Callable[[np.ndarray], int]:
        def pick(values: np.ndarray) -> int:
            seen[row].append(values)
            return int(values.argmax())

        return pick

    prepared = [unpruned.prepare(prompt, row) for prompt, row in zip(prompts, images, strict=True)]
    found = unpruned.session.generate(prepared, [picker(row) for row in range(batch)], STEPS)
    for row in range(batch):
        assert list(found[row].token_ids) == ids[row].tolist()
        np.testing.assert_allclose(np.stack(seen[row]), logits[row], atol=1e-4, rtol=0)
    replies = unpruned.generate(prompts, images, max_new_tokens=STEPS)
    assert [reply.text for reply in replies] == processor.batch_decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    "options",
    [{"repetition_penalty": 8.0}, {"no_repeat_ngram_size": 2}, {"repetition_penalty": 0.1}],
    ids=str,
)
def test_penalties_equal_hugging_face(
    unpruned: Model, reference: tuple[Any, Any], options: dict[str, Any]
) -> None:
    """Also where the checkpoint asks for them; the prompt's tokens count, the batch's padding does not."""
    model, processor = reference
    prompts, images = [text(QUESTIONS[0], 1), text(f"{QUESTIONS[1]} and {QUESTIONS[2]}", 1)], NAMES[:2]
    given = processor(
        images=[Image.open(path) for path in paths(*images)], text=prompts, padding=True, return_tensors="pt"
    )
    wanted = model.generate(**given, do_sample=False, max_new_tokens=12, **options)
    plain = model.generate(**given, do_sample=False, max_new_tokens=12)
    asked = {"prompt": prompts, "images": [[path] for path in paths(*images)], "max_new_tokens": 12}
    found = unpruned.generate(**asked, **options)
    length = given["input_ids"].shape[1]
    assert [list(reply.token_ids) for reply in found] == wanted[:, length:].tolist()
    assert not torch.equal(wanted, plain)
    manifest = unpruned.manifest
    unpruned.manifest = manifest.model_copy(update={"generation": Generation(**options)})
    by_default = unpruned.generate(**asked)
    unpruned.manifest = manifest
    assert [reply.token_ids for reply in by_default] == [reply.token_ids for reply in found]


def test_a_prompt_that_skips_the_chat_template_is_noted(
    pruned: Model, caplog: pytest.LogCaptureFixture
) -> None:
    pruned.generate("what shape is cyan", images=paths("wide.png"), max_new_tokens=1)
    assert not caplog.messages
    pruned.generate(text("what shape is cyan", 1), images=paths("wide.png"), max_new_tokens=1)
    assert caplog.messages == ["a prompt that holds <image> is used as it stands, without the chat template"]


def test_it_answers_and_ends(pruned: Model) -> None:
    reply = pruned.generate("what shape is cyan", images=paths("wide.png"))
    assert reply.text.strip() == "hourglass"
    assert reply.finish_reason == "stop"
    assert reply.token_ids[-1] in pruned.manifest.prompt.eos_token_ids
    assert reply.statistics.preprocess_seconds > 0


def test_pruned_batches_equal_single_prompts(sample_bundle: Path) -> None:
    model = endless(sample_bundle)
    counts = [1, 2, 1, 3, 2, 0, 1]
    images = [
        paths(*(NAMES[(row + n) % len(NAMES)] for n in range(count))) for row, count in enumerate(counts)
    ]
    prompts = [text(QUESTIONS[(row + row // 6) % 3], count) for row, count in enumerate(counts)]
    together = model.generate(prompts, images, max_new_tokens=STEPS)
    for prompt, row, reply in zip(prompts, images, together, strict=True):
        alone = model.generate(prompt, row, max_new_tokens=STEPS)
        assert reply.token_ids == alone.token_ids
        assert reply.text == alone.text
        assert reply.kept_visual == alone.kept_visual
        assert reply.statistics.kept == alone.statistics.kept
        np.testing.assert_allclose(reply.stages[0].score, alone.stages[0].score, atol=1e-6)
    assert len({reply.kept_visual for reply in together}) == len(counts)


def test_kept_tokens_are_the_reference_selection_of_the_graph_s_scores(pruned: Model) -> None:
    manifest = pruned.manifest
    reply = pruned.generate(text("what color is the star", 2), paths("wide.png", "column.png"))
    (stage,) = reply.stages
    assert manifest.curve is not None
    # Each image begins the curve anew.
    weight = np.tile(manifest.curve.weights(manifest.curve_places), 2) * stage.visual_valid
    expected = select_visual(stage.score[None], weight[None], stage.kept)[0]
    assert reply.kept_visual == (tuple(expected),)
    assert reply.statistics.kept == (86,)
    assert 0 < stage.visual_valid.sum() < 288
    assert reply.statistics.padded_kept == (int((stage.visual_valid[expected] == 0).sum()),)
    # The scores are attention paid to visual tokens, a part of 1.
    assert 0 < stage.score.sum() < 1


def test_messages_and_strings_are_the_same_prompt(pruned: Model) -> None:
    content = [{"type": "image"}, {"type": "text", "text": "what shape is cyan"}]
    conversation = [{"role": "user", "content": content}]
    replies: list[Reply] = [
        pruned.generate(conversation, paths("wide.png")),
        pruned.generate("what shape is cyan", paths("wide.png")),
        *pruned.generate([conversation, "what shape is cyan"], [paths("wide.png")] * 2),
    ]
    assert len({(reply.text, reply.statistics.prompt_tokens, reply.kept_visual) for reply in replies}) == 1


def test_every_kind_of_picture_is_the_same(pruned: Model) -> None:
    path = PICTURES / "wide.png"
    opened = Image.open(path)
    kinds: list[Any] = [
        path,
        str(path),
        path.read_bytes(),
        io.BytesIO(path.read_bytes()),
        opened,
        np.array(opened),
    ]
    kept = {pruned.generate("what shape is cyan", [kind]).kept_visual for kind in kinds}
    assert len(kept) == 1


def test_a_reply_goes_into_json(pruned: Model) -> None:
    reply = pruned.generate("what shape is cyan", paths("wide.png"))
    found = json.loads(json.dumps(reply.to_dict()))
    assert found["text"] == reply.text
    assert found["token_ids"] == list(reply.token_ids)
    assert found["kept_visual"] == [list(reply.kept_visual[0])]
    assert found["visual_tokens"] == 144
    assert found["kept"] == [len(found["kept_visual"][0])] == [43]
    assert {"padded_kept", "prefill_seconds", "cache_bytes", "peak_memory_bytes", "peak_memory_metric"} < set(
        found
    )


# --- streams, stop strings, sampling


# Drawn hot, the sample model writes words at random instead of its one-word answer.
HOT: dict[str, Any] = {"temperature": 5.0, "seed": 1, "max_new_tokens": 8}


def test_streamed_pieces_are_the_text(sample_bundle: Path) -> None:
    pieces: list[str] = []
    reply = endless(sample_bundle).generate(
        "what shape is cyan", paths("wide.png"), stream=pieces.append, **HOT
    )
    assert len(pieces) > 4
    assert "".join(pieces) == reply.text
    assert reply.finish_reason == "length"
    assert len(reply.token_ids) == 8


def test_a_stop_string_ends_the_reply_and_is_not_part_of_it(sample_bundle: Path) -> None:
    model = endless(sample_bundle)
    whole = model.generate("what shape is cyan", paths("wide.png"), **HOT)
    stop = whole.text[len(whole.text) // 2 :][:3]
    for stops in ([stop, "never"], stop):
        pieces: list[str] = []
        cut = model.generate("what shape is cyan", paths("wide.png"), stop=stops, stream=pieces.append, **HOT)
        assert cut.text == whole.text[: whole.text.index(stop)] == "".join(pieces)
        assert cut.finish_reason == "stop_string"
        assert len(cut.token_ids) < 8


def test_a_seed_gives_the_same_text_whatever_else_is_in_the_batch(sample_bundle: Path) -> None:
    model = endless(sample_bundle)
    options: dict[str, Any] = {"temperature": 3.0, "max_new_tokens": 8}
    prompts = [text(question, 1) for question in QUESTIONS]
    images = [paths(name) for name in NAMES[:3]]
    alone = [model.generate(p, i, seed=11, **options).token_ids for p, i in zip(prompts, images, strict=True)]
    together = [reply.token_ids for reply in model.generate(prompts, images, seed=11, **options)]
    assert together == alone
    assert together != [reply.token_ids for reply in model.generate(prompts, images, seed=12, **options)]
    own = [
        reply.token_ids
        for reply in model.generate([prompts[0]] * 2, [images[0]] * 2, seed=[11, 12], **options)
    ]
    assert own[0] == alone[0] != own[1]


# --- what cannot be used


def test_a_stream_needs_a_single_prompt(pruned: Model) -> None:
    with pytest.raises(InputError, match=r"stream was given with a list of prompts"):
        pruned.generate(["what shape is cyan"], [paths("wide.png")], stream=print)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "`temperature` is -1"),
        ({"top_p": 0}, "`top_p` is 0"),
        ({"top_p": 1.5}, "`top_p` is 1.5"),
        ({"seed": -3}, "`seed` is -3"),
        ({"seed": [1, 2]}, "2 seeds for 1 prompts"),
        ({"max_new_tokens": 0}, "`max_new_tokens` is 0"),
        ({"stop": [""]}, "stop strings"),
        ({"stop": 3}, "the stop strings are 3"),
        ({"stream": 3}, "stream is 3: expected a function"),
        ({"batch_size": 0}, "`batch_size` is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(pruned: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pruned.generate("what shape is cyan", paths("wide.png"), **options)


def huge_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("nowhere.png", "there is no image"),
        (b"these bytes are no image", "is not an image"),
        (np.zeros((0, 5, 3), dtype=np.uint8), "has no pixels"),
        (huge_png(), "is too large"),
        (12, "of type int is not supported"),
    ],
)
def test_pictures_that_cannot_be_used_are_refused(pruned: Model, picture: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pruned.generate("what shape is cyan", [picture])


@pytest.mark.parametrize("places", [0, 2, 3])
def test_image_places_and_pictures_must_agree(pruned: Model, places: int) -> None:
    conversation = [
        {"role": "user", "content": [{"type": "image"}] * places + [{"type": "text", "text": "what"}]}
    ]
    for prompt in (conversation, [conversation]):
        images: Any = paths("wide.png") if prompt is conversation else [paths("wide.png")]
        with pytest.raises(InputError, match=rf"has {places} image place.* comes with 1 image"):
            pruned.generate(prompt, images)


def test_a_prompt_beyond_the_positions_is_refused_and_nothing_runs(pruned: Model) -> None:
    with pytest.raises(
        InputError, match=r"takes 2147 positions, 144 of its tokens being visual: expected at most 2048"
    ):
        pruned.generate("what " * 2000, paths("wide.png"))
    with pytest.raises(InputError, match=r"2160 of its tokens being visual"):
        pruned.generate(["what", text("what", 15)], [paths("wide.png"), paths("wide.png") * 15])


@pytest.mark.parametrize(
    ("prompt", "images", "message"),
    [
        ("what", "wide.png", "the images are one str"),
        ("what", Path("wide.png"), "the images are one"),
        (["what", "what"], [["wide.png"]], "2 prompts come with 1 lists of images"),
        (["what"], ["wide.png"], "the images are one str"),
        ([], [], "the prompt is"),
        (12, [], "the prompt is 12"),
        (b"what", ["wide.png"], "the prompt is b'what'"),
        ([12], [[]], "the prompt is 12"),
    ],
)
def test_arguments_of_another_form_are_refused(pruned: Model, prompt: Any, images: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pruned.generate(prompt, images)


@pytest.fixture
def copied(sample_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample_bundle, tmp_path / "bundle"))


def test_a_damaged_bundle_is_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = copied / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    with pytest.raises(BundleError, match=r"truncated or altered"):
        edgeprune.load(copied)
    weights.write_bytes(whole[:-8] + bytes(8))
    with pytest.raises(BundleError, match="does not match its SHA-256"):
        edgeprune.load(copied)
    monkeypatch.setattr(bundle_module, "_QUICK_FILE", 1 << 20)
    edgeprune.load(copied)  # the size is right, and of large files no more is compared by default
    with pytest.raises(BundleError, match="does not match its SHA-256"):
        edgeprune.load(copied, check="hashes")
    weights.unlink()
    with pytest.raises(BundleError, match=r"lacks model\.safetensors"):
        edgeprune.load(copied)


@pytest.mark.parametrize("name", ["tokenizer.json", "language.in-place.onnx"])
def test_a_file_of_the_right_size_and_no_sense_is_refused(copied: Path, name: str) -> None:
    (copied / name).write_bytes(b"x" * (copied / name).stat().st_size)
    relist(copied, name)
    with pytest.raises((BundleError, BackendError), match=r"cannot|is no ONNX graph"):
        edgeprune.load(copied)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        edgeprune.load(tmp_path)
    with pytest.raises(BundleError, match="is not a folder"):
        edgeprune.load(tmp_path / "nowhere")


def test_a_back_end_that_is_not_installed_names_its_extra(
    sample_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgeprune\[ort\]'"):
        edgeprune.load(sample_bundle, "onnxruntime")


def test_load_checks_its_own_arguments(sample_bundle: Path) -> None:
    with pytest.raises(InputError, match="check is 'all'"):
        edgeprune.load(sample_bundle, check="all")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has no option 'speed'"):
        edgeprune.load(sample_bundle, "onnxruntime", speed=9)
    with pytest.raises(InputError, match="not with an opened one"):
        edgeprune.load(sample_bundle, open_backend("onnxruntime"), threads=1)
    with pytest.raises(BackendError, match="no back end 'abacus'"):
        edgeprune.load(sample_bundle, "abacus")


# What is asked for at run time


def test_one_bundle_keeps_what_a_run_asks_for(pruned: Model) -> None:
    whole = pruned.generate(QUESTIONS[0], paths("wide.png"), keep=1, max_new_tokens=2)
    assert whole.statistics.kept == (144,)
    assert not whole.plan.shortens
    some = pruned.generate(QUESTIONS[0], paths("wide.png"), keep="29/144", debias="none", max_new_tokens=2)
    assert some.statistics.kept == (29,)
    assert some.plan.debias == ()
    assert some.to_dict()["plan"] == some.plan.describe()
    # As it was exported again, afterwards.
    assert pruned.generate(QUESTIONS[0], paths("wide.png"), max_new_tokens=1).statistics.kept == (43,)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"keep": 0}, "the keep ratio is 0"),
        ({"keep": (0.3, 0.2)}, "2 keep ratios were given and fastv has 1 stage"),
        ({"debias": "place"}, "`debias` is 'place': expected position, padding"),
    ],
)
def test_what_cannot_be_asked_for(pruned: Model, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pruned.generate(QUESTIONS[0], paths("wide.png"), **asked)


@pytest.mark.parametrize(
    ("changes", "asked", "message"),
    [
        ({"method": "none", "debias": ""}, {"debias": "padding"}, "no pruning stage that it could act on"),
        ({"method": "none", "debias": ""}, {"keep": 0.5}, "it has no pruning stage"),
        ({"debias": "padding"}, {"debias": "position"}, "this bundle has no bias curve: export it with one"),
        (
            {"debias": "", "padding_mask": PaddingMask(kind="none")},
            {"debias": "padding"},
            "images are never padded: leave padding out",
        ),
    ],
)
def test_what_a_bundle_cannot_do(changes: dict[str, Any], asked: dict[str, Any], message: str) -> None:
    model = Model.__new__(Model)
    model.manifest = make_manifest(**changes)
    with pytest.raises(InputError, match=message):
        model.plan(**asked)


def test_a_bundle_in_the_hub_s_cache_runs_through_its_links(sample_bundle: Path, tmp_path: Path) -> None:
    snapshot = into_hub(Path(shutil.copytree(sample_bundle, tmp_path / "bundle")))
    model = edgeprune.load(snapshot, "onnxruntime", threads=1)
    assert model.generate(QUESTIONS[0], paths("wide.png"), keep=0.2, max_new_tokens=1).statistics.kept == (
        29,
    )
