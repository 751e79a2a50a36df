"""`edgeprune bench`: options passed on, the report as a table and as JSON."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune.bench import run as measuring
from edgeprune.bench.peers import run as peers
from edgeprune.bench.peers.peer import Cost
from edgeprune.bench.peers.run import CostSpread, Limit, PeerResult, PeersReport
from edgeprune.bench.run import BenchReport, SpeedUp, Spread, VariantResult
from tests.edgeprune.cli.conftest import Cli


def variant(name: str, seconds: float) -> VariantResult:
    return VariantResult(
        name=name,
        engine=None,
        visual_tokens=144,
        kept=43,
        padded_kept=7,
        time_to_first_token=Spread(seconds, seconds / 2, seconds * 2),
        vision=Spread(0.001, 0.001, 0.001),
        prefill=Spread(0.002, 0.002, 0.002),
        time_per_output_token=Spread(0.0005, 0.0005, 0.0005),
        cache_bytes=4096,
        peak_memory_bytes=None,
    )


REPORT = BenchReport(
    backend="onnxruntime",
    threads=None,
    runs=5,
    warmup=1,
    prompt_tokens=152,
    visual_tokens=144,
    new_tokens=16,
    interleaved=True,
    peak_memory_metric="resident set",
    variants=(variant("unpruned", 0.4), variant("pruned", 0.1)),
    speed_ups=(SpeedUp("unpruned", 1.5, 2.0, 1.25, 2.5, 0.8),),
    not_measured=(),
)


class FakeBench:
    """Remembers what it was asked to measure."""

    def __init__(self) -> None:
        self.report = REPORT
        self.asked: tuple[Path, dict[str, Any]] | None = None

    def run(self, bundle: Path, **arguments: Any) -> BenchReport:
        arguments.pop("progress").step("measuring", 5)
        self.asked = (bundle, arguments)
        return self.report


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> FakeBench:
    fake = FakeBench()
    monkeypatch.setattr(measuring, "run", fake.run)
    return fake


def test_whose_prompt_it_is_where_a_tower_merges(cli: Cli, bench: FakeBench) -> None:
    assert "152 tokens, 144 of them visual; 16 decoded" in cli("bench", "bundle").out
    bench.report = replace(REPORT, visual_tokens=56, variants=(variant("none", 0.4), variant("merging", 0.1)))
    out = " ".join(cli("bench", "bundle").out.split())
    assert "56 of them visual, as merging gets it from its vision tower; 16 decoded" in out


def test_the_table_has_spreads_and_the_bound(cli: Cli, bench: FakeBench) -> None:
    result = cli("bench", "bundle")
    for text in (
        "400 (200 to 800)",
        "100 (50 to 200)",
        "unknown",
        "152 tokens, 144 of them visual; 16 decoded",
        "43 of 144",
        "speed-up over unpruned  prefill 2.00x, by counting FLOPs 2.50x (0.80 of it); first token 1.50x, "
        "per token 1.25x",
        "the variants took turns",
        "resident set",
    ):
        assert text in result.out, text
    assert result.err == "measuring ...\n"


def test_variants_that_did_not_take_turns(cli: Cli, bench: FakeBench) -> None:
    bench.report = replace(REPORT, interleaved=False)
    assert "one variant after the other" in cli("bench", "bundle").out


def test_an_engine_alone_says_what_is_not_measured(cli: Cli, bench: FakeBench) -> None:
    alone = replace(variant("bundle", 0.1), engine="tensorrt-10.9.0-sm89, pruning by the plugin")
    bench.report = replace(
        REPORT, backend="tensorrt", variants=(alone,), speed_ups=(), not_measured=("what it gains: ...",)
    )
    out = cli("bench", "bundle").out
    assert "speed-up" not in out
    assert "turns" not in out
    assert re.search(r"^not measured: what it gains: \.\.\.$", out, re.MULTILINE)
    assert re.search(r"^engine +bundle: tensorrt-10\.9\.0-sm89, pruning by the plugin$", out, re.MULTILINE)


def test_json_is_the_report(cli: Cli, bench: FakeBench) -> None:
    expected = json.loads(json.dumps({"format": "edgeprune.bench/1", **REPORT.to_dict()}))
    assert json.loads(cli("bench", "bundle", "--json").out) == expected


@pytest.mark.parametrize(
    "given", ["--runs 0", "--warmup -1", "--max-new-tokens 1", "--threads 0", "--backend abacus"]
)
def test_a_measurement_that_cannot_be(cli: Cli, sample_bundle: Path, given: str) -> None:
    name, value = given.split()
    message = cli("bench", sample_bundle, *given.split()).message
    assert value in message
    assert f"{name} is" in message or "back end" in message


@pytest.mark.slow
def test_the_sample_model_is_measured(cli: Cli, sample_bundle: Path) -> None:
    given = "--runs 1 --warmup 0 --max-new-tokens 2 --threads 1 --json"
    found = json.loads(cli("bench", sample_bundle, *given.split()).out)
    assert [variant["name"] for variant in found["variants"]] == [
        "unpruned",
        "pruned without debias",
        "pruned",
    ]
    assert [variant["kept"] for variant in found["variants"]] == [144, 43, 43]
    assert [speed_up["over"] for speed_up in found["speed_ups"]] == ["unpruned", "pruned without debias"]
    assert found["speed_ups"][0]["prefill_bound"] > 1


def beside(name: str, first: CostSpread | None) -> PeerResult:
    spread = CostSpread(Spread(0.5, 0.4, 0.7), Spread(0.6, 0.5, 0.8))
    load = Cost(wall=2, cpu=3)
    return PeerResult(name, "1.2", "beads alone", load, first, spread, {64: spread}, 5_000_000)


PEERS = PeersReport(
    weights="fp32",
    threads=1,
    runs=5,
    warmup=1,
    prompt_tokens=152,
    visual_tokens=144,
    new_tokens=16,
    interleaved=True,
    peak_memory_metric="resident set",
    flops=50e9,
    read_bytes=12e9,
    results=(
        beside("edgeprune pruned", CostSpread(Spread(1, 1, 1), Spread(1, 1, 1))),
        beside("abacus", None),
    ),
    limits=(Limit("pruned", 0.3, {64: 0.2}), Limit("rounded", None, {64: 0.1})),
    not_measured=("slide rule: it slipped",),
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the peers' measuring was asked for."""
    seen: dict[str, Any] = {}

    def run(bundle: Path, **arguments: Any) -> PeersReport:
        seen.update(arguments)
        return PEERS

    monkeypatch.setattr(peers, "run", run)
    return seen


