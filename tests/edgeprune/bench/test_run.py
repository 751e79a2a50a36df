"""Measuring: real processes on the sample bundle once, and the order and the errors on fakes."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeprune.bench import bound
from edgeprune.bench import run as bench
from edgeprune.bench.bundles import NO_DEBIAS, PRUNED, UNPRUNED, opened
from edgeprune.bench.worker import Run, Worker
from edgeprune.bundle import read_manifest
from edgeprune.errors import BackendError, InputError
from edgeprune.memory import PeakMemory
from edgeprune.plans import PruningPlan, TowerStage
from edgeprune.progress import Silent
from edgeprune.runtime.backends import open_backend
from tests.manifests import write_bundle

RUN = Run(
    prompt_tokens=20,
    visual_tokens=16,
    tower_tokens=16,
    kept=(5,),
    padded=1,
    time_to_first_token=0.3,
    vision=0.1,
    prefill=0.2,
    time_per_output_token=0.01,
    cache_bytes=1000,
    peak_memory_bytes=2000,
    peak_memory_metric="of a fake",
)


class Listener(Silent):
    def __init__(self) -> None:
        self.steps: list[tuple[str, int | None]] = []
        self.done = 0

    def step(self, name: str, total: int | None = None) -> None:
        self.steps.append((name, total))

    def advance(self, amount: int) -> None:
        self.done += amount


@pytest.mark.slow
def test_the_sample_bundle_is_measured(
    sample_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    listener = Listener()
    report = bench.run(
        sample_bundle, runs=2, warmup=1, max_new_tokens=4, backend="onnxruntime", threads=1, progress=listener
    )
    assert list(tmp_path.iterdir()) == []
    assert [variant.name for variant in report.variants] == [UNPRUNED, NO_DEBIAS, PRUNED]
    assert {variant.engine for variant in report.variants} == {None}
    assert {variant.visual_tokens for variant in report.variants} == {144}
    unpruned, plain, pruned = report.variants
    assert (unpruned.kept, plain.kept, pruned.kept) == (144, 43, 43)
    # The image that is drawn is 4:3, so a quarter less of the square, in whole rows of 12 tokens.
    assert (unpruned.padded_kept, pruned.padded_kept) == (24, 0)
    manifest = read_manifest(sample_bundle)
    info = manifest.model
    for variant, after in ((unpruned, 144), (plain, 43), (pruned, 43)):
        tokens = 2 * (report.prompt_tokens + 3) + 2 * (report.prompt_tokens - 144 + after + 3)
        assert variant.cache_bytes == tokens * 2 * info.kv_heads * info.head_dim * 4
        assert variant.peak_memory_bytes is not None
        assert variant.peak_memory_bytes > sum(entry.bytes for entry in manifest.files)
        spread = variant.time_to_first_token
        assert 0 < spread.least <= spread.median <= spread.greatest
        assert variant.vision.median + variant.prefill.median < spread.greatest
    assert (report.runs, report.warmup, report.new_tokens, report.threads) == (2, 1, 4, 1)
    assert report.visual_tokens == 144
    assert report.interleaved
    assert report.not_measured == ()
    over_unpruned, over_plain = report.speed_ups
    assert (over_unpruned.over, over_plain.over) == (UNPRUNED, NO_DEBIAS)
    assert over_unpruned.prefill == unpruned.prefill.median / pruned.prefill.median
    assert over_unpruned.time_to_first_token == (
        unpruned.time_to_first_token.median / pruned.time_to_first_token.median
    )
    assert over_unpruned.share_of_bound == over_unpruned.prefill / over_unpruned.prefill_bound
    share = bound.prefill_bound(
        4, report.prompt_tokens, [(2, report.prompt_tokens - 144 + 43)], 96, 192, 4, 4, 24
    )
    assert over_unpruned.prefill_bound == pytest.approx(1 / share)
    assert over_plain.prefill_bound == 1
    assert ("measuring", 9) in listener.steps
    assert listener.done == 9
    json.dumps(report.to_dict())


@pytest.mark.slow
def test_an_unpruned_bundle_has_one_variant(unpruned_bundle: Path) -> None:
    picture = np.zeros((30, 30, 3), dtype=np.uint8)
    report = bench.run(
        unpruned_bundle, images=[picture], runs=1, warmup=0, max_new_tokens=2, backend="onnxruntime"
    )
    (variant,) = report.variants
    assert (variant.name, variant.kept, variant.padded_kept) == (UNPRUNED, 144, 0)
    assert report.speed_ups == report.not_measured == ()


@pytest.mark.slow
def test_bundles_are_measured_beside_each_other(sample_bundle: Path, unpruned_bundle: Path) -> None:
    report = bench.run(
        sample_bundle,
        baselines=[unpruned_bundle],
        runs=1,
        warmup=0,
        max_new_tokens=2,
        backend="onnxruntime",
        threads=1,
    )
    names = [str(unpruned_bundle), UNPRUNED, NO_DEBIAS, PRUNED]
    assert [variant.name for variant in report.variants] == names
    assert [variant.kept for variant in report.variants] == [144, 144, 43, 43]
    # The unpruned bundle has no padding mask of its own.
    assert [variant.padded_kept for variant in report.variants][::3] == [24, 0]
    assert report.variants[0].cache_bytes == report.variants[1].cache_bytes
    found = report.speed_ups[0]
    assert [speed_up.over for speed_up in report.speed_ups] == names[:-1]
    share = bound.prefill_bound(
        4, report.prompt_tokens, [(2, report.prompt_tokens - 144 + 43)], 96, 192, 4, 4, 24
    )
    assert found.prefill_bound == pytest.approx(1 / share)


@pytest.mark.slow
def test_a_bundle_is_measured_at_another_keep_ratio(sample_bundle: Path) -> None:
    report = bench.run(
        sample_bundle, keep=0.5, runs=1, warmup=0, max_new_tokens=2, backend="onnxruntime", threads=1
    )
    assert [(variant.name, variant.kept) for variant in report.variants] == [
        (UNPRUNED, 144),
        (NO_DEBIAS, 72),
        (PRUNED, 72),
    ]
    share = bound.prefill_bound(4, report.prompt_tokens, [(2, report.prompt_tokens - 72)], 96, 192, 4, 4, 24)
    assert report.speed_ups[0].prefill_bound == pytest.approx(1 / share)


def test_a_keep_ratio_that_is_none(sample_bundle: Path) -> None:
    with pytest.raises(InputError, match=r"the keep ratio is 30: .*0\.3 keeps 30"):
        bench.run(sample_bundle, keep=30, backend="onnxruntime")


def test_an_error_in_a_worker_is_the_same_error_here(sample_bundle: Path) -> None:
    with pytest.raises(InputError, match=r"need .* positions and the model has 2048"):
        bench.run(sample_bundle, max_new_tokens=2000, runs=1, backend="onnxruntime")


class FakeWorker:
    log: list[str] = []  # noqa: RUF012 - the test's own record

    def __init__(self, name: str, job: Path) -> None:
        self.name = name

    def __enter__(self) -> FakeWorker:
        self.log.append(f"+{self.name}")
        return self

    def __exit__(self, *_: object) -> None:
        self.log.append(f"-{self.name}")

    def run(self) -> Run:
        self.log.append(self.name)
        return replace(RUN, prefill=float(len(self.log)))


def measured(together: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], dict[str, list[Run]]]:
    FakeWorker.log = []
    jobs = {"a": Path("a"), "b": Path("b")}
    return FakeWorker.log, bench.measure(jobs, 1, 2, together, Silent(), FakeWorker, bench._reraise)


def test_variants_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    log, runs = measured(True, monkeypatch)
    assert log == ["+a", "a", "+b", "b", "a", "b", "a", "b", "-b", "-a"]
    assert [run.prefill for run in runs["a"]] == [5, 7]
    assert [run.prefill for run in runs["b"]] == [6, 8]


def test_variants_that_do_not_fit_together_run_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    log, runs = measured(False, monkeypatch)
    assert log == ["+a", "a", "a", "a", "-a", "+b", "b", "b", "b", "-b"]
    assert len(runs["a"]) == len(runs["b"]) == 2


def test_whether_they_fit_is_a_matter_of_free_memory(
    sample_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_backend("onnxruntime")
    (own,) = opened(sample_bundle, [], backend)
    assert own.size == sum(entry.bytes for entry in own.manifest.files)
    for free, expected in ((7 * own.size, True), (5 * own.size, False), (None, True)):
        monkeypatch.setattr(type(backend), "free_bytes", lambda _, free=free: free)
        assert bench.fit_together(backend, [own.size] * 3) is expected


def test_a_process_that_dies_gets_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    original = bench.subprocess.Popen

    def dying(command: list[str], **options: Any) -> Any:
        kill = f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"
        return original([sys.executable, "-c", kill], **options)

    monkeypatch.setattr(bench.subprocess, "Popen", dying)
    with bench._worker("pruned", Path("job")) as worker, pytest.raises(BackendError) as caught:
        worker.run()
    assert "'pruned' ended with status -9, killed for want of memory perhaps" in str(caught.value)


def test_leaving_a_worker_ends_its_process() -> None:
    with bench._worker("pruned", Path("no such job")) as worker:
        process = worker._process
    assert process.poll() is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_a_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    original = bench.subprocess.Popen

    def hanging(command: list[str], **options: Any) -> Any:
        return original([sys.executable, "-c", "import time; time.sleep(60)"], **options)

    monkeypatch.setattr(bench.subprocess, "Popen", hanging)
    monkeypatch.setattr(bench, "_PATIENCE", 0.1)
    began = time.monotonic()
    with bench._worker("pruned", Path("job")) as worker:
        process = worker._process
    assert process.poll() == -signal.SIGKILL
    assert time.monotonic() - began < 30


class SharedMemory:
    """A back end whose memory grows, by others too."""

    def __init__(self, shared: bool) -> None:
        self.taken = 0
        self.shared = shared

    def peak_memory(self) -> PeakMemory:
        self.taken += 1
        return PeakMemory(self.taken, "of a fake", self.shared)


@pytest.mark.parametrize(
    ("shared", "expected"),
    [
        (True, PeakMemory(1, "of a fake, until the end of the first run", True)),
        (False, PeakMemory(3, "of a fake")),
    ],
)
def test_what_others_take_later_does_not_count(shared: bool, expected: PeakMemory) -> None:
    worker = Worker.__new__(Worker)
    worker._backend, worker._memory = SharedMemory(shared), None  # type: ignore[assignment]
    assert [worker._peak_memory() for _ in range(3)][-1] == expected


def test_padding_is_not_counted_where_only_a_tower_merges() -> None:
    plan = PruningPlan(method="illava", tower=(TowerStage(layer=0, kept=9),))
    worker = Worker.__new__(Worker)
    worker._job = SimpleNamespace(plan=plan)  # type: ignore[assignment]
    assert worker._padded(np.ones(16, dtype=np.float32), ()) is None


@pytest.mark.parametrize("option", [{"runs": 0}, {"warmup": -1}, {"max_new_tokens": 1}, {"threads": 0}])
def test_numbers_have_to_make_sense(sample_bundle: Path, option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected a whole number of at least"):
        bench.run(sample_bundle, **{"backend": "onnxruntime", **option})


def test_caches_reach_the_back_end(sample_bundle: Path) -> None:
    with pytest.raises(InputError, match="`caches` is 'here': expected one of auto, in-place, copied"):
        bench.run(sample_bundle, backend="onnxruntime", caches="here")


def test_a_bundle_whose_name_the_workers_cannot_be_told(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xe9en"))
    write_bundle(odd)
    with pytest.raises(
        InputError, match=r"the name of the bundle, b'.*\\xe9en', is not UTF-8: expected one that"
    ):
        bench.run(odd)
