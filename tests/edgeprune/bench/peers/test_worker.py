"""A worker measures whatever peer it is given: a made-up one here."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.bench.peers import worker
from edgeprune.bench.peers.peer import Cost, Job
from edgeprune.bench.peers.worker import Worker
from edgeprune.errors import BackendError, InputError
from edgeprune.memory import HOST_METRIC
from edgeprune.plans import PruningPlan

JOB = Job(
    peer="abacus",
    source=Path("beads"),
    bundle=Path("bundle"),
    plan=PruningPlan(method="none"),
    threads=1,
    prompt="what?",
    images=(),
    tokens=20,
    contexts=(3, 5),
    steps=4,
)


class Abacus:
    """Counts."""

    wrong: Exception | None = None

    def __init__(self, job: Job) -> None:
        assert job.source == Path("beads")

    def first_token(self) -> Cost | None:
        return None

    def prefill(self) -> Cost:
        if self.wrong is not None:
            raise self.wrong
        return Cost(wall=2, cpu=3)

    def decode(self, context: int) -> Cost:
        return Cost(wall=context, cpu=2 * context)


@pytest.fixture(autouse=True)
def abacus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(worker.CLASSES, "abacus", (__name__, "Abacus", "json"))
    monkeypatch.setattr(worker, "import_module", lambda _: type("module", (), {"Abacus": Abacus}))


def test_a_run_has_every_part() -> None:
    run = Worker(JOB).run()
    assert (run.first_token, run.prefill) == (None, Cost(wall=2, cpu=3))
    assert run.decode == {3: Cost(wall=3, cpu=6), 5: Cost(wall=5, cpu=10)}
    assert run.load.wall >= 0
    assert run.peak_memory_metric == f"{HOST_METRIC}, until the first prompt was read"


def test_an_error_of_a_peer_s_own_becomes_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Abacus, "wrong", RuntimeError("a bead\nis missing"))
    with pytest.raises(BackendError, match="it failed with RuntimeError: a bead is missing"):
        Worker(JOB).run()
    monkeypatch.setattr(Abacus, "wrong", InputError("as it is"))
    with pytest.raises(InputError, match="as it is"):
        Worker(JOB).run()
