"""Merging of dropped tokens against plain loops, at sizes that whole tiny models do not reach."""

from __future__ import annotations

import pytest
import torch

from edgeprune.exporter.indexing import ranks
from edgeprune.exporter.merging import absorb, append, recycle
from edgeprune.exporter.op import debiased_token_prune
from tests.export.method_reference import recycle_by_loops

TEXT_BEFORE, TEXT_BEHIND, WIDTH = 4, 7, 24


def batch_of(visual: int, stays: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Two prompts whose visual tokens stand at different places, pruned by random scores."""
    generator = torch.Generator().manual_seed(seed)
    sequence = TEXT_BEFORE + visual + TEXT_BEHIND
    # Clustered states, as images have: some tokens are near each other.
    centres = torch.randn(2, max(1, visual // 9), WIDTH, generator=generator) * 3
    which = torch.randint(0, centres.shape[1], (2, sequence), generator=generator)
    hidden = torch.stack([row[choice] for row, choice in zip(centres, which, strict=True)])
    hidden = hidden + torch.randn(hidden.shape, generator=generator)
    score = torch.rand(2, sequence, generator=generator)
    index = torch.stack([torch.arange(visual) + TEXT_BEFORE, torch.arange(visual) + TEXT_BEFORE - 2])
    positions = torch.arange(sequence).expand(2, -1).contiguous()
    slots = torch.zeros(1, stays, dtype=torch.int64)
    pruned, kept = debiased_token_prune(hidden, score, index, torch.ones(2, visual), slots)
    return {
        "hidden": hidden,
        "score": score,
        "index": index,
        "positions": positions,
        "kept": kept,
        "pruned": pruned,
    }


@pytest.mark.parametrize(("visual", "stays"), [(200, 60), (200, 199), (37, 19), (3, 1), (2, 1), (40, 0)])
def test_recycling_equals_loops(visual: int, stays: int) -> None:
    batch = batch_of(visual, stays)
    means = recycle(batch["hidden"], batch["score"], batch["index"], batch["kept"], batch["positions"])
    for row in range(2):
        positions = batch["index"][row].tolist()
        pruned = [position for position in positions if position not in set(batch["kept"][row].tolist())]
        raw = batch["score"][row][positions]
        centres, expected = recycle_by_loops(batch["hidden"][row], pruned, raw, positions)
        assert means.centres[row].tolist() == centres
        torch.testing.assert_close(means.hidden[row], torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_nothing_dropped_recycles_nothing() -> None:
    batch = batch_of(20, 20)
    means = recycle(batch["hidden"], batch["score"], batch["index"], batch["kept"], batch["positions"])
    assert means.hidden.shape == (2, 0, WIDTH)
    empty = batch["index"][:, :0]
    means = recycle(batch["hidden"], batch["score"], empty, batch["positions"], batch["positions"])
    place = append(means.centres, empty, batch["positions"], batch["positions"])
    assert place.order.tolist() == batch["positions"].tolist()
    assert place.visual_index.shape == (2, 0)


def test_equal_tokens_recycle_without_undefined_numbers() -> None:
    batch = batch_of(60, 18)
    same = torch.ones_like(batch["hidden"])
    means = recycle(same, batch["score"], batch["index"], batch["kept"], batch["positions"])
    torch.testing.assert_close(means.hidden, torch.ones_like(means.hidden))


def test_means_stand_behind_the_last_kept_visual_token() -> None:
    batch = batch_of(60, 18)
    means = recycle(batch["hidden"], batch["score"], batch["index"], batch["kept"], batch["positions"])
    place = append(means.centres, batch["index"], batch["kept"], batch["positions"])
    origin = place.join(batch["kept"], means.centres)
    for row in range(2):
        visual = set(batch["index"][row].tolist())
        kept = batch["kept"][row].tolist()
        behind = 1 + max(i for i, position in enumerate(kept) if position in visual)
        assert origin[row].tolist() == kept[:behind] + means.centres[row].tolist() + kept[behind:]
        found = [i for i, position in enumerate(origin[row].tolist()) if position in visual]
        assert place.visual_index[row].tolist() == found


def test_absorbing_weighs_the_worst_most() -> None:
    hidden = torch.arange(6.0).reshape(1, 6, 1)
    index = torch.tensor([[1, 2, 3, 4]])
    effective = torch.tensor([[0.1, 0.9, 0.5, 0.2]])
    found = absorb(hidden, effective, index, torch.arange(6)[None], torch.tensor(2))
    # Kept are tokens 2 and 3; 3 takes in 4 with weight 2 and 1 with weight 3.
    assert found.flatten().tolist() == pytest.approx([0, 1, 2, (3 + 2 * 4 + 3 * 1) / 6, 4, 5])


def test_ranks_count_equal_ones_by_index() -> None:
    score = torch.tensor([[0.5, -torch.inf, 0.5, 0.7, -torch.inf]])
    assert ranks(score).tolist() == [[1, 3, 2, 0, 4]]
    assert ranks(score[:, :0]).shape == (1, 0)
