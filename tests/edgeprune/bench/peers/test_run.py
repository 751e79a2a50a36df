"""Measuring beside peers: a made-up one in this process, real ones in theirs once, and what is refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeprune.bench.bundles import PRUNED, UNPRUNED
from edgeprune.bench.peers import genai, llama_cpp
from edgeprune.bench.peers import run as peers
from edgeprune.bench.peers.limits import Rates
from edgeprune.bench.peers.llama import Llama, read_llama
from edgeprune.bench.peers.peer import Cost, Job, Run, Weights
from edgeprune.bench.run import Spread
from edgeprune.bundle import read_manifest
from edgeprune.errors import BackendError, InputError
from edgeprune.manifest import Precision
from tests.conftest import SAMPLE_MODEL
from tests.manifests import make_manifest

OURS = [f"edgeprune {UNPRUNED}", f"edgeprune {PRUNED}"]


def convert(llama: Llama, model: Path, folder: Path, weights: Weights) -> Path:
    assert (llama.config["hidden_size"], model, weights) == (96, SAMPLE_MODEL, "fp32")
    folder.mkdir()
    (folder / "beads").write_bytes(b"123")
    return folder / "beads"


class FakeWorkers:
    """Workers of made-up programs that take a second more in every run."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.log: list[str] = []
        self.wrong: str | None = None

    def of(self, module: str, read: Any, environment: dict[str, str]) -> Callable[[str, Path], Any]:
        assert module == "edgeprune.bench.peers.worker"
        assert environment["OMP_NUM_THREADS"] == "1"
        return lambda name, job: FakeWorker(self, name, Job.model_validate_json(job.read_text()))


class FakeWorker:
    def __init__(self, all_of: FakeWorkers, name: str, job: Job) -> None:
        self.all, self.name = all_of, name
        self.all.jobs[name] = job

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self) -> Run:
        if self.name == self.all.wrong:
            raise BackendError("a bead is missing")
        self.all.log.append(self.name)
        seconds, contexts = self.all.log.count(self.name), self.all.jobs[self.name].contexts
        return Run(
            first_token=None if self.name == "abacus" else Cost(wall=9, cpu=9),
            prefill=Cost(wall=seconds, cpu=2 * seconds),
            decode={context: Cost(wall=context, cpu=context) for context in contexts},
            load=Cost(wall=4, cpu=5),
            peak_memory_bytes=7,
            peak_memory_metric="of a fake",
        )


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> FakeWorkers:
    fake = FakeWorkers()
    known = peers._Known("json", "numpy", "peers", convert, ("fp32", "int4"), "beads alone")
    monkeypatch.setitem(peers.PEERS, "abacus", known)
    monkeypatch.setattr(peers, "worker_of", fake.of)
    monkeypatch.setattr(peers, "_rates", lambda _: Rates(flops=1e9, bytes=1e9))
    return fake


def measured(bundle: Path, **options: Any) -> peers.PeersReport:
    chosen = {"against": ["abacus"], "model": SAMPLE_MODEL, "runs": 3, "threads": 1, "contexts": [20, 200]}
    return peers.run(bundle, **{**chosen, **options})


def test_a_peer_takes_turns_with_the_bundle(sample_bundle: Path, workers: FakeWorkers) -> None:
    report = measured(sample_bundle)
    assert workers.log == [*OURS, "abacus"] * 4
    assert report.interleaved
    assert [result.name for result in report.results] == [*OURS, "abacus"]
    *_, abacus = report.results
    # The run to warm up does not count.
    assert abacus.prefill == peers.CostSpread(Spread(3, 2, 4), Spread(6, 4, 8))
    assert abacus.first_token is None
    assert abacus.decode[200].wall.median == 200
    assert (abacus.load, abacus.peak_memory_bytes, abacus.what) == (Cost(wall=4, cpu=5), 7, "beads alone")
    assert report.results[0].first_token == peers.CostSpread(Spread(9, 9, 9), Spread(9, 9, 9))
    ours, theirs = workers.jobs[OURS[1]], workers.jobs["abacus"]
    assert (ours.peer, ours.source, theirs.source.name) == ("edgeprune", sample_bundle, "beads")
    assert theirs.tokens == report.prompt_tokens == 152
    assert (report.visual_tokens, theirs.contexts, theirs.steps) == (144, (20, 200), 16)
    assert not workers.jobs[OURS[0]].plan.shortens
    assert ours.plan.shortens
    assert report.not_measured == ()
    told = json.loads(json.dumps(report.to_dict()))
    assert told["results"][2]["load"] == {"wall": 4, "cpu": 5}


def test_limits_are_those_of_the_bundle_s_forms(sample_bundle: Path, workers: FakeWorkers) -> None:
    report = measured(sample_bundle)
    unpruned, pruned = report.limits
    assert (unpruned.name, pruned.name) == (UNPRUNED, PRUNED)
    weights = 4 * (4 * 96 * 96 + 3 * 96 * 192) + 96 * 28
    keys = 2 * 4 * 24  # of a token in a layer
    assert unpruned.decode[200] == pytest.approx(4 * (weights + 4 * keys * 200) / 1e9)
    assert pruned.decode[200] == pytest.approx(4 * (weights + 2 * keys * (200 + 56 + 43)) / 1e9)
    assert pruned.decode[20] == unpruned.decode[20]  # no image fits into 20 tokens
    assert pruned.prefill is not None
    assert unpruned.prefill is not None
    assert pruned.prefill < unpruned.prefill


