"""The bundle's manifest `edgeprune.json`: everything a runtime needs to know, in one checked schema."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal, get_args

import numpy as np
from numpy.typing import NDArray
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
    Part,
    Sha256,
    Size,
    TokenId,
    Tokens,
    TokenText,
)
from edgeprune.image_program import ImageProgram
from edgeprune.interface import (
    CacheForm,
    Interface,
    TensorSpec,
    in_buffers,
    language_interface,
    vision_interface,
)
from edgeprune.layout import PromptLayout
from edgeprune.plans import Debias, Positions, PruningPlan
from edgeprune.positions import PositionRule, SequentialPositions
from edgeprune.video_program import VideoProgram

SCHEMA_VERSION = 2
MANIFEST_NAME = "edgeprune.json"

MIN_OPSET, MAX_OPSET = 18, 23
# Far more than a checkpoint has shards.
_MOST_FILES = 1000

DType = Literal["fp32", "fp16", "bf16"]
BlockKind = Literal["int4", "int8", "fp8", "nvfp4"]
WeightKind = Literal["fp32", "fp16", "bf16", "int4", "int8", "fp8", "nvfp4"]

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


class Precision(Part):
    """In which types the model is stored and runs.

    Attributes:
        compute: of everything that the graphs compute, unless an operator demands more.
        cache: of keys and values.
        weights: of the decoder's linear layers, a type or a kind of values in blocks.
        scoring: of those of the layers in front of the first selection, which decide what is kept.
        head: of the layer that makes logits.
        other: of all other weights with several axes: the embedding, what makes visual tokens, and linear
            layers whose inputs no block divides. What has one axis is stored in `compute`.
        block: at most so many values of an output share a scale; null where nothing is in blocks.
        method: how values in blocks were found; null where nothing is in blocks.
    """

    compute: DType
    cache: DType
    weights: WeightKind
    scoring: WeightKind
    head: WeightKind
    other: DType
    block: Annotated[int, Field(strict=True, ge=16, le=1 << 16)] | None = None
    method: Literal["nearest", "gptq", "checkpoint"] | None = None

    @classmethod
    def plain(cls, dtype: DType) -> Precision:
        """Everything in one type."""
        return cls(compute=dtype, cache=dtype, weights=dtype, scoring=dtype, head=dtype, other=dtype)

    @property
    def kinds(self) -> tuple[WeightKind, WeightKind, WeightKind]:
        """Of the linear layers: most, those in front of the first selection, the head."""
        return (self.weights, self.scoring, self.head)

    @property
    def in_blocks(self) -> bool:
        """Whether weights are stored in blocks."""
        return self.block is not None

    @property
    def beyond_onnxruntime(self) -> str | None:
        """What ONNX Runtime's CPU kernels do not run; None where they run all."""
        if "nvfp4" in self.kinds:
            return "nvfp4 weights"
        return "bfloat16" if self.compute == "bf16" else None

    def describe(self) -> str:
        """In words, for people."""
        if self.weights == self.compute:
            return self.compute
        parts = [f"{self.weights} weights"]
        if self.block is not None:
            parts[0] += f" in blocks of {self.block} ({_METHODS[self.method or 'nearest']})"
        for kind, what in ((self.scoring, "layers in front of the selection"), (self.head, "the head")):
            if kind != self.weights:
                parts.append(f"{what} {kind}")
        if self.other != self.weights:
            parts.append(f"other weights {self.other}")
        return f"{', '.join(parts)}; computes in {self.compute}"

    @model_validator(mode="after")
    def _blocks_are_told(self) -> Precision:
        kinds = set(self.kinds)
        if bool(kinds & set(get_args(BlockKind))) != self.in_blocks or self.in_blocks != bool(self.method):
            raise ValueError(
                f"weights are {', '.join(sorted(kinds))}, the block is {self.block}, the method {self.method}"
            )
        return self


_METHODS = {
    "nearest": "rounded to the nearest",
    "gptq": "by GPTQ",
    "checkpoint": "as in the checkpoint",
}


