"""Bias curves: the weight w_i that undoes the recency bias of attention, by a visual token's index i.

Language-to-vision attention, averaged over many images, rises with a token's index whatever the
images show. A trend f is fitted to that mean, and w_i = f(0) / f(i) takes it out again
(arXiv 2508.17807). A curve is kept as the trend's parameters or as a table of weights, in JSON.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from edgeprune.errors import InputError
from edgeprune.fields import Count, Layer, Line, Part, Pixels, first_fault, shown
from edgeprune.files import write_text
from edgeprune.json_file import read_json

# Weights beyond float32's normal numbers would become 0 or infinite in the graph.
_SMALLEST = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max)

# Far more than any image has; keeps a wrong number in a file from asking for all memory.
_MOST_TOKENS = 1 << 20


Coordinate = Literal["image", "block", "row", "cell"]
"""What the places of a bias curve are: those along an image, along each block, along each row of a block; or
the cells of a square over each block, row by row.
"""
COORDINATES: tuple[Coordinate, ...] = get_args(Coordinate)


class _InvalidCurveError(InputError, ValueError):
    """A curve's fields cannot be used.

    A ValueError too, so that a curve that is a field of another model is refused by pydantic in that
    model's own error, with the place where it stands.
    """


class FittedTo(Part):
    """What a measured curve was fitted to.

    Attributes:
        model: its name.
        weights: a fingerprint of the model's weights.
        method: the pruning method whose scoring rows paid the attention.
        layer: of the pruning stage.
        images: how many were measured.
        grid: (rows, cols) of visual tokens of a tile; none where images are not cut into tiles.
    """

    model: Line
    weights: Line
    method: Line
    layer: Layer
    images: Count
    grid: tuple[Pixels, Pixels] | None = None


class _Curve(BaseModel):
    """What the kinds have in common: `coordinate` says what its places are, `source` is for people,
    `fitted_to` says where it was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    coordinate: Coordinate = "image"
    source: Line | None = None
    fitted_to: FittedTo | None = None

    def __init__(self, /, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise _InvalidCurveError(f"the bias curve is not valid: {first_fault(error)}") from error

    @model_validator(mode="after")
    def _cells_are_a_square(self) -> _Curve:
        if self.coordinate == "cell" and math.isqrt(self._fitted()) ** 2 != self._fitted():
            raise ValueError(
                f"it goes by cells and has {self._fitted()} places: expected a square number; measure it anew"
            )
        return self

    def weights(self, num_tokens: int | None = None) -> NDArray[np.float32]:
        """The weights w_i by which the tokens' scores are multiplied.

        Another number of tokens than the curve was fitted to is resampled by relative position: the
        first token maps to the first, the last to the last, those between are spaced evenly.

        Args:
            num_tokens: how many; None for as many as the curve was fitted to.

        Returns:
            float32 [num_tokens], w_0 exactly 1. Empty for 0.

        Raises:
            InputError: num_tokens is negative, or a table has fewer values.
        """
        count = self._fitted() if num_tokens is None else num_tokens
        if count < 0:
            raise InputError(
                f"the number of visual tokens is {count}: expected 0 or more; check the grid and the prompt"
            )
        weights = self._at(np.linspace(0.0, self._fitted() - 1.0, count)).astype(np.float32)
        weights[:1] = 1.0
        return weights

    def describe(self) -> str:
        """The curve in one line, for people."""
        last = float(self._at(np.array([self._fitted() - 1.0]))[0])
        origin = f" ({self.source})" if self.source else ""
        what = "visual tokens" if self.coordinate == "image" else f"places of a {self.coordinate}"
        return f"{self._shape()} over {self._fitted()} {what}, weights from 1 to {last:.3g}{origin}"

    def _fitted(self) -> int:
        """The number of visual tokens the curve was fitted to."""
        raise NotImplementedError

    def _at(self, position: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weights, float64, at fractional indices from 0 to the last one fitted."""
        raise NotImplementedError

    def _shape(self) -> str:
        raise NotImplementedError


class ExponentialCurve(_Curve):
    """w_i = exp(-b * i), from the trend f(i) = a * exp(b * i) (arXiv 2508.17807).

    Attributes:
        b: growth of the attention per token, a finite number.
        num_tokens: the visual tokens of one image that b was fitted to.
        source: where the curve comes from, for people.

    Raises:
        InputError: a field is of another type, or the last weight leaves float32's range.
    """

    kind: Literal["exponential"] = "exponential"
    b: float = Field(strict=True)
    num_tokens: int = Field(strict=True, ge=1, le=_MOST_TOKENS)

    @model_validator(mode="after")
    def _in_range(self) -> ExponentialCurve:
        exponent = -self.b * (self.num_tokens - 1)
        if not math.log(_SMALLEST) <= exponent <= math.log(_LARGEST):
            raise ValueError(
                f"b is {self.b:g} over {self.num_tokens} tokens, so the last weight is exp({exponent:g}), "
                "beyond float32's range; give a smaller b, fitted to attention by the token's index"
            )
        return self

    def _fitted(self) -> int:
        return self.num_tokens

    def _at(self, position: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.exp(-self.b * position)

    def _shape(self) -> str:
        return f"exponential curve, b = {self.b:.4g},"


class CubicCurve(_Curve):
    """w_i = f(0) / f(i), from the trend f(i) = c0 + c1*i + c2*i^2 + c3*i^3 (arXiv 2508.17807).

    Attributes:
        coefficients: c0, c1, c2, c3, finite numbers.
        num_tokens: the visual tokens of one image that f was fitted to.
        source: where the curve comes from, for people.

    Raises:
        InputError: a field is of another type, f is not positive everywhere from 0 to num_tokens - 1
            (between the tokens too, where a resampled curve is read), or a weight leaves float32's range.
    """

    kind: Literal["cubic"] = "cubic"
    coefficients: tuple[float, float, float, float]
    num_tokens: int = Field(strict=True, ge=1, le=_MOST_TOKENS)

    @model_validator(mode="after")
    def _positive(self) -> CubicCurve:
        extremes = np.array([0.0, *self._turns(), self.num_tokens - 1.0])
        with np.errstate(all="ignore"):
            trend = self._trend(extremes)
            weights = trend[0] / trend
        lowest = int(np.argmin(trend))  # the first NaN where there is one
        if not trend[lowest] > 0:
            raise ValueError(
                f"coefficients give f({extremes[lowest]:g}) = {trend[lowest]:g}, and f must be positive "
                f"from 0 to {self.num_tokens - 1}; fit the trend again, or use an exponential curve"
            )
        if not ((weights >= _SMALLEST) & (weights <= _LARGEST)).all():
            raise ValueError(
                f"coefficients give weights from {weights.min():g} to {weights.max():g}, beyond float32's "
                "range; fit the trend again, or use an exponential curve"
            )
        return self

    def _turns(self) -> list[float]:
        """The indices within the tokens where f may have an extremum: real roots of its derivative."""
        scale = max(map(abs, self.coefficients)) or 1.0  # the squares below must not overflow
        _, c1, c2, c3 = (c / scale for c in self.coefficients)
        square = c2 * c2 - 3 * c1 * c3
        if square < 0:
            return []
        # The form that subtracts no two nearly equal numbers, and needs no c3.
        q = -(c2 + math.copysign(math.sqrt(square), c2))
        roots = [top / bottom for top, bottom in ((q, 3 * c3), (c1, q)) if bottom != 0]
        return [root for root in roots if 0 < root < self.num_tokens - 1]

    def _trend(self, position: NDArray[np.float64]) -> NDArray[np.float64]:
        c0, c1, c2, c3 = self.coefficients
        return c0 + position * (c1 + position * (c2 + position * c3))

    def _fitted(self) -> int:
        return self.num_tokens

    def _at(self, position: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.coefficients[0] / self._trend(position)

    def _shape(self) -> str:
        return "cubic curve"


class TabulatedCurve(_Curve):
    """A weight for each visual token of an image, where no formula fits.

    The table is called `weights` when a curve is made and in JSON, and `table` on the object, where
    `weights` is the method that every curve has.

    Attributes:
        table: the weights: finite, positive in float32, the first one 1 (within 1e-6).
        source: where the curve comes from, for people.

    Raises:
        InputError: a weight is not such a number, or there is none.
    """

    kind: Literal["tabulated"] = "tabulated"
    table: tuple[float, ...] = Field(alias="weights", min_length=1, max_length=_MOST_TOKENS)

    @property
    def num_tokens(self) -> int:
        """The number of visual tokens of the table."""
        return len(self.table)

    @model_validator(mode="after")
    def _usable(self) -> TabulatedCurve:
        for index, weight in enumerate(self.table):
            if not _SMALLEST <= weight <= _LARGEST:
                raise ValueError(
                    f"weights.{index} is {weight:g}: every weight must be above 0 and within float32's range"
                )
        if abs(self.table[0] - 1) > 1e-6:
            raise ValueError(
                f"weights.0 is {self.table[0]:g}: the first weight must be 1; divide all weights by the first"
            )
        return self

    @model_serializer(mode="wrap")
    def _by_alias(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # One name in every file, also where the curve is a field of a model that is not written by alias.
        return {"weights" if name == "table" else name: value for name, value in serialize(self).items()}

    def weights(self, num_tokens: int | None = None) -> NDArray[np.float32]:
        """As for every curve; between the tabulated weights the line through its neighbours is taken."""
        if num_tokens is not None and num_tokens > self.num_tokens:
            raise InputError(
                f"the bias curve is a table of {self.num_tokens} weights and {num_tokens} visual tokens were "
                "asked for: a table cannot be stretched without inventing values; give a longer table, or an "
                "exponential or cubic curve"
            )
        return super().weights(num_tokens)

    def _fitted(self) -> int:
        return self.num_tokens

    def _at(self, position: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.interp(position, np.arange(self.num_tokens), self.table)

    def _shape(self) -> str:
        return "tabulated curve"


BiasCurve = Annotated[ExponentialCurve | CubicCurve | TabulatedCurve, Field(discriminator="kind")]

_KINDS: dict[str, type[ExponentialCurve | CubicCurve | TabulatedCurve]] = {
    "exponential": ExponentialCurve,
    "cubic": CubicCurve,
    "tabulated": TabulatedCurve,
}


def curve_table(curve: BiasCurve | None, places: int) -> NDArray[np.float32]:
    """The graph's constant: the weights that a visual token's place reads.

    Args:
        curve: the curve of one image; None weights nothing.
        places: N, how many places it has: the visual tokens of one image. Another number than it was fitted
            to is resampled by relative position.

    Returns:
        float32 [1 + N]: entry 0 is 1, for tokens that no curve acts on; entry 1 + i is w_i. [1] for None.

    Raises:
        InputError: a table is shorter than N.
    """
    own = np.empty(0, dtype=np.float32) if curve is None else curve.weights(places)
    return np.concatenate([np.ones(1, dtype=np.float32), own])


def load_curve(path: str | os.PathLike[str]) -> BiasCurve:
    """Reads a curve from a JSON file, as `save_curve` writes it.

    Raises:
        InputError: the file is missing or cannot be read, is not JSON, or is not a curve; the message
            names the file and the field.
    """
    try:
        data = read_json(path, "the bias curve file")
    except FileNotFoundError as error:
        raise InputError(f"there is no bias curve file {path}: check the path") from error
    except OSError as error:
        raise InputError(
            f"the bias curve file {path} cannot be read ({error.strerror}): expected a JSON file; "
            "check the path"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{path} is not JSON ({error}): expected a bias curve, an object with a kind; "
            "write it with save_curve"
        ) from error
    return _curve_of(data, str(path))


def save_curve(curve: BiasCurve, path: str | os.PathLike[str]) -> None:
    """Writes a curve as JSON. The file is complete or as it was before, never half written.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(Path(path), curve.model_dump_json(indent=2, exclude_none=True) + "\n", "the bias curve")


def preset_names() -> list[str]:
    """The names that `load_preset` knows, sorted: `method` for a default, `method/task` for one task."""
    names = set(_published())
    return sorted(names | {name.split("/")[0] for name in names})


def load_preset(name: str) -> BiasCurve:
    """A published curve, fitted to LLaVA-1.5-7B (arXiv 2508.17807).

    A method with one published curve has it as default. The default of a method with a curve for each of
    several tasks is computed: the exponential curve whose b is the median of the tasks' b. It is nobody's
    published curve, but sits in the middle of them where the task is not known beforehand.

    Args:
        name: lower case, `method` or `method/task`, such as "fastv" or "pyramiddrop/gqa".

    Raises:
        InputError: there is no such preset; the message lists those there are.
    """
    if name not in preset_names():
        raise InputError(f"unknown bias curve preset {name!r}: choose one of {', '.join(preset_names())}")
    curves = _published()
    if name in curves:
        return curves[name]
    tasks = [curve for key, curve in curves.items() if key.startswith(f"{name}/")]
    trends = [curve for curve in tasks if isinstance(curve, ExponentialCurve)]
    source = f"{_published_source()}, {name}, median b of {len(trends)} tasks"
    return ExponentialCurve(
        b=statistics.median(curve.b for curve in trends), num_tokens=trends[0].num_tokens, source=source
    )


def resolve_curve(spec: str | os.PathLike[str]) -> BiasCurve:
    """The curve that a user asked for.

    Args:
        spec: a preset's name, or the path of a JSON file. A file that is called as a preset is reached as
            "./name".

    Raises:
        InputError: spec is neither a preset nor a readable curve file.
    """
    if isinstance(spec, str):
        if spec in preset_names():
            return load_preset(spec)
        if not os.path.exists(spec):
            raise InputError(
                f"{spec!r} is neither a bias curve preset nor a file: give a JSON file's path, or one of "
                f"{', '.join(preset_names())}"
            )
    return load_curve(spec)


@cache
def _published_file() -> dict[str, Any]:
    text = resources.files("edgeprune.debias.presets").joinpath("published.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def _published_source() -> str:
    return str(_published_file()["source"])


@cache
def _published() -> dict[str, BiasCurve]:
    return {
        name: _curve_of({**fields, "source": f"{_published_source()}, {name}"}, f"preset {name}")
        for name, fields in _published_file()["curves"].items()
    }


def _curve_of(data: Any, where: str) -> BiasCurve:
    """The curve of decoded JSON; `where` is what error messages call its origin."""
    if not isinstance(data, dict):
        raise InputError(
            f"{where} holds a JSON {type(data).__name__}: expected a bias curve, an object with a kind "
            f"({', '.join(_KINDS)}); write it with save_curve"
        )
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        found = shown(repr(kind)) if "kind" in data else "missing"
        raise InputError(
            f"{where}: the field kind is {found}: expected one of {', '.join(_KINDS)}; correct it"
        )
    try:
        return _KINDS[kind](**data)
    except InputError as error:
        raise InputError(f"{where}: {error}; correct the field") from error
