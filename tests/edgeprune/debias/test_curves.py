"""Bias curves: their weights, their files and the published presets."""

from __future__ import annotations

import json
import math
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from edgeprune.debias.curves import (
    BiasCurve,
    CubicCurve,
    ExponentialCurve,
    TabulatedCurve,
    curve_table,
    load_curve,
    load_preset,
    preset_names,
    resolve_curve,
    save_curve,
)
from edgeprune.errors import InputError, OutputError

PROPERTY = settings(deadline=None, max_examples=150, derandomize=True)
TOKENS = st.integers(1, 700)


class Holder(BaseModel):
    """A model with a curve as a field, as the bundle's manifest is one."""

    curve: BiasCurve | None


@st.composite
def exponentials(draw: st.DrawFn) -> ExponentialCurve:
    tokens = draw(TOKENS)
    return ExponentialCurve(b=draw(st.floats(-80, 80)) / tokens, num_tokens=tokens, source=draw(SOURCES))


@st.composite
def cubics(draw: st.DrawFn) -> CubicCurve:
    tokens = draw(TOKENS)
    rise = [draw(st.floats(0, 3)) / tokens**power for power in (1, 2, 3)]
    return CubicCurve(coefficients=(draw(st.floats(0.01, 10)), *rise), num_tokens=tokens)


@st.composite
def tables(draw: st.DrawFn) -> TabulatedCurve:
    first = 1 + draw(st.floats(-9e-7, 9e-7))
    rest = draw(st.lists(st.floats(1e-30, 1e30), max_size=40))
    return TabulatedCurve(weights=[first, *rest])


SOURCES = st.one_of(st.none(), st.text(max_size=8).filter(str.isprintable))
CURVES = st.one_of(exponentials(), cubics(), tables())
EXPONENTIAL = ExponentialCurve(b=0.002, num_tokens=576, source="made up")
CUBIC = CubicCurve(coefficients=(2.0, 0.01, 0.0, 1e-8), num_tokens=576)
TABLE = TabulatedCurve(weights=[1.0, 0.5, 0.3])
EACH = pytest.mark.parametrize("curve", [EXPONENTIAL, CUBIC, TABLE], ids=lambda curve: curve.kind)


@PROPERTY
@given(CURVES, st.data())
def test_weights_are_positive_float32_and_begin_with_one(curve: BiasCurve, data: st.DataObject) -> None:
    most = curve.num_tokens if curve.kind == "tabulated" else 1500
    for count in (curve.num_tokens, data.draw(st.integers(1, most))):
        weights = curve.weights(count)
        assert weights.dtype == np.float32
        assert weights.shape == (count,)
        assert weights[0] == 1.0
        assert (weights > 0).all()
        assert np.isfinite(weights).all()
    assert np.array_equal(curve.weights(), curve.weights(curve.num_tokens))
    assert curve.weights(0).shape == (0,)
    assert curve.weights(1).tolist() == [1.0]


@PROPERTY
@given(CURVES, st.integers(2, 40))
def test_resampling_maps_the_last_token_to_the_last(curve: BiasCurve, count: int) -> None:
    if count <= curve.num_tokens:
        assert curve.weights(count)[-1] == curve.weights()[-1]


def test_exponential_formula() -> None:
    index = np.arange(576)
    np.testing.assert_allclose(EXPONENTIAL.weights(), np.exp(-0.002 * index), rtol=1e-6)


def test_cubic_formula() -> None:
    i = np.arange(576.0)
    wanted = 2.0 / (2.0 + 0.01 * i + 1e-8 * i**3)
    np.testing.assert_allclose(CUBIC.weights(), wanted, rtol=1e-6)
    wavy = CubicCurve(coefficients=(1.0, 0.5, 0.25, 0.125), num_tokens=3)
    np.testing.assert_allclose(wavy.weights(), [1, 1 / 1.875, 1 / 4], rtol=1e-6)
    np.testing.assert_allclose(wavy.weights(5)[1], 1 / (1 + 0.25 + 0.0625 + 0.015625), rtol=1e-6)


def test_a_table_is_taken_as_it_is_and_interpolated_linearly() -> None:
    table = TabulatedCurve(weights=[1.0, 0.8, 0.4, 0.2, 0.1])
    np.testing.assert_array_equal(table.weights(), np.array([1, 0.8, 0.4, 0.2, 0.1], np.float32))
    np.testing.assert_allclose(table.weights(3), [1, 0.4, 0.1], rtol=1e-6)
    np.testing.assert_allclose(table.weights(4), [1, 0.8 - 0.4 / 3, 0.4 - 0.4 / 3, 0.1], rtol=1e-6)
    assert table.num_tokens == 5