class ModelInfo(Part):
    """What was exported. Sizes are in elements, counts of layers and heads as in the model's config.

    `deepstack` counts the first layers behind which the vision graph's outputs of that name are added.
    """

    family: Line
    architecture: Line
    text_model: Line
    source: Line
    layers: Layers
    hidden_size: Size
    intermediate_size: Size
    heads: Size
    kv_heads: Size
    head_dim: Size
    vocab_size: Tokens
    max_positions: Tokens
    deepstack: Annotated[int, Field(strict=True, ge=0, le=64)] = 0


class Prompt(Part):
    """Tokens and template of a prompt. `tokenizer` and `chat_template` name files of the bundle.

    `image_place` is what stands in a chat template where an image goes; null for the image token itself.
    `video_place` is the same of a video; null where the model takes none.
    `template_variables` holds further special tokens that the chat template reads by name (`unk_token`).
    """

    tokenizer: FilePath
    chat_template: FilePath | None
    image_token: Annotated[TokenText, Field(min_length=1)]
    image_token_id: TokenId
    image_place: Annotated[TokenText, Field(min_length=1)] | None = None
    video_place: Annotated[TokenText, Field(min_length=1)] | None = None
    pad_token_id: TokenId
    bos_token: TokenText | None = None
    eos_token: TokenText | None = None
    eos_token_ids: Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=1000)]
    template_variables: Annotated[dict[Line, TokenText], Field(default_factory=dict, max_length=1000)]

    @property
    def place(self) -> str:
        """What stands in a prompt where an image goes."""
        return self.image_place or self.image_token


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

    @model_validator(mode="after")
    def _finite(self) -> Verification:
        # JSON has no other numbers: such a manifest could not be written and read again.
        if not all(math.isfinite(number) for check in self.checks for number in (check.value, check.limit)):
            raise ValueError("the figures of a comparison are finite numbers")
        return self


def curve_places(curve: BiasCurve | None, plan: PruningPlan, program: ImageProgram) -> int:
    """See `Manifest.curve_places`."""
    if curve is None:
        return 0
    if program.fixed_tokens is None or curve.coordinate != "image":
        return curve.num_tokens
    return _left(program.fixed_tokens, plan, program)


def _left(tokens: int, plan: PruningPlan, program: ImageProgram) -> int:
    """See `Manifest.tower_tokens`."""
    whole = program.tokens_per_tile
    return tokens // whole * plan.tokens_per_tile(whole) if plan.tower else tokens


