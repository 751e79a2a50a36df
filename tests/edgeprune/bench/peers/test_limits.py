"""What the machine allows, by counting."""

from __future__ import annotations

import pytest

from edgeprune.bench.peers import limits
from edgeprune.bench.peers.limits import Rates, cache_values, measure, read_weights, step_seconds
from tests.manifests import make_manifest


def test_weights_are_counted_by_their_matrices() -> None:
    info = make_manifest().model  # 4 layers of 32, 4 heads and 2 of keys of 8 each, 48 within, 64 tokens
    layer = [32 * 32, 32 * 16, 32 * 16, 32 * 32, 32 * 48, 32 * 48, 48 * 32]
    assert read_weights(info) == 4 * sum(layer) + 32 * 64


def test_caches_behind_a_stage_are_shorter() -> None:
    manifest = make_manifest()
    (stage,) = manifest.plan.stages
    (counts,) = manifest.plan.counts(16)
    found = cache_values(manifest.model, manifest.plan, 20, 16)
    assert found == 2 * 2 * 8 * (stage.layer * 20 + (4 - stage.layer) * (4 + counts.after))
    assert cache_values(manifest.model, manifest.plan.keeping_all(), 20, 16) == 2 * 2 * 8 * 4 * 20
    assert cache_values(manifest.model, manifest.plan, 20, 0) == 2 * 2 * 8 * 4 * 20


def test_a_step_reads_weights_and_caches() -> None:
    rates = Rates(flops=1.0, bytes=100.0)
    assert step_seconds(rates, 50, 32, 25) == pytest.approx((200 + 100) / 100)
    assert step_seconds(rates, 50, 4, 0) == pytest.approx(0.25)


def test_rates_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_SIZE", 64), ("_ROWS", 64), ("_COLUMNS", 64)):
        monkeypatch.setattr(limits, name, value)
    found = measure()
    assert found.flops > 0
    assert found.bytes > 0


def test_the_fastest_try_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 10.0, 12.0, 20.0, 29.0, 30.0, 34.0, 40.0, 43.0])
    monkeypatch.setattr(limits, "perf_counter", lambda: next(clock))
    assert limits._least(lambda: None) == 2.0