AGAINST = ("bench", "bundle", "--against", "transformers, llama.cpp", "--model", "m")


def test_peers_stand_beside_the_bundle_and_its_limits(cli: Cli, asked: dict[str, Any]) -> None:
    result = cli(*AGAINST, "--contexts", "64,700")
    assert asked["against"] == ["transformers", "llama.cpp"]
    assert (asked["model"], asked["contexts"]) == (Path("m"), [64, 700])
    rows = [" ".join(line.split()) for line in result.out.splitlines()]
    assert rows.count("abacus 2000 - 500 (400 to 700) 500 (400 to 700)") == 1  # by the clock
    assert rows.count("abacus 3000 - 600 (500 to 800) 600 (500 to 800)") == 1  # CPU time
    assert rows.count("limit pruned - - 300 200") == 1
    assert rows.count("limit rounded - - - 100") == 1
    assert "50 GFLOP/s, reads 12 GB/s, by numpy" in result.out
    assert "5 MB; 1.2; beads alone" in result.out
    assert "not measured: slide rule: it slipped" in result.out


def test_peers_as_json(cli: Cli, asked: dict[str, Any]) -> None:
    told = json.loads(cli(*AGAINST, "--json").out)
    assert told["format"] == "edgeprune.bench-against/1"
    assert told["results"][1]["first_token"] is None
    assert asked["contexts"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bench", "bundle", "--against", "llama.cpp"), "'--model': with --against: expected the folder"),
        ((*AGAINST, "--baseline", "b"), "'--baseline': with --against: leave it out"),
        ((*AGAINST, "--contexts", "many"), "'many' is no list of whole numbers: expected such as 64,700"),
        (("bench", "bundle", "--model", "m"), "they go with --against"),
        (("bench", "bundle", "--contexts", "64"), "they go with --against"),
    ],
)
def test_options_that_do_not_go_together(cli: Cli, arguments: tuple[str, ...], words: str) -> None:
    result = cli(*arguments)
    assert result.code == 2
    assert words in result.message
