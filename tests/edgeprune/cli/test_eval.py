"""`edgeprune eval`: results on stdout, files in the output folder, one message for every mistake."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgeprune.evaluation import answering
from edgeprune.files import alone_in
from tests.edgeprune.cli.conftest import Cli, snapshot
from tests.edgeprune.evaluation.files import dump, lines, picture
from tests.edgeprune.evaluation.test_comparison import Answering

RECORDS = [
    {"question_id": n, "image": "a.png", "text": "what?", "answer": "right" if n else "wrong"}
    for n in range(4)
]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four questions; every one is answered "right"."""
    monkeypatch.setattr(answering, "Bundle", Answering)
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png")
    return lines(tmp_path / "q.jsonl", *RECORDS)


def test_a_bundle_is_scored(cli: Cli, bundle: Path, data: Path, tmp_path: Path) -> None:
    result = cli("eval", bundle, "--data", data, "--metric", "exact", "-o", tmp_path / "out")
    assert result.code == 0, result
    assert "accuracy  75.00 (95 % interval 75.00 to 75.00)" in result.out
    assert "4 questions" in result.out
    written = json.loads((tmp_path / "out" / "result.json").read_text())
    assert written["figures"] == {"accuracy": 75.0}
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 5


def test_as_json_and_in_the_default_folder(cli: Cli, bundle: Path, data: Path, tmp_path: Path) -> None:
    result = cli("eval", bundle, "--data", data, "--metric", "exact", "--json")
    assert json.loads(result.out)["main"] == "accuracy"
    assert (tmp_path / "eval-exact" / "result.json").is_file()


def test_what_is_graded_elsewhere_gets_a_file_to_hand_in(cli: Cli, bundle: Path, data: Path) -> None:
    result = cli("eval", bundle, "--data", data, "--metric", "mmvet", "-o", "out")
    assert "to hand in: out/submission.json" in result.out
    assert "note: graded elsewhere" in result.out
    assert json.loads(Path("out/submission.json").read_text())["v1_0"] == "right"


def test_questions_without_references_are_answered_all_the_same(cli: Cli, bundle: Path, data: Path) -> None:
    result = cli("eval", bundle, "--data", data, "--metric", "vqav2", "-o", "out")
    assert "nothing is scored here" in result.out
    assert Path("out/submission.json").is_file()


def test_another_run_in_the_same_folder_is_refused(cli: Cli, bundle: Path, data: Path) -> None:
    command = ("eval", bundle, "--data", data, "--metric", "exact", "-o", "out")
    assert cli(*command).code == 0
    before = snapshot(Path("out"))
    message = cli(*command, "--max-new-tokens", "9").message
    assert "begun with other settings (max_new_tokens was 128 and is 9)" in message
    assert snapshot(Path("out")) == before
    assert cli(*command, "--max-new-tokens", "9", "--restart").code == 0


@pytest.mark.parametrize("restart", [[], ["--restart"]])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("predictions.jsonl", "is no file of predictions"),
        ("result.json", "result.json exists, and no answers of an earlier evaluation beside it"),
        ("submission.json", "submission.json exists, and no answers of an earlier evaluation beside it"),
    ],
)
def test_files_of_others_in_the_folder_stay(
    cli: Cli, bundle: Path, data: Path, name: str, message: str, restart: list[str]
) -> None:
    Path("out").mkdir()
    Path("out", name).write_text('{"mine": 1}')
    before = snapshot(Path("out"))
    command = ("eval", bundle, "--data", data, "--metric", "mmvet", "-o", "out", *restart)
    assert message in cli(*command).message
    assert snapshot(Path("out")) == before


def test_no_output_is_an_input(cli: Cli, bundle: Path, data: Path) -> None:
    Path("out").mkdir()
    Path("out/result.json").symlink_to(data.absolute())
    before = data.read_bytes()
    message = cli("eval", bundle, "--data", data, "--metric", "exact", "-o", "out").message
    assert "are one file" in message
    assert data.read_bytes() == before


def test_no_answers_are_put_into_a_bundle(cli: Cli, bundle: Path, data: Path) -> None:
    before = snapshot(bundle)
    result = cli("eval", bundle, "--data", data, "--metric", "exact", "-o", bundle)
    assert (result.code, "are one folder" in result.message) == (1, True)
    assert snapshot(bundle) == before


def test_a_second_run_in_the_same_folder_is_refused_at_once(cli: Cli, bundle: Path, data: Path) -> None:
    Path("out").mkdir()
    command = ("eval", bundle, "--data", data, "--metric", "exact", "-o", "out")
    with alone_in(Path("out")):
        assert "another run is writing to out: wait until it ends, or choose another --output" in (
            cli(*command).message
        )
    assert not list(Path("out").iterdir())
    assert cli(*command).code == 0


