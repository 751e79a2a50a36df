"""Position rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edgeprune.layout import Block, ImageLayout, PromptLayout
from edgeprune.positions import GridPositions, SequentialPositions, prompt_positions


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
    "fields", [{"start": 2}, {"start": -1}, {"start": True}, {"kind": "grid"}, {"step": 1}]
)
def test_other_rules_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SequentialPositions.model_validate(fields)


GRIDS = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), max_size=3)


@settings(deadline=None, max_examples=30)
@given(GRIDS, st.lists(st.integers(1, 4), min_size=4, max_size=4))
def test_grid_positions_are_those_of_transformers(grids: list[tuple[int, int]], text: list[int]) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    kinds = [0] * text[0]
    for grid, behind in zip(grids, text[1:], strict=False):
        kinds += [1] * (grid[0] * grid[1]) + [0] * behind
    layout = PromptLayout(tuple(ImageLayout((1, 1), (Block(grid),), (grid[0] * grid[1],)) for grid in grids))
    model = transformers.Qwen2_5_VLModel
    config = transformers.Qwen2_5_VLConfig()
    thw = torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in grids])
    own = type("Model", (), {"config": config, "get_vision_position_ids": model.get_vision_position_ids})()
    ids = torch.zeros(1, len(kinds), dtype=torch.int64)
    expected, delta = model.get_rope_index(
        own, ids, mm_token_type_ids=torch.tensor([kinds]), image_grid_thw=thw if grids else None
    )
    found = prompt_positions(GridPositions(), np.array(kinds) == 1, layout)
    np.testing.assert_array_equal(found.ids, expected[:, 0].numpy())
    assert found.following == len(kinds) + int(delta[0, 0])