@PROPERTY
@given(st.floats(-0.05, 0.05), st.integers(2, 700), st.integers(2, 700))
def test_a_resampled_exponential_is_one_with_a_stretched_index(b: float, fitted: int, asked: int) -> None:
    stretched = ExponentialCurve(b=b * (fitted - 1) / (asked - 1), num_tokens=asked).weights()
    np.testing.assert_allclose(ExponentialCurve(b=b, num_tokens=fitted).weights(asked), stretched, rtol=1e-5)


def test_a_table_within_the_tolerance_still_begins_with_exactly_one() -> None:
    assert TabulatedCurve(weights=[1 + 5e-7, 0.5]).weights()[0] == 1.0


def test_a_table_is_not_stretched() -> None:
    with pytest.raises(InputError, match=r"table of 3 weights and 4 visual tokens .* give a longer table"):
        TABLE.weights(4)


@EACH
def test_a_negative_number_of_tokens_is_refused(curve: BiasCurve) -> None:
    for fails in (lambda: curve.weights(-1), lambda: curve_table(curve, -1)):
        with pytest.raises(InputError, match=r"the number of visual tokens is -1: expected 0 or more; check"):
            fails()


@EACH
def test_the_graph_s_table_begins_with_a_weight_for_tokens_without_a_place(curve: BiasCurve) -> None:
    table = curve_table(curve, 3)
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, [1, *curve.weights(3)])


def test_without_a_curve_the_table_is_that_weight_alone() -> None:
    assert curve_table(None, 576).tolist() == [1]


@EACH
def test_curves_are_frozen_hashable_and_described_in_one_line(curve: BiasCurve) -> None:
    with pytest.raises(ValidationError):
        curve.source = "another"
    assert hash(curve) == hash(curve.model_copy())
    assert curve.kind in curve.describe()
    assert str(curve.num_tokens) in curve.describe()
    assert "\n" not in curve.describe()


def test_a_description_names_parameter_last_weight_and_source() -> None:
    assert EXPONENTIAL.describe() == (
        "exponential curve, b = 0.002, over 576 visual tokens, weights from 1 to 0.317 (made up)"
    )


def cubic(*coefficients: float, num_tokens: int = 11) -> dict[str, Any]:
    return {"kind": "cubic", "coefficients": coefficients, "num_tokens": num_tokens}


