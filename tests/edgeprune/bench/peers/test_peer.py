"""What peers share: token ids, and what a block took."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.bench.peers.peer import Clock, Cost, text_tokens, timed


@given(st.integers(0, 300), st.integers(3, 500), st.integers(0, 499))
def test_token_ids_are_of_the_vocabulary_and_no_image(count: int, vocabulary: int, image: int) -> None:
    found = text_tokens(count, vocabulary, image)
    assert found.shape == (count,)
    assert found.dtype == np.int64
    assert ((found > 0) & (found < vocabulary) & (found != image)).all()
    np.testing.assert_array_equal(found[: count // 2], text_tokens(count // 2, vocabulary, image))


def test_a_block_is_measured() -> None:
    with timed() as clock:
        time.sleep(0.01)
    assert clock.found.wall >= 0.01
    assert clock.found.cpu >= 0
    assert Cost(wall=6, cpu=3).over(3) == Cost(wall=2, cpu=1)


def test_a_block_that_goes_on_has_no_cost() -> None:
    with pytest.raises(AssertionError, match="has not ended"):
        _ = Clock().found