def test_products_of_integers_have_no_limit_by_those_of_floats(
    sample_bundle: Path, workers: FakeWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_weights", lambda _: "int4")
    report = measured(sample_bundle, against=["transformers"])
    assert report.not_measured == (
        "transformers: it runs no weights of int4 on the CPU: measure a bundle of fp32 beside it",
    )
    weights = 4 * (4 * 96 * 96 + 3 * 96 * 192) + 96 * 28
    for limit in report.limits:
        assert limit.prefill is None
    assert report.limits[0].decode[200] == pytest.approx((weights / 2 + 4 * 4 * 2 * 4 * 24 * 200) / 1e9)


def test_a_peer_that_fails_does_not_end_the_others(sample_bundle: Path, workers: FakeWorkers) -> None:
    workers.wrong = "abacus"
    report = measured(sample_bundle)
    assert [result.name for result in report.results] == OURS
    assert report.not_measured == ("abacus: a bead is missing",)
    assert workers.log == OURS * 4
    workers.wrong = OURS[1]
    with pytest.raises(BackendError, match="a bead is missing"):
        measured(sample_bundle)


def test_what_cannot_be_measured_says_why(
    sample_bundle: Path, workers: FakeWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = peers._Known("no_such_module", "beads", "peers", convert, ("fp32",), "")
    coarse = peers._Known("json", "numpy", "peers", convert, ("int4",), "")
    monkeypatch.setitem(peers.PEERS, "missing", missing)
    monkeypatch.setitem(peers.PEERS, "coarse", coarse)
    report = measured(sample_bundle, against=["missing", "coarse", "abacus"])
    assert report.not_measured == (
        "missing: beads is not installed: pip install 'edgeprune[peers]'",
        "coarse: it runs no weights of fp32 on the CPU: measure a bundle of fp32 beside it",
    )
    assert "abacus" in workers.jobs


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"against": ["slide rule"]}, "no peer 'slide rule' to measure beside it: choose of transformers, "),
        ({"against": []}, "no peer '' to measure"),
        ({"backend": "tensorrt"}, "the back end is 'tensorrt': peers are measured on the CPU"),
        ({"contexts": [3000]}, r"`contexts` is 3000: expected a whole number from 1 to 2030"),
        ({"contexts": [0]}, "`contexts` is 0"),
        ({"runs": 0}, "`runs` is 0"),
        ({"threads": 0}, "`threads` is 0"),
        ({"max_new_tokens": 1}, "`max_new_tokens` is 1"),
    ],
)
def test_what_is_refused(sample_bundle: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        measured(sample_bundle, **{"against": ["transformers"], **options})


def test_contexts_end_with_the_model_s_positions(sample_bundle: Path) -> None:
    manifest = read_manifest(sample_bundle)  # of 2,048 positions
    assert peers._contexts(None, manifest, 16) == (64, 700, 2000)
    assert peers._contexts(None, manifest, 100) == (64, 700)
    assert peers._contexts([9, 5, 9], manifest, 16) == (5, 9)


def test_peers_have_weights_of_the_same_kind() -> None:
    blocks = {"weights": "int4", "scoring": "int4", "head": "int4", "block": 32, "method": "nearest"}
    four = Precision(compute="fp32", cache="fp32", other="fp32", **blocks)  # type: ignore[arg-type]
    assert peers._weights(make_manifest()) == "fp32"
    assert peers._weights(make_manifest(precision=four)) == "int4"
    with pytest.raises(InputError, match="precision is fp16: expected weights of fp32 or int4"):
        peers._weights(make_manifest(precision=Precision.plain("fp16")))


def test_a_builder_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = SimpleNamespace(returncode=3, stderr="much\nno such architecture\n")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: done)
    with pytest.raises(BackendError, match="its builder ended with status 3: no such architecture"):
        genai.convert(read_llama(SAMPLE_MODEL), SAMPLE_MODEL, tmp_path, "fp32")


def test_a_machine_that_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: SimpleNamespace(returncode=-9))
    with pytest.raises(BackendError, match=r"measures the machine ended with status -9: free 1\.07 GB"):
        peers._rates({})


def test_a_reply_of_llama_cpp_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = llama_cpp.LlamaCpp.__new__(llama_cpp.LlamaCpp)
    peer._manifest = make_manifest()
    peer._server = SimpleNamespace(handle_completions=lambda request: json.dumps({"error": "full"}))
    with pytest.raises(BackendError, match=r"did not generate 1 tokens: it answered \{'error': 'full'\}"):
        peer._complete(5, 1, reuse=False)


@pytest.mark.slow
def test_transformers_is_measured_beside_the_sample_bundle(sample_bundle: Path) -> None:
    report = measured(sample_bundle, against=["transformers"], runs=1, warmup=0, max_new_tokens=3)
    assert [result.name for result in report.results] == [*OURS, "transformers"]
    assert report.not_measured == ()
    assert report.flops > 0
    assert report.read_bytes > 0
    for result in report.results:
        assert result.first_token is not None
        for costs in (result.first_token, result.prefill, *result.decode.values()):
            assert costs.wall.median > 0
        assert result.load.wall > 0
        assert result.peak_memory_bytes is not None
    assert "on a text of as many tokens" in report.results[2].what


@pytest.mark.slow
def test_llama_cpp_is_measured_beside_the_sample_bundle(sample_bundle: Path) -> None:
    pytest.importorskip("xllamacpp", reason="pip install 'edgeprune[peers]'")
    pytest.importorskip("gguf", reason="pip install 'edgeprune[peers]'")
    report = measured(sample_bundle, against=["llama.cpp"], runs=1, warmup=0, max_new_tokens=3)
    assert report.not_measured == ()
    assert report.results[2].decode[200].wall.median > 0