REFUSED = [
    ({"kind": "exponential", "b": math.nan, "num_tokens": 9}, r"b: Input should be a finite number"),
    ({"kind": "exponential", "b": math.inf, "num_tokens": 9}, r"b: Input should be a finite number"),
    ({"kind": "exponential", "num_tokens": 9}, r"b: Field required"),
    ({"kind": "exponential", "b": 0.1, "num_tokens": 0}, r"num_tokens: Input should be greater"),
    ({"kind": "exponential", "b": 0.0, "num_tokens": 10**12}, r"num_tokens: Input should be less"),
    ({"kind": "exponential", "b": 0.1, "num_tokens": 9, "a": 1}, r"a: Extra inputs are not permitted"),
    ({"kind": "exponential", "b": 1, "num_tokens": 576}, r"b is 1 over 576 tokens, .* give a smaller b"),
    ({"kind": "exponential", "b": -1, "num_tokens": 576}, r"b is -1 over 576 tokens"),
    (cubic(1, 2, 3), r"coefficients.3: Field required"),
    (cubic(0, 1, 0, 0), r"f\(0\) = 0, and f must be positive from 0 to 10; fit"),
    (cubic(1, -0.1, 0, 0), r"f\(10\) = 0"),
    (cubic(-1, 0, 0, 0), r"f\(0\) = -1"),
    # Positive at both ends and at every token, but not between tokens 5 and 6; then the same as a cubic.
    (cubic(30.2, -11, 1, 0), r"f\(5.5\) = -0.05"),
    (cubic(274.2, -79.8, 0, 1, num_tokens=9), r"f\(5.157.*\) = -0.1"),
    (cubic(30.2, -11, 1, 1e-9), r"f\(5.5\) = -0.0"),
    (cubic(30.05, 19.25, -10, 1), r"f\(5.5\) = -0.2"),
    (cubic(30.2e200, -11e200, 1e200, 0), r"f\(5.5\) = -5e\+198"),
    (cubic(0, 0, 0, 0), r"f\(0\) = 0"),
    (cubic(1e-300, 1, 0, 0), r"coefficients give weights from .* beyond float32's range; fit"),
    (cubic(1e308, 1e308, 1e308, 1e308), r"beyond float32's range"),
    ({"kind": "tabulated", "weights": []}, r"weights: .* at least 1 item"),
    ({"kind": "tabulated", "weights": [0.9, 1.0]}, r"weights.0 is 0.9: the first .* divide all weights"),
    ({"kind": "tabulated", "weights": [1.00001]}, r"weights.0 is 1.00001"),
    ({"kind": "tabulated", "weights": [1.0, 0.0]}, r"weights.1 is 0: every weight must be above 0"),
    ({"kind": "tabulated", "weights": [1.0, 0.5, -1.0]}, r"weights.2 is -1"),
    ({"kind": "tabulated", "weights": [1.0, 1e-50]}, r"weights.1 is 1e-50"),
    ({"kind": "tabulated", "weights": [1.0, 1e39]}, r"weights.1 is 1e\+39"),
    ({"kind": "tabulated", "weights": [1.0, math.nan]}, r"weights.1: Input should be a finite number"),
    ({"kind": "tabulated", "weights": [1.0, "x"]}, r"weights.1: Input should be a valid number"),
    ({"kind": "tabulated", "weights": [1.0], "num_tokens": 1}, r"num_tokens: Extra inputs"),
]
KINDS: dict[str, Any] = {"exponential": ExponentialCurve, "cubic": CubicCurve, "tabulated": TabulatedCurve}


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_bad_fields_are_refused_where_the_curve_is_made(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"the bias curve is not valid: .*{message}"):
        KINDS[fields["kind"]](**fields)


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_bad_fields_in_a_file_name_the_file(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    path.write_text(text := json.dumps(fields))
    # Words that JSON does not know are refused before the fields are looked at.
    no_json = "NaN" in text or "Infinity" in text
    with pytest.raises(InputError, match="is not JSON" if no_json else rf"curve\.json: .*{message}"):
        load_curve(path)


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_bad_fields_in_another_model_are_its_own_error(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Holder.model_validate({"curve": fields})


def test_a_cubic_may_dip_outside_its_tokens() -> None:
    assert CubicCurve(**cubic(30.2, -11, 1, 0, num_tokens=5)).num_tokens == 5


@PROPERTY
@given(st.lists(st.floats(-2, 2), min_size=4, max_size=4), st.integers(1, 12))
def test_a_cubic_is_refused_exactly_where_a_fine_scan_finds_it_not_positive(
    terms: list[float], tokens: int
) -> None:
    coefficients = [term / tokens**power for power, term in enumerate(terms)]
    x = np.linspace(0, tokens - 1, 20001)
    lowest = np.polynomial.polynomial.polyval(x, coefficients).min()
    if abs(lowest) < 1e-6:
        return  # between the points of the scan, or a weight beyond float32
    try:
        CubicCurve(coefficients=coefficients, num_tokens=tokens)
        accepted = True
    except InputError:
        accepted = False
    assert accepted == (lowest > 0)


@PROPERTY
@given(CURVES)
def test_json_round_trip(curve: BiasCurve) -> None:
    holder = Holder(curve=curve)
    assert Holder.model_validate_json(holder.model_dump_json()) == holder
    assert Holder.model_validate(holder.model_dump()) == holder


@EACH
def test_save_and_load(curve: BiasCurve, tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    path.write_text("what was here before")
    save_curve(curve, path)
    assert load_curve(path) == curve
    assert load_curve(str(path)) == curve
    assert [file.name for file in tmp_path.iterdir()] == ["curve.json"]


def test_the_file_of_a_table_calls_its_weights_weights(tmp_path: Path) -> None:
    save_curve(TABLE, tmp_path / "curve.json")
    assert json.loads((tmp_path / "curve.json").read_text()) == {
        "kind": "tabulated",
        "coordinate": "image",
        "weights": [1, 0.5, 0.3],
    }


def test_a_failed_save_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "curve.json"
    save_curve(CUBIC, path)

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match=r"cannot be written to .*curve\.json \(No space left on device\)"):
        save_curve(TABLE, path)
    assert load_curve(path) == CUBIC
    assert [file.name for file in tmp_path.iterdir()] == ["curve.json"]


def test_save_to_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written to .*: choose a file in a folder that exists"):
        save_curve(TABLE, tmp_path / "no" / "curve.json")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no bias curve file .*no\.json: check the path"):
        load_curve(tmp_path / "no.json")


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the bias curve file .* is a folder: expected a regular file"):
        load_curve(tmp_path)


def test_a_pipe_instead_of_a_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "curve.json")
    with pytest.raises(InputError, match=r"is a pipe: expected a regular file"):
        load_curve(tmp_path / "curve.json")


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31m", "\ud800", "x" * 1001], ids=repr)
def test_a_source_that_cannot_be_shown_on_a_line_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="source"):
        ExponentialCurve(b=0.1, num_tokens=4, source=text)


