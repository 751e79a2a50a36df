"""What storing weights in fewer bits changed."""

from __future__ import annotations

import numpy as np
import pytest

from edgeprune.manifest import Precision, WeightKind
from edgeprune.verification.quantising import LIMITS, Selected, weakest


def precision(weights: WeightKind, scoring: WeightKind = "int8") -> Precision:
    return Precision(
        compute="fp32",
        cache="fp32",
        weights=weights,
        scoring=scoring,
        head="int8",
        other="fp16",
        block=128,
        method="nearest",
    )


def selected(kept: list[int], score: list[float], logits: list[float]) -> Selected:
    return Selected(
        [np.array([kept])], [np.array([score], dtype=np.float32)], np.array([logits], dtype=np.float32)
    )


@pytest.mark.parametrize("weights", ["int4", "int8", "fp8"])
def test_the_coarsest_kind_sets_the_limits(weights: WeightKind) -> None:
    assert weakest(precision(weights)) == LIMITS[weights]  # type: ignore[index]
    assert weakest(precision("int8", scoring="int4")) == LIMITS["int4"]


def test_without_blocks_there_is_no_limit() -> None:
    assert weakest(Precision.plain("fp16")) is None


def test_changes_are_shares_of_the_original() -> None:
    before = selected([0, 1, 2, 3], [0.5, 0.25, 0.25], [1.0, -1.0])
    after = selected([0, 1, 2, 4], [0.4, 0.35, 0.25], [1.5, -1.0])
    found = after.changes(before)
    assert found["kept"] == 0.25
    assert found["score"] == pytest.approx(0.2)
    assert found["logits"] == pytest.approx(np.sqrt(0.125))
    assert before.changes(before) == {"kept": 0, "score": 0, "logits": 0}


def test_an_unpruned_prefill_has_logits_alone() -> None:
    plain = Selected([], [], np.array([[1.0, 2.0]], dtype=np.float32))
    assert plain.changes(plain) == {"logits": 0.0}
