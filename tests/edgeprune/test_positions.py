"""Position rules."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from edgeprune.layout import PromptLayout
from edgeprune.positions import SequentialPositions, prompt_positions


@pytest.mark.parametrize("start", [0, 1])
def test_sequential_positions_count_every_token(start: int) -> None:
    positions = prompt_positions(SequentialPositions(start=start), np.zeros(5, dtype=bool), PromptLayout(()))
    assert positions.ids.dtype == np.int64
    np.testing.assert_array_equal(positions.ids, np.arange(5) + start)
    assert positions.following == 5 + start
    assert (
        prompt_positions(
            SequentialPositions(start=start), np.zeros(0, dtype=bool), PromptLayout(())
        ).following
        == start
    )


@pytest.mark.parametrize(
    "fields", [{"start": 2}, {"start": -1}, {"start": True}, {"kind": "grid3"}, {"step": 1}]
)
def test_other_rules_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SequentialPositions.model_validate(fields)
