"""What a first selection is debiased by: as asked, by what is known of the model, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeprune.debias.curves import ExponentialCurve, load_preset, save_curve
from edgeprune.errors import InputError
from edgeprune.exporter.debiasing import check_wish, debiasing
from edgeprune.image_program import GridTokens, ImageProgram, Stretch, TileFeed
from edgeprune.manifest import ModelInfo
from edgeprune.plans import Debias, read_debias
from tests.manifests import make_manifest

POSITION, PADDING = Debias
LETTERBOXED = make_manifest().image_program.model_copy(
    update={"feed": TileFeed(height=336, width=336), "tokens": GridTokens(rows=24, columns=24)}
)
CROPPED = LETTERBOXED.model_copy(update={"fit": Stretch()})
LLAVA = {
    7: {"hidden_size": 4096, "intermediate_size": 11008, "layers": 32, "heads": 32, "kv_heads": 32},
    13: {"hidden_size": 5120, "intermediate_size": 13824, "layers": 40, "heads": 40, "kv_heads": 40},
}


def info(size: int = 7, **changes: Any) -> ModelInfo:
    fields = {"family": "llava", "text_model": "llama", **LLAVA[size], **changes}
    return make_manifest().model.model_copy(update=fields)


OTHER = info(hidden_size=2048, layers=24)


def found(
    wanted: str | None = None,
    curve: str | Path | None = None,
    method: str = "fastv",
    model: ModelInfo | None = None,
    program: ImageProgram = LETTERBOXED,
) -> tuple[tuple[Debias, ...], Any]:
    result = debiasing(method, read_debias(wanted), curve, model or OTHER, program)
    return result.debias, result.curve


@pytest.mark.parametrize("size", LLAVA)
def test_the_published_curve_is_the_default_of_what_it_was_fitted_to(
    size: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = info(size)
    assert found(model=model) == ((POSITION, PADDING), load_preset("fastv"))
    assert found(model=model, method="himap")[1] == load_preset("himap")
    assert found("padding", model=model) == ((PADDING,), None)
    assert found("position", model=model) == ((POSITION,), load_preset("fastv"))
    assert found("none", model=model) == ((), None)
    assert not caplog.messages


@pytest.mark.parametrize(
    "changes",
    [
        {"model": OTHER},
        {"model": info(intermediate_size=14336, kv_heads=8)},  # Llama-3-8B
        {"model": info(13, layers=32)},
        {"model": info(text_model="mistral")},
        {"model": info(family="other")},
        {
            "model": info(),
            "program": LETTERBOXED.model_copy(update={"tokens": GridTokens(rows=27, columns=27)}),
        },
        {
            "model": info(),
            "program": LETTERBOXED.model_copy(update={"feed": TileFeed(height=384, width=384)}),
        },
        {"model": info(), "method": "illava"},
    ],
    ids=["size", "Llama 3", "depth", "text model", "family", "grid", "tower", "method"],
)
def test_every_other_model_gets_padding_alone_and_a_note(
    changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert found(**changes) == ((PADDING,), None)
    (message,) = caplog.messages
    assert "positions are not debiased" in message
    assert "`edgeprune calibrate`" in message


def test_a_curve_that_was_given_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    curve = ExponentialCurve(b=0.001, num_tokens=576)
    save_curve(curve, tmp_path / "curve.json")
    assert found(curve=tmp_path / "curve.json") == ((POSITION, PADDING), curve)
    assert found("position", "himap/gqa") == ((POSITION,), load_preset("himap/gqa"))
    assert not caplog.messages


def test_position_without_a_curve_is_refused() -> None:
    with pytest.raises(InputError, match="`debias` asks for position, and no bias curve of fastv is fitted"):
        found("position,padding")


def test_padding_is_not_claimed_where_there_is_none(caplog: pytest.LogCaptureFixture) -> None:
    assert found("padding", program=CROPPED) == ((), None)
    assert caplog.messages == ["padding is not debiased, because this model's images are never padded"]
    assert found(curve="fastv", program=CROPPED) == ((POSITION,), load_preset("fastv"))


def test_random_scores_have_padding_alone(caplog: pytest.LogCaptureFixture) -> None:
    assert found(method="random", model=info()) == ((PADDING,), None)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("debias", "expected"),
    [
        (None, None),
        ("none", ()),
        ("padding , position", (POSITION, PADDING)),
        (["padding"], (PADDING,)),
        (("padding", "padding"), (PADDING,)),
    ],
)
def test_how_it_can_be_written(debias: Any, expected: Any) -> None:
    assert read_debias(debias) == expected


@pytest.mark.parametrize("debias", ["both", "", "none,padding", ["all"]])
def test_what_is_no_debias_is_refused(debias: Any) -> None:
    with pytest.raises(InputError, match=r"`debias` is .*: expected position, padding, both with a comma"):
        read_debias(debias)


@pytest.mark.parametrize(
    ("method", "debias", "curve", "message"),
    [
        ("fastv", "padding", "fastv", "fastv was given, and `debias` leaves positions as they are"),
        ("fastv", "none", "fastv", "add position to it, or leave `curve` out"),
        ("random", None, "fastv", "the method random has no attention"),
        ("random", "position", None, "the method random has no attention"),
        ("fastv", None, "nowhere.json", "neither a bias curve preset nor a file"),
    ],
)
def test_wishes_that_contradict_themselves(
    method: str, debias: str | None, curve: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_wish(method, read_debias(debias), curve)
