"""Work beside other work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from edgeprune.background import InBackground

Tell = Callable[[int], None]


def test_it_runs_beside_the_block_and_tells_how_far_it_is() -> None:
    begun, told = threading.Event(), list[int]()

    def work(tell: Tell) -> str:
        tell(1)
        begun.set()
        tell(2)
        return "done"

    with InBackground(work) as beside:
        assert begun.wait(10)
        assert told == []
        assert beside.finish(told.append) == "done"
    assert told == [1, 2]


def test_its_error_is_raised_where_it_is_waited_for() -> None:
    def work(tell: Tell) -> None:
        tell(5)
        raise ValueError("disk")

    told: list[int] = []
    with pytest.raises(ValueError, match="disk"), InBackground(work) as beside:
        beside.finish(told.append)
    assert told == [5]


def test_an_error_of_the_block_stops_it() -> None:
    steps: list[int] = []

    def work(tell: Tell) -> None:
        for number in range(5000):
            tell(number)
            steps.append(number)
            time.sleep(0.002)

    with pytest.raises(KeyError), InBackground(work):
        raise KeyError
    assert len(steps) < 5000


def test_an_error_of_the_block_wins() -> None:
    def work(tell: Tell) -> None:
        raise ValueError("dropped")

    with pytest.raises(KeyError), InBackground(work):
        raise KeyError
