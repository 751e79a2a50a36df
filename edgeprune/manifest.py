"""The bundle's manifest `edgeprune.json`: everything a runtime needs to know, in one checked schema."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgeprune.debias.curves import BiasCurve, TabulatedCurve
from edgeprune.debias.masks import PaddingMask
from edgeprune.fields import (
    Bytes,
    FilePath,
    Flag,
    Layer,
    Layers,
    Line,
    Number,
    Part,
    Pixels,
    Sha256,
    Size,
    TokenId,
    Tokens,
    TokenText,
)
from edgeprune.interface import Interface, TensorSpec, language_interface, vision_interface
from edgeprune.plans import Debias, PruningPlan

SCHEMA_VERSION = 2
MANIFEST_NAME = "edgeprune.json"

MIN_OPSET, MAX_OPSET = 18, 22
# Far more than a checkpoint has shards.
_MOST_FILES = 1000

DType = Literal["fp32", "fp16", "bf16"]

Byte = Annotated[int, Field(strict=True, ge=0, le=255)]
Filter = Annotated[int, Field(strict=True, ge=0, le=3)]
Deviation = Annotated[float, Field(strict=True, ge=1e-6, le=1e6)]
Specs = Annotated[tuple[TensorSpec, ...], Field(max_length=10_000)]


class GraphSpec(Part):
    """One ONNX file and its interface."""

    file: FilePath
    inputs: Specs
    outputs: Specs


class CacheGroup(Part):
    """Decoder layers `first` to `last` (inclusive), whose key/value caches share one length."""

    first: Layer
    last: Layer


class ModelInfo(Part):
    """What was exported. Sizes are in elements, counts of layers and heads as in the model's config."""

    family: Line
    architecture: Line
    text_model: Line
    source: Line
    dtype: DType
    layers: Layers
    hidden_size: Size
    intermediate_size: Size
    heads: Size
    kv_heads: Size
    head_dim: Size
    vocab_size: Tokens
    max_positions: Tokens


class Preprocessing(Part):
    """How a picture becomes `pixel_values` [images, 3, height, width] and its visual tokens.

    The steps run in the order of the fields. `resize` is either to a fixed (height, width) or so that the
    shortest edge has a given length; `pad_to_square` letterboxes with `pad_color` before resizing.
    Resizing takes the width first and then the height, with 8 bits between them, as Pillow did until 12.3.
    `resample` is Pillow's filter number (0 nearest, 1 lanczos, 2 bilinear, 3 bicubic).
    """

    pad_to_square: Flag = False
    pad_color: tuple[Byte, Byte, Byte] = (0, 0, 0)
    resize_shortest_edge: Pixels | None = None
    resize_to: tuple[Pixels, Pixels] | None = None
    resample: Filter = 3
    center_crop: tuple[Pixels, Pixels] | None = None
    rescale_factor: Number | None = 1 / 255
    mean: tuple[Number, Number, Number] | None = None
    std: tuple[Deviation, Deviation, Deviation] | None = None
    image_size: tuple[Pixels, Pixels]
    grid: tuple[Pixels, Pixels]

    def output_fault(self) -> str | None:
        """Why what comes out does not always have `image_size`, or padding inside; None where all is well."""
        edge, size = self.resize_shortest_edge, self.image_size
        square = (edge, edge) if edge is not None and self.pad_to_square else None
        resized = self.resize_to or square
        output = self.center_crop or resized
        if output is None:
            return "output size, which depends on the picture,"
        if output != size:
            return f"output of {output[0]} x {output[1]} pixels for a vision tower of {size[0]} x {size[1]}"
        if self.pad_to_square and resized is None:
            return "do_pad without do_resize"
        # The margin of such a crop would be padding that the padding mask does not know.
        if self.pad_to_square and resized and any(c > r for c, r in zip(output, resized, strict=True)):
            return f"crop_size {output} around padded pictures of size {resized}"
        return None

    @property
    def places_per_image(self) -> int:
        """Cells of one picture's grid: its visual tokens, as long as a vision tower merges none."""
        return self.grid[0] * self.grid[1]


class Prompt(Part):
    """Tokens and template of a prompt. `tokenizer` and `chat_template` name files of the bundle.

    `template_variables` holds further special tokens that the chat template reads by name (`unk_token`).
    """

    tokenizer: FilePath
    chat_template: FilePath | None
    image_token: Annotated[TokenText, Field(min_length=1)]
    image_token_id: TokenId
    pad_token_id: TokenId
    bos_token: TokenText | None = None
    eos_token: TokenText | None = None
    eos_token_ids: Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=1000)]
    template_variables: Annotated[dict[Line, TokenText], Field(default_factory=dict, max_length=1000)]


# The fields of `Generation` that say something only where tokens are drawn.
OF_DRAWING = ("temperature", "top_k", "top_p", "min_p")