def test_pipes_are_refused_at_once(cli: Cli, bundle: Path, data: Path) -> None:
    os.mkfifo("fifo")
    for options in (
        ("--data", "fifo", "--metric", "exact"),
        ("--data", data, "--annotations", "fifo", "--metric", "gqa"),
    ):
        assert "fifo is a pipe: expected a regular file" in cli("eval", bundle, *options).message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metric", "f2"], "unknown metric 'f2': choose one of exact, gqa"),
        (["--metric", "exact", "--limit", "0"], "--limit is 0"),
        (["--metric", "exact", "--batch", "0"], "--batch is 0"),
        (["--metric", "exact", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["--metric", "exact", "--seed", "-1"], "--seed is -1: expected a whole number from 0"),
        (["--metric", "exact", "--resamples", "0"], "--resamples is 0: expected a whole number from 1"),
        (["--metric", "exact", "--resamples", str(10**12)], "--resamples is 1000000000000"),
        (["--metric", "exact", "--frames", "0"], "--frames is 0"),
        (["--metric", "exact", "--threads", "0"], "--threads is 0"),
        (["--metric", "exact", "--template", "x"], "the prompt template is 'x'"),
        (
            ["--metric", "exact", "--layer", "1"],
            "is a bundle, in which --layer is settled: give the model folder",
        ),
        (["--metric", "exact", "--compare"], "is a bundle: expected a model folder"),
        (["--metric", "gqa"], "holds no reference answers: give GQA's questions file"),
        (["--metric", "mme"], "holds no reference answers: give MME's folder"),
        (["--metric", "scienceqa"], "not JSON"),
        (["--metric", "exact", "--images", "elsewhere"], "line 1: there is no image elsewhere/a.png"),
    ],
)
def test_mistakes(cli: Cli, bundle: Path, data: Path, options: list[str], message: str) -> None:
    assert message in cli("eval", bundle, "--data", data, "-o", "out", *options).message
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep", "0.3,2"], "the keep ratio is 2"),
        (["--keep", "0.3,0.1"], "2 keep ratios were given and fastv has 1 stage"),
        (["--method", "fastw"], "unknown pruning method 'fastw'"),
        (["--layer", "two"], "Invalid value for '--layer'"),
        (["--debias", "all"], "--debias is 'all': expected position, padding"),
        (["--debias", "padding", "--curve", "fastv"], "--debias leaves positions as they are"),
        (["--compare", "--methods", "fastw"], "unknown pruning method 'fastw'"),
        (["--compare", "--debiases", "all"], "unknown debias 'all'"),
        (["--compare", "--keeps", "1"], "a keep ratio of 1 prunes nothing"),
        (["--compare", "--keeps", "576/576"], "a keep ratio of 1 prunes nothing"),
        (["--compare", "--keep", "0.3"], "--keep does not go with --compare, which takes --methods, --keeps"),
    ],
)
def test_mistakes_with_a_model(cli: Cli, data: Path, options: list[str], message: str) -> None:
    model = Path(__file__).resolve().parents[3] / "samples" / "tiny-llava"
    assert message in cli("eval", model, "--data", data, "--metric", "exact", "-o", "out", *options).message


def test_a_malformed_line_is_named(cli: Cli, bundle: Path, data: Path) -> None:
    data.write_text(data.read_text() + "{}\n")
    message = cli("eval", bundle, "--data", data, "--metric", "exact").message
    assert message.startswith(f"{data}, line 5: the field answer is missing")


def test_without_matplotlib_a_comparison_does_not_begin(
    cli: Cli, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.backends.backend_agg", None)
    message = cli("eval", "model", "--data", data, "--metric", "exact", "--compare", "-o", "out").message
    assert "needs the package matplotlib" in message
    assert "edgeprune[plot]" in message


@pytest.mark.slow
def test_the_sample_model_is_compared(cli: Cli, tmp_path: Path) -> None:
    """The whole path: exports, answers, table, JSON, plot; and a second time from what is on disk."""
    samples = Path(__file__).resolve().parents[3] / "samples"
    listed = json.loads((samples / "pictures" / "questions.json").read_text())
    data = lines(
        tmp_path / "q.jsonl",
        *(
            {"question_id": n, "image": e["picture"], "text": e["question"], "answer": e["answer"]}
            for n, e in enumerate(listed)
        ),
    )
    command = (
        "eval", samples / "tiny-llava", "--data", data, "--images", samples / "pictures",
        "--metric", "exact", "--compare", "--keeps", "0.3", "--debiases", "none,padding",
        "--threads", "1", "--json", "-o", tmp_path / "out",
    )  # fmt: skip
    first = cli(*command)
    assert first.code == 0, first
    found = {outcome["way"]["name"]: outcome for outcome in json.loads(first.out)["outcomes"]}
    assert list(found) == ["unpruned", "random", "random among content", "fastv", "fastv + padding"]
    assert found["unpruned"]["main"]["value"] >= 90
    assert found["random"]["main"]["value"] < found["fastv + padding"]["main"]["value"]
    assert found["fastv + padding"]["padding"] < found["fastv"]["padding"]
    assert {path.name for path in (tmp_path / "out").glob("comparison.*")} == {
        "comparison.md",
        "comparison.json",
        "comparison.png",
    }
    assert cli(*command).out == first.out


def test_annotations_of_another_benchmark(cli: Cli, bundle: Path, data: Path, tmp_path: Path) -> None:
    other = dump(tmp_path / "other.json", [1])
    message = cli("eval", bundle, "--data", data, "--metric", "gqa", "--annotations", other).message
    assert "holds a JSON list: expected an object with a member per question" in message