class Manifest(Part):
    """The root of `edgeprune.json`.

    `language_forms` names further files of the language graph, by what they do with their caches. Their
    inputs and outputs are those of `language`, but that the caches lie in buffers.
    """

    schema_version: Annotated[int, Field(strict=True, ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    edgeprune_version: Line
    opset: Annotated[int, Field(strict=True, ge=MIN_OPSET, le=MAX_OPSET)]
    model: ModelInfo
    precision: Precision
    plan: PruningPlan
    curve: BiasCurve | None
    padding_mask: PaddingMask
    language: GraphSpec
    language_forms: dict[CacheForm, FilePath] = Field(default={})
    vision: GraphSpec
    cache_groups: Annotated[tuple[CacheGroup, ...], Field(max_length=1024)]
    image_program: ImageProgram
    video_program: VideoProgram | None = None
    positions: PositionRule = SequentialPositions()
    prompt: Prompt
    generation: Generation = Generation()
    verification: Verification = Verification(skipped="not run")
    files: Annotated[tuple[FileEntry, ...], Field(max_length=_MOST_FILES)] = ()

    def language_form(self, form: CacheForm) -> GraphSpec | None:
        """The language graph in another form; None where the bundle has no such file."""
        file = self.language_forms.get(form)
        if file is None:
            return None
        inputs, outputs = in_buffers(self.language.inputs), in_buffers(self.language.outputs)
        return GraphSpec(file=file, inputs=inputs, outputs=outputs)

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers, which is what an unpruned one takes."""
        info = self.model
        values = 2 * info.layers * info.kv_heads * info.head_dim
        return values * (4 if self.precision.cache == "fp32" else 2)

    @property
    def graph_files(self) -> tuple[str, ...]:
        """Every graph of the bundle."""
        return (self.vision.file, self.language.file, *self.language_forms.values())

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens of one tile that the language graph gets."""
        return self.plan.tokens_per_tile(self.image_program.tokens_per_tile)

    @property
    def image_tokens(self) -> int | None:
        """Visual tokens of an image that the language graph gets; None where that depends on the image."""
        fixed = self.image_program.fixed_tokens
        return None if fixed is None else self.tower_tokens(fixed)

    @property
    def most_image_tokens(self) -> int:
        """The most visual tokens of an image that the language graph gets."""
        return self.most_visual_tokens(1)

    def most_visual_tokens(self, images: int) -> int:
        """The most visual tokens of up to so many images of a prompt that the language graph gets."""
        return self.tower_tokens(self.image_program.most_of_prompt(images)[1])

    @property
    def curve_places(self) -> int:
        """N of the language graph's bias curve, float32 [1 + N], the constant that `curve_place` points into.

        As many as the visual tokens of an image where all images have as many and the curve begins anew with
        each, else as many as the curve was fitted to.
        """
        return curve_places(self.curve, self.plan, self.image_program)

    def curve_place(self, layout: PromptLayout) -> NDArray[np.int64]:
        """Which entry of the bias curve each visual token of a layout reads, int64 [V]; 0, which is no bias,
        for all where there is no curve.
        """
        return layout.places(self.curve_places, "image" if self.curve is None else self.curve.coordinate)

    def tower_tokens(self, tokens: int) -> int:
        """Of so many visual tokens of whole tiles, how many leave the vision tower."""
        return _left(tokens, self.plan, self.image_program)

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
    def _positions_can_be_counted(self) -> Manifest:
        if self.plan.positions is Positions.RENUMBERED and self.positions.axes > 1:
            raise ValueError(f"the plan renumbers positions, which have {self.positions.axes} numbers each")
        return self

    @model_validator(mode="after")
    def _groups_follow_the_plan(self) -> Manifest:
        expected = self.plan.layers_of_groups(self.model.layers)
        found = [(group.first, group.last) for group in self.cache_groups]
        if any(first > last for first, last in expected) or found != expected:
            raise ValueError(
                f"the cache groups {found} do not fit {self.model.layers} layers pruned before "
                f"{[stage.layer for stage in self.plan.stages] or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _graphs_follow_model_and_plan(self) -> Manifest:
        tokens = self.image_program.tokens_per_tile
        if self.plan.tower and self.plan.tower[0].kept > tokens:
            raise ValueError(f"the vision tower keeps {self.plan.tower[0].kept} of {tokens} tokens")
        precision = self.precision
        language = language_interface(self.model, precision, self.plan, self.positions)
        vision = vision_interface(self.model, precision, self.plan, self.image_program, self.video_program)
        _check_interface("language", self.language, language)
        _check_interface("vision", self.vision, vision)
        if isinstance(self.curve, TabulatedCurve) and self.curve.num_tokens < self.curve_places:
            raise ValueError(
                f"the bias curve is a table of {self.curve.num_tokens} weights for {self.curve_places} "
                "visual tokens of an image"
            )
        return self

    @model_validator(mode="after")
    def _images_are_as_told(self) -> Manifest:
        program = self.image_program
        if self.padding_mask.kind != "none" and not program.pads:
            raise ValueError("there is a padding mask, and the image program never pads")
        video = self.video_program
        if (video is None) != (self.prompt.video_place is None):
            raise ValueError("there is a video program without a place for videos in prompts, or the reverse")
        if video is not None and (fault := video.fault(program)):
            raise ValueError(f"the video program does not fit the image program: {fault}")
        if self.prompt.video_place == self.prompt.place:
            raise ValueError("images and videos have one place in prompts")
        text = [*program.text.model_dump().values(), *(video.text.model_dump().values() if video else ())]
        if any(self.prompt.image_token in part for part in filter(None, text)):
            raise ValueError(
                f"the image program's text holds the image token {self.prompt.image_token}, which stands for "
                "visual tokens alone"
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
