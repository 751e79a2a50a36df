"""`evaluate` and `compare` from Python: what they return, what they write, what importing them costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeprune.errors import InputError
from edgeprune.evaluation import Asking, Evaluation, Grid, Pruning, answering, compare, evaluate
from tests.edgeprune.evaluation.files import lines, picture
from tests.edgeprune.evaluation.test_comparison import Answering
from tests.manifests import write_bundle


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four questions about an image, three of which are answered right."""
    monkeypatch.setattr(answering, "Bundle", Answering)
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "images" / "a.png")
    record = {"image": "a.png", "text": "what?"}
    answers = ["wrong", "right", "right", "right"]
    return lines(
        tmp_path / "q.jsonl", *({"question_id": n, **record, "answer": a} for n, a in enumerate(answers))
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


def test_an_evaluation_says_what_it_wrote(data: Path, bundle: Path, tmp_path: Path) -> None:
    found = evaluate(bundle, "exact", data, images=tmp_path / "images", resamples=100)
    assert isinstance(found, Evaluation)
    assert (found.benchmark, found.questions, found.main) == ("exact match", 4, "accuracy")
    assert found.figures == {"accuracy": 75.0}
    assert found.interval is not None
    assert found.interval.low <= 75 <= found.interval.high
    assert (found.submission, found.note) == (None, None)
    assert found.predictions == Path("eval-exact/predictions.jsonl")
    written = json.loads(Path("eval-exact/result.json").read_text())
    assert written == json.loads(json.dumps(found.to_dict()))


def test_the_length_of_answers_is_the_benchmarks_unless_it_is_given(data: Path, bundle: Path) -> None:
    def longest(output: str, asking: Asking | None, limit: int | None = None) -> object:
        found = evaluate(bundle, "mmvet", data, images="images", asking=asking, limit=limit, output=output)
        return found.settings["max_new_tokens"]

    assert longest("a", None) == 1024
    assert longest("b", Asking(batch=2)) == 1024
    assert longest("c", Asking(7), limit=2) == 7
    assert len(Path("c/predictions.jsonl").read_text().splitlines()) == 1 + 2


def test_what_is_graded_elsewhere_has_a_file_and_no_figures(data: Path, bundle: Path) -> None:
    found = evaluate(bundle, "mmvet", data, images="images")
    assert (found.figures, found.main, found.interval) == ({}, None, None)
    assert found.submission == Path("eval-mmvet/submission.json")
    assert found.note is not None
    assert found.note.startswith("graded elsewhere")


def test_a_bundle_has_its_method_and_may_keep_otherwise(
    data: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="is a bundle, in which `method`, `layer` is settled: give"):
        evaluate(bundle, "exact", data, pruning=Pruning("fastv", 0.3, 1))
    with pytest.raises(InputError, match="is a bundle: expected a model folder, of which the bundles"):
        compare(bundle, "exact", data, Grid())
    assert not Path("eval-exact").exists()


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    import edgeprune.evaluation

    with pytest.raises(AttributeError, match="has no attribute 'evalaute'"):
        _ = edgeprune.evaluation.evalaute


def test_importing_evaluation_loads_neither_a_runtime_nor_the_exporters_packages() -> None:
    blocked = dict.fromkeys(
        ["torch", "transformers", "matplotlib", "onnx", "onnxruntime", "edgeprune.runtime"]
    )
    code = f"import sys; sys.modules.update({blocked}); from edgeprune.evaluation import evaluate, compare"
    subprocess.run([sys.executable, "-c", code], check=True)
