"""Fuzz targets of files: bundles' manifests and graphs, checkpoints, curves, question files, predictions.

Each makes one input from a source of randomness and tries it; see `benchmarks.fuzz`.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.fuzz_altering import JSON_PIECES, altered, changed, scratch
from edgeprune.bundle import read_manifest
from edgeprune.debias import curves
from edgeprune.evaluation.benchmarks import BENCHMARKS, read_questions
from edgeprune.evaluation.predictions import Prediction, PredictionFile
from edgeprune.exporter.weights import read_header
from edgeprune.manifest import MANIFEST_NAME
from edgeprune.questions.llava import Files
from edgeprune.questions.question import Question
from tests.manifests import FILES, graph_pointing_to, relist, write_bundle


def _json_altered(whole: Any, draw: random.Random) -> bytes:
    """JSON text of altered values, or altered text."""
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
        whole = changed(whole, draw)
    content = json.dumps(whole).encode()
    return altered(content, draw, JSON_PIECES) if draw.random() < 0.3 else content


@cache
def _bundle(name: str) -> tuple[Path, bytes]:
    bundle = write_bundle(scratch(name) / "bundle")
    return bundle, (bundle / MANIFEST_NAME).read_bytes()


def try_manifest(draw: random.Random) -> object:
    """A bundle whose manifest has values, keys, lists or bytes of another kind."""
    bundle, whole = _bundle("manifests")
    (bundle / MANIFEST_NAME).write_bytes(_json_altered(json.loads(whole), draw))
    return read_manifest(bundle)


def try_graph(draw: random.Random) -> object:
    """A bundle whose language graph is altered, with a manifest that agrees with it."""
    bundle, _ = _bundle("graphs")
    places = [FILES["language.onnx"], graph_pointing_to("../secret"), graph_pointing_to("x\x1b[31m")]
    content = altered(draw.choice(places), draw, places)
    (bundle / "language.onnx").write_bytes(content)
    relist(bundle, "language.onnx")
    return read_manifest(bundle)


_HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]},
    "c": {"dtype": "I64", "shape": [], "data_offsets": [24, 32]},
}


def try_checkpoint(draw: random.Random) -> object:
    """A safetensors file whose header has other values or bytes, or another length."""
    header = _json_altered(_HEADER, draw)
    wrong = (0, len(header) + 40, 2**32, 2**63, 2**64 - 1)
    length = len(header) if draw.random() < 0.8 else draw.choice(wrong)
    content = struct.pack("<Q", length) + header + bytes(32)
    path = scratch("checkpoints") / "model.safetensors"
    path.write_bytes(content[: draw.randrange(len(content))] if draw.random() < 0.1 else content)
    return read_header(path)


def try_curve(draw: random.Random) -> object:
    """A curve's file of any kind, up to the weights of an image's tokens."""
    kinds = [
        {"kind": "tabulated", "values": [1.0, 2.0, 3.0, 2.0], "stage": "llm_pruning"},
        *(curves.load_preset(name).model_dump(mode="json") for name in curves.preset_names()),
    ]
    path = scratch("curves") / "curve.json"
    path.write_bytes(_json_altered(draw.choice(kinds), draw))
    return curves.curve_table(curves.load_curve(path), 144)


_LLAVA = {"question_id": 1, "image": "one.png", "text": "What is it?\nBe brief.", "category": "random"}
_ANSWERS = ["a star"] * 10
_OPTIONS = {"A": "star", "B": "cross", "C": "", "D": "", "hint": "nan", "answer": "A", "category": "shapes"}
# By benchmark the question file's ending and content, and that of the annotations.
_QUESTIONS: tuple[tuple[str, str, Any, Any], ...] = (
    ("exact", "jsonl", [{**_LLAVA, "answer": "star"}, {**_LLAVA, "answers": ["star", "a star"]}], None),
    ("gqa", "jsonl", [_LLAVA], {"1": {"answer": "star", "types": {"structural": "query"}}}),
    (
        "gqa",
        "json",
        {"1": {"question": "What?", "imageId": "one", "answer": "star", "isBalanced": True}},
        None,
    ),
    (
        "vqav2",
        "json",
        {"data_subtype": "x", "questions": [{"question_id": 1, "question": "What?", "image_id": 1}]},
        {"annotations": [{"question_id": 1, "answers": [{"answer": "star"}], "answer_type": "other"}]},
    ),
    ("vizwiz", "jsonl", [_LLAVA], [{"image": "one.png", "answers": _ANSWERS, "answer_type": "other"}]),
    ("vizwiz", "json", [{"image": "one.png", "question": "What?", "answers": _ANSWERS}], None),
    (
        "textvqa",
        "json",
        {"data": [{"question_id": 1, "question": "what?", "image_id": "one", "answers": _ANSWERS}]},
        None,
    ),
    ("mmvet", "json", {"v1_0": {"question": "What?", "imagename": "one.png"}}, None),
    ("pope", "jsonl", [{**_LLAVA, "label": "yes"}, {**_LLAVA, "label": "no"}], None),
    ("mmbench", "tsv", [{"index": 1, "question": "What?", **_OPTIONS, "image": "iVBORw0KGgo="}], None),
)


def _written(ending: str, content: Any, draw: random.Random) -> bytes:
    if ending == "json":
        return _json_altered(content, draw)
    if ending == "jsonl":
        return b"\n".join(
            _json_altered(line, draw) if draw.random() < 0.7 else _plain(line) for line in content
        )
    rows = [list(content[0]), *(line.values() for line in content)]
    whole = "\n".join("\t".join(map(str, row)) for row in rows).encode()
    return altered(whole, draw, (b'"', b"\0", b"\t\t", b"\xff", b"x" * 200_000))


def _plain(value: Any) -> bytes:
    return json.dumps(value).encode()


@cache
def _picture_folder() -> Path:
    folder = scratch("pictures")
    for name in ("one.png", "one.jpg", "COCO_x_000000000001.jpg"):
        (folder / name).touch()
    return folder


def try_questions(draw: random.Random) -> object:
    """An altered question file of some benchmark, or altered annotations."""
    name, ending, questions, answers = draw.choice(_QUESTIONS)
    folder = scratch("questions")
    data, annotations = folder / f"data.{ending}", folder / "annotations.json"
    data.write_bytes(_written(ending, questions, draw))
    if answers is not None:
        annotations.write_bytes(_json_altered(answers, draw))
    files = Files(data, _picture_folder(), annotations if answers is not None else None)
    return read_questions(BENCHMARKS[name], files, draw.choice((None, 1)))


_ASKED = [Question(id=number, where="", prompt="What is it?") for number in range(3)]
_SETTINGS = {"bundle": "0" * 64, "max_new_tokens": 16, "methods": ["fastv"]}


@cache
def _predicted() -> Sequence[bytes]:
    path = scratch("predicted") / "predictions.jsonl"
    with PredictionFile(path, _SETTINGS, _ASKED) as file:
        file.append((number, Prediction("a star", 144, (43,), 0, 2)) for number in range(2))
    return path.read_bytes().splitlines()


def try_predictions(draw: random.Random) -> object:
    """An altered file of an earlier run's answers, gone on with. One that is refused must be as it was."""
    lines = [_json_altered(json.loads(line), draw) if draw.random() < 0.4 else line for line in _predicted()]
    content = b"\n".join(lines) + draw.choice((b"\n", b"\n", b"", b'\n{"number": 2'))
    path = scratch("predictions") / "predictions.jsonl"
    path.write_bytes(content)
    begun = False
    try:
        with PredictionFile(path, _SETTINGS, _ASKED) as file:
            begun = True
            file.append([(2, Prediction("a cross", 144, (43,), 0, 2))])
        with PredictionFile(path, _SETTINGS, _ASKED) as file:
            assert file.done[2].text == "a cross"
    finally:
        assert begun or path.read_bytes() == content, "a file that was refused was changed"
    return file.done
