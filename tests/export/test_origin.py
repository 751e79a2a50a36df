"""Whose a measured curve is, and which exports take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeprune import export
from edgeprune.debias.curves import ExponentialCurve, save_curve
from edgeprune.errors import InputError
from edgeprune.exporter.origin import check_curve, origin
from edgeprune.plans import method_by_name
from tests.tiny import save_llava

LAYERS, GRID = 4, (6, 6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("calibrated") / "tiny")


def belongs(model: Path, method: str = "fastv", layer: Any = None) -> Any:
    plan = method_by_name(method).plan(LAYERS, 0.5, layer)
    return origin(model, str(model), plan, GRID)


def test_a_curve_is_accepted_where_it_was_measured(model: Path) -> None:
    curve = ExponentialCurve(b=0.01, num_tokens=36, fitted_to=belongs(model))
    check_curve(curve, belongs(model).model_copy(update={"model": "renamed", "images": 7}))
    check_curve(ExponentialCurve(b=0.01, num_tokens=36), belongs(model))
    check_curve(None, belongs(model))


def test_a_curve_belongs_to_the_first_stage_whatever_the_later_ones(model: Path) -> None:
    """All are measured on the unpruned model, and the first alone is debiased."""
    curve = ExponentialCurve(b=0.01, num_tokens=36, fitted_to=belongs(model, "himap", [1, 2]))
    check_curve(curve, belongs(model, "himap", [1, 3]))
    with pytest.raises(InputError, match="for layer 1, and this export has layer 2"):
        check_curve(curve, belongs(model, "himap", [2, 3]))


def test_a_curve_of_another_model_method_or_layer_is_refused(model: Path, tmp_path: Path) -> None:
    curve = ExponentialCurve(b=0.01, num_tokens=36, fitted_to=belongs(model))
    other = save_llava(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=r"was measured on tiny .*, and this is other"):
        check_curve(curve, belongs(other))
    with pytest.raises(InputError, match="for layer 2, and this export has layer 1"):
        check_curve(curve, belongs(model, layer=1))
    with pytest.raises(InputError, match="for method fastv, and this export has method himap"):
        check_curve(curve, belongs(model, "himap"))
    with pytest.raises(InputError, match=r"for grid \(6, 6\)"):
        check_curve(curve, belongs(model).model_copy(update={"grid": (3, 12)}))


def test_export_checks_the_curve(model: Path, tmp_path: Path) -> None:
    save_curve(ExponentialCurve(b=0.01, num_tokens=36, fitted_to=belongs(model)), tmp_path / "curve.json")
    with pytest.raises(InputError, match="measured for layer 2, and this export has layer 1"):
        export(model, keep=0.3, layer=1, curve=tmp_path / "curve.json", output=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