class Generation(Part):
    """How the next token is chosen where a caller says nothing: the checkpoint's own defaults.

    The names and defaults are those of transformers; see `edgeprune.runtime.sampling.SamplingOptions`.
    """

    do_sample: Flag = False
    temperature: float = Field(strict=True, default=1.0, ge=1e-30, le=1e6)
    top_k: int = Field(strict=True, default=50, ge=0, le=1 << 24)
    top_p: float = Field(strict=True, default=1.0, gt=0, le=1)
    min_p: float = Field(strict=True, default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(strict=True, default=1.0, ge=1e-6, le=1e6)
    no_repeat_ngram_size: int = Field(strict=True, default=0, ge=0, le=1 << 24)


class FileEntry(Part):
    """A file of the bundle, by its path relative to the bundle's folder."""

    path: FilePath
    bytes: Bytes
    sha256: Sha256


class Check(Part):
    """One figure of the comparison with the original model."""

    name: Line
    value: Annotated[float, Field(strict=True)]
    limit: Annotated[float, Field(strict=True)]

    @property
    def holds(self) -> bool:
        """Whether the figure is within its limit; a NaN is not."""
        return self.value <= self.limit


def failures(checks: Iterable[Check]) -> str:
    """The figures beyond their limits, as part of a message; empty where every one holds."""
    bad = (check for check in checks if not check.holds)
    return "; ".join(f"{check.name} {check.value:.3g} (limit {check.limit:.3g})" for check in bad)


class Verification(Part):
    """What the export's comparison with the original model found; `skipped` says why it did not run."""

    checks: Annotated[tuple[Check, ...], Field(max_length=10_000)] = ()
    skipped: Line | None = None


class Manifest(Part):
    """The root of `edgeprune.json`."""

    schema_version: Annotated[int, Field(strict=True, ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    edgeprune_version: Line
    opset: Annotated[int, Field(strict=True, ge=MIN_OPSET, le=MAX_OPSET)]
    model: ModelInfo
    plan: PruningPlan
    curve: BiasCurve | None
    padding_mask: PaddingMask
    language: GraphSpec
    vision: GraphSpec
    cache_groups: Annotated[tuple[CacheGroup, ...], Field(max_length=1024)]
    preprocessing: Preprocessing
    prompt: Prompt
    generation: Generation = Generation()
    verification: Verification = Verification(skipped="not run")
    files: Annotated[tuple[FileEntry, ...], Field(max_length=_MOST_FILES)] = ()

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

    @model_validator(mode="after")
    def _graphs_follow_model_and_plan(self) -> Manifest:
        size, grid = self.preprocessing.image_size, self.preprocessing.grid
        if fault := self.preprocessing.output_fault():
            raise ValueError(f"the preprocessing's {fault} cannot be")
        if any(cells > pixels for cells, pixels in zip(grid, size, strict=True)):
            raise ValueError(
                f"the grid {grid} has more cells than the vision tower's input has pixels, {size}"
            )
        places = self.preprocessing.places_per_image
        if self.plan.tower and self.plan.tower[0].kept > places:
            raise ValueError(f"the vision tower keeps {self.plan.tower[0].kept} of {places} tokens")
        language = language_interface(self.model, self.plan)
        vision = vision_interface(self.model, self.plan, size, places)
        _check_interface("language", self.language, language)
        _check_interface("vision", self.vision, vision)
        if isinstance(self.curve, TabulatedCurve) and self.curve.num_tokens < self.tokens_per_image:
            raise ValueError(
                f"the bias curve is a table of {self.curve.num_tokens} weights for {self.tokens_per_image} "
                "visual tokens of a picture"
            )
        return self

    @model_validator(mode="after")
    def _tokens_are_words(self) -> Manifest:
        prompt = self.prompt
        for name in ("image_token_id", "pad_token_id", "eos_token_ids"):
            value = getattr(prompt, name)
            beyond = [
                t for t in (value if isinstance(value, tuple) else [value]) if t >= self.model.vocab_size
            ]
            if beyond:
                raise ValueError(
                    f"{name} {beyond[0]} is beyond the vocabulary of {self.model.vocab_size} tokens"
                )
        return self

    @model_validator(mode="after")
    def _files_are_listed_once(self) -> Manifest:
        listed = {entry.path for entry in self.files}
        if len(listed) != len(self.files):
            raise ValueError("files lists a path twice")
        return self


def _check_interface(name: str, graph: GraphSpec, expected: Interface) -> None:
    """Raises ValueError where a graph's inputs or outputs are not those that follow from model and plan."""
    for kind, found, wanted in (
        ("input", graph.inputs, expected.inputs),
        ("output", graph.outputs, expected.outputs),
    ):
        if found == wanted:
            continue
        have, want = {spec.name: spec for spec in found}, {spec.name: spec for spec in wanted}
        for spec in wanted:
            if spec.name not in have:
                raise ValueError(f"the {name} graph has no {kind} {spec.name}, which model and plan demand")
            if have[spec.name] != spec:
                raise ValueError(
                    f"the {name} graph's {kind} {spec.name} is {_described(have[spec.name])}: model and plan "
                    f"demand {_described(spec)}"
                )
        surplus = [spec.name for spec in found if spec.name not in want]
        raise ValueError(
            f"the {name} graph has the {kind} {surplus[0]}, which neither model nor plan knows"
            if surplus
            else f"the {name} graph's {kind}s stand in another order than model and plan demand"
        )


def _described(spec: TensorSpec) -> str:
    return f"{spec.dtype} [{', '.join(map(str, spec.shape))}]"
