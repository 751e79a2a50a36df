"""Which weights a GPU takes."""

from __future__ import annotations

import pytest

from edgeprune.errors import InputError
from edgeprune.manifest import Precision, WeightKind
from edgeprune.runtime.backends.tensorrt.targets import check_weights


def precision(weights: WeightKind, scoring: WeightKind = "int8") -> Precision:
    return Precision.plain("fp16").model_copy(
        update={"weights": weights, "scoring": scoring, "head": "int8", "block": 128, "method": "nearest"}
    )


@pytest.mark.parametrize(
    ("weights", "targets"),
    [
        ("int4", ["sm80", "sm120"]),
        ("int4", ["sm87"]),
        ("int8", ["sm75"]),
        ("fp16", ["sm75"]),
        ("fp8", ["sm89", "sm110"]),
        ("nvfp4", ["sm100", "sm110", "sm120"]),
    ],
)
def test_what_a_target_takes(weights: WeightKind, targets: list[str]) -> None:
    check_weights(precision(weights), targets)


@pytest.mark.parametrize(
    ("weights", "targets", "words"),
    [
        ("int4", ["sm75"], r"int4 weights, .*from Ampere \(sm80\) on, .* is sm75: .* in int8 or fp16"),
        ("fp8", ["sm86"], r"fp8 weights, .*from Ada \(sm89\) on, .* is sm86: .* in int4 or int8 or fp16"),
        ("nvfp4", ["sm75"], r"nvfp4 weights, .*from Blackwell \(sm100\) on, .* is sm75: .* in int8 or fp16"),
        ("nvfp4", ["sm90"], r"the target is sm90: export with weights in int4 or fp8 or int8 or fp16"),
        # The weakest of several decides.
        ("fp8", ["sm120", "sm87"], r"the target is sm87: .* in int4 or int8 or fp16"),
    ],
)
def test_what_a_target_cannot_read_is_refused(weights: WeightKind, targets: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_weights(precision(weights), targets)


def test_the_finer_weights_of_some_layers_count() -> None:
    with pytest.raises(InputError, match="has int4 weights"):
        check_weights(precision("int8", scoring="int4"), ["sm75"])
