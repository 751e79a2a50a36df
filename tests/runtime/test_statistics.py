"""Statistics of a reply."""

from __future__ import annotations

import json

from edgeprune.runtime.statistics import Statistics


def test_statistics_go_into_json() -> None:
    figures = Statistics(4, 3, (2,), (0,), 9, 3, 1, 0.1, 0.2, 0.3, 0.7, 0.5, 4.0, 100, None, "none")
    back = json.loads(json.dumps(figures.to_dict()))
    assert back["kept"] == [2]
    assert back["peak_memory_bytes"] is None
    assert len(back) == 16