@pytest.mark.parametrize("content", [b"", b"{", b"b = 0.002", b"\xff\xfe", b"[" * 100000])
def test_a_file_that_is_not_json(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"curve\.json is not JSON \(.*\): expected a bias curve"):
        load_curve(path)


@pytest.mark.parametrize("content", ["[1, 2]", "3", "null", '"cubic"'])
def test_json_that_is_no_object(content: str, tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"curve\.json holds a JSON .*: expected a bias curve, an object"):
        load_curve(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [("{}", "missing"), ('{"kind": "linear"}', "'linear'"), ('{"kind": ["cubic"]}', r"\['cubic'\]")],
)
def test_an_unknown_kind(content: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    path.write_text(content)
    with pytest.raises(
        InputError,
        match=rf"curve\.json: the field kind is {found}: expected one of exponential, cubic, tabulated",
    ):
        load_curve(path)


def test_preset_names() -> None:
    names = preset_names()
    assert names == sorted(set(names))
    assert [name for name in names if "/" not in name] == [
        "fastv", "himap", "pyramiddrop", "sparsevlm", "tokencarve",
    ]  # fmt: skip
    assert len(names) == 5 + 4 * 10
    assert "pyramiddrop/gqa" in names


def test_published_values() -> None:
    fastv = load_preset("fastv")
    assert isinstance(fastv, CubicCurve)
    assert fastv.coefficients == (
        0.9999999999999999, 0.00301519760334635, -1.4597908344382146e-05, 2.5691135190170128e-08,
    )  # fmt: skip
    task = load_preset("sparsevlm/pope")
    assert isinstance(task, ExponentialCurve)
    assert task.b == 0.004637037256426871
    assert task.source == "arXiv 2508.17807, LLaVA-1.5-7B, sparsevlm/pope"


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_falls_over_576_tokens(name: str) -> None:
    weights = load_preset(name).weights()
    assert len(weights) == 576
    assert 0 < weights[-1] < 0.6


@pytest.mark.parametrize("method", ["himap", "pyramiddrop", "sparsevlm", "tokencarve"])
def test_the_default_of_several_tasks_has_their_median(method: str) -> None:
    tasks = [load_preset(name) for name in preset_names() if name.startswith(f"{method}/")]
    default = load_preset(method)
    assert isinstance(default, ExponentialCurve)
    assert default.b == statistics.median(task.b for task in tasks if isinstance(task, ExponentialCurve))
    assert "median b of 10 tasks" in str(default.source)


@pytest.mark.parametrize("name", ["FastV", "fastv/gqa", "none", "", "himap/"])
def test_an_unknown_preset(name: str) -> None:
    with pytest.raises(
        InputError, match=rf"unknown bias curve preset '{name}': choose one of fastv, himap, himap/gqa"
    ):
        load_preset(name)


def test_resolve_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_curve("pyramiddrop/gqa") == load_preset("pyramiddrop/gqa")
    monkeypatch.chdir(tmp_path)
    save_curve(TABLE, "fastv")
    assert resolve_curve("fastv") == load_preset("fastv")
    assert resolve_curve("./fastv") == TABLE
    assert resolve_curve(Path("fastv")) == TABLE


def test_resolve_curve_refuses_what_is_neither_preset_nor_file(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"'fastw' is neither a bias curve preset nor a file: .*, or one of fastv"
    ):
        resolve_curve("fastw")
    with pytest.raises(InputError, match=r"'xxx.* is neither"):
        resolve_curve("x" * 300)  # longer than a name may be
    with pytest.raises(InputError, match=r"there is no bias curve file"):
        resolve_curve(tmp_path / "fastv")
