"""Statistics of a reply."""

from __future__ import annotations

import json

from edgeprune.runtime.statistics import Statistics


def test_statistics_go_into_json() -> None:
    figures = Statistics(
        4, 3, (2,), (0,), (4,), ((2,),), 9, 3, 1, 0.1, 0.2, 0.3, 0.7, 0.5, 4.0, 100, None, "none"
    )
    back = json.loads(json.dumps(figures.to_dict()))
    assert back["kept"] == [2]
    assert back["peak_memory_bytes"] is None
    assert len(back) == 19


def test_an_image_that_lost_nearly_all_is_named() -> None:
    def of(tokens: tuple[int, ...], *kept: tuple[int, ...]) -> tuple[int, ...]:
        stages = tuple(map(sum, kept))
        whole = sum(tokens)
        return Statistics(
            whole, whole, stages, stages, tokens, kept, 9, 3, 1, 0.1, 0.2, 0.3, 0.7, 0.5, 4.0, 100, None, ""
        ).starved

    assert of((100, 100), (60, 0)) == (1,)
    assert of((100, 100), (57, 3)) == ()
    assert of((100, 1000, 100), (300, 27, 3), (200, 4, 5)) == (1,)
    assert of((100,), (10,)) == ()
    assert of((100, 100)) == ()
    assert of(()) == ()
