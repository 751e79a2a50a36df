"""The bundle's manifest `edgeprune.json`: everything a runtime needs to know, in one checked schema."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgeprune.curves import BiasCurve
from edgeprune.plans import Debias, PruningPlan

SCHEMA_VERSION = 1
MANIFEST_NAME = "edgeprune.json"

DType = Literal["fp32", "fp16", "bf16"]

Size = Annotated[int, Field(ge=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Part):
    """One input or output of a graph. A string in `shape` names a dynamic axis."""

    name: str
    dtype: Literal["float32", "float16", "bfloat16", "int64"]
    shape: tuple[int | str, ...]


class GraphSpec(_Part):
    """One ONNX file and its interface."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class CacheGroup(_Part):
    """Decoder layers `first` to `last` (inclusive), whose key/value caches share one length."""

    first: int = Field(ge=0)
    last: int = Field(ge=0)


class ModelInfo(_Part):
    """What was exported. Sizes are in elements, counts of layers and heads as in the model's config."""

    family: str
    architecture: str
    text_model: str
    source: str
    dtype: DType
    layers: Size
    hidden_size: Size
    intermediate_size: Size
    heads: Size
    kv_heads: Size
    head_dim: Size
    vocab_size: Size
    max_positions: Size


class Preprocessing(_Part):
    """How a picture becomes `pixel_values` [images, 3, height, width] and its visual tokens.

    The steps run in the order of the fields. `resize` is either to a fixed (height, width) or so that the
    shortest edge has a given length; `pad_to_square` letterboxes with `pad_color` before resizing.
    `resample` is Pillow's filter number (0 nearest, 1 lanczos, 2 bilinear, 3 bicubic).
    """

    pad_to_square: bool = False
    pad_color: tuple[int, int, int] = (0, 0, 0)
    resize_shortest_edge: Size | None = None
    resize_to: tuple[Size, Size] | None = None
    resample: int = 3
    center_crop: tuple[Size, Size] | None = None
    rescale_factor: float | None = 1 / 255
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    image_size: tuple[Size, Size]
    grid: tuple[Size, Size]

    @property
    def places_per_image(self) -> int:
        """Cells of one picture's grid: its visual tokens, as long as a vision tower merges none."""
        return self.grid[0] * self.grid[1]


class PaddingMask(_Part):
    """Which visual tokens show only padding, by a picture's size; `none` where pictures are never padded.

    That says what a token is. Whether a selection goes by it is the plan's `debias`.
    """

    kind: Literal["none", "share", "bilinear"]
    threshold: float = Field(default=0.5, ge=0, le=1)


class Prompt(_Part):
    """Tokens and template of a prompt. `tokenizer` and `chat_template` name files of the bundle.

    `template_variables` holds further special tokens that the chat template reads by name (`unk_token`).
    """

    tokenizer: str
    chat_template: str | None
    image_token: str
    image_token_id: int
    pad_token_id: int
    bos_token: str | None = None
    eos_token: str | None = None
    eos_token_ids: tuple[int, ...]
    template_variables: dict[str, str] = {}


class Generation(_Part):
    """How the next token is chosen where a caller says nothing: the checkpoint's own defaults.

    The names and defaults are those of transformers; see `edgeprune.runtime.sampling.SamplingOptions`.
    """

    do_sample: bool = False
    temperature: float = Field(default=1.0, gt=0, le=1e6)
    top_k: int = Field(default=50, ge=0, le=1 << 24)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, le=1e6)
    no_repeat_ngram_size: int = Field(default=0, ge=0, le=1 << 24)


class FileEntry(_Part):
    """A file of the bundle, by its path relative to the bundle's folder."""

    path: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Check(_Part):
    """One figure of the comparison with the original model."""

    name: str
    value: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether the figure is within its limit; a NaN is not."""
        return self.value <= self.limit


def failures(checks: Iterable[Check]) -> str:
    """The figures beyond their limits, as part of a message; empty where every one holds."""
    bad = (check for check in checks if not check.holds)
    return "; ".join(f"{check.name} {check.value:.3g} (limit {check.limit:.3g})" for check in bad)


class Verification(_Part):
    """What the export's comparison with the original model found; `skipped` says why it did not run."""

    checks: tuple[Check, ...] = ()
    skipped: str | None = None


class Manifest(_Part):
    """The root of `edgeprune.json`."""

    schema_version: int = SCHEMA_VERSION
    edgeprune_version: str
    opset: int
    model: ModelInfo
    plan: PruningPlan
    curve: BiasCurve | None
    padding_mask: PaddingMask
    language: GraphSpec
    vision: GraphSpec
    cache_groups: tuple[CacheGroup, ...]
    max_visual_tokens: Size
    preprocessing: Preprocessing
    prompt: Prompt
    generation: Generation = Generation()
    verification: Verification = Verification(skipped="not run")
    files: tuple[FileEntry, ...] = ()

    @property
    def tokens_per_image(self) -> int:
        """Visual tokens of one picture that the language graph gets."""
        return self.plan.tokens_per_image(self.preprocessing.places_per_image)

    @model_validator(mode="after")
    def _debiases_as_planned(self) -> Manifest:
        planned = self.plan.debias
        if (Debias.POSITION in planned) != (self.curve is not None):
            has = "no bias curve" if self.curve is None else "a bias curve"
            raise ValueError(f"there is {has}, and the plan is {self.plan.describe()}")
        if Debias.PADDING in planned and self.padding_mask.kind == "none":
            raise ValueError(f"there is no padding mask, and the plan is {self.plan.describe()}")
        return self

    @model_validator(mode="after")
    def _groups_follow_the_plan(self) -> Manifest:
        edges = [0, *(stage.layer for stage in self.plan.stages), self.model.layers]
        expected = [(first, after - 1) for first, after in pairwise(edges)]
        found = [(group.first, group.last) for group in self.cache_groups]
        if edges != sorted(set(edges)) or found != expected:
            raise ValueError(
                f"the cache groups {found} do not fit {self.model.layers} layers pruned before "
                f"{edges[1:-1] or 'none'}"
            )
        return self
