"""What an export is to be: everything about a bundle that is settled before a graph is traced."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig

import edgeprune
from edgeprune.debias.curves import BiasCurve, curve_table
from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.exporter import weights
from edgeprune.exporter.debiasing import debiasing
from edgeprune.exporter.decoder import layer_windows
from edgeprune.exporter.families import Family
from edgeprune.exporter.generation import read_generation
from edgeprune.exporter.graph import TORCH_DTYPES
from edgeprune.exporter.image_processor import padding_mask_for
from edgeprune.exporter.origin import check_curve, model_name, origin
from edgeprune.exporter.precision.choosing import precision_of, precision_of_checkpoint
from edgeprune.exporter.precision.linears import BLOCKS_OPSET, NVFP4_OPSET
from edgeprune.exporter.precision.quantisers import note_activations, read_quantization
from edgeprune.exporter.precision.stored import QuantisedLayers
from edgeprune.exporter.processor import read_prompt
from edgeprune.fields import first_fault
from edgeprune.interface import language_interface, vision_interface
from edgeprune.json_file import read_json
from edgeprune.log import note
from edgeprune.manifest import (
    MIN_OPSET,
    CacheGroup,
    DType,
    GraphSpec,
    Manifest,
    ModelInfo,
    Precision,
    WeightKind,
    curve_places,
)
from edgeprune.plans import Keep, Positions, PruningPlan, method_by_name, read_debias

_DTYPE_NAMES: dict[torch.dtype, DType] = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True)
class ExportOptions:
    """What to export; the fields are parameters of `edgeprune.export`."""

    keep: Keep = None
    method: str = "fastv"
    layer: int | Sequence[int] | None = None
    curve: str | os.PathLike[str] | None = None
    debias: str | Sequence[str] | None = None
    dtype: DType | None = None
    weights: WeightKind | None = None
    calibrate_images: str | os.PathLike[str] | None = None
    calibrate_prompts: str | os.PathLike[str] | None = None
    opset: int | None = None
    seed: int = 0
    max_pixels: int | None = None


def decide(
    folder: Path,
    source: str,
    config: PretrainedConfig,
    family: Family,
    options: ExportOptions,
    into: Path,
) -> tuple[Manifest, QuantisedLayers | None]:
    """The manifest of a bundle to be, without its files; the tokenizer and the chat template are written.

    Args:
        folder: the model.
        source: as the model was called.
        config, family: of the model.
        options: what was asked for.
        into: the bundle being written.

    Returns:
        The manifest, and the model's quantised layers, where its config says that it has such.

    Raises:
        InputError, UnsupportedModelError: the model, or what was asked for, cannot be exported.
    """
    text = config.get_text_config()
    stored = _DTYPE_NAMES[stored_dtype(folder)]
    with _values_of(folder):
        program = family.image_program(folder, config)
        if options.max_pixels is not None:
            program = program.within(options.max_pixels)
        video = family.video_program(folder, config)
        if video is not None and options.max_pixels is not None:
            video = video.within(options.max_pixels)
        info = _model_info(family, text, source, family.deepstack(config))
        prompt = read_prompt(folder, config, into, family.image_place(folder), video is not None)
        video = video if prompt.video_place is not None else None
        generation = read_generation(folder)
    plan = method_by_name(options.method).plan(
        info.layers,
        options.keep,
        options.layer,
        visual_tokens=program.fixed_tokens,
        seed=options.seed,
        tower_layers=family.tower_layers(config),
        deepstack=info.deepstack,
    )
    positions = family.positions(config)
    if positions.axes > 1 and plan.positions is Positions.RENUMBERED:
        raise InputError(
            f"the method {options.method} counts the positions of what it keeps anew, and this model's "
            f"positions have {positions.axes} numbers each, which leaves none to count: choose another method"
        )
    if any(layer_windows(text)) and plan.positions is Positions.RENUMBERED:
        raise UnsupportedModelError(
            f"the text model {info.text_model!r} has layers with windows over the unpruned prompt, and by "
            f"{options.method} its positions are counted otherwise here: take a method that keeps them, such "
            "as fastv"
        )
    _note_windows(plan, layer_windows(text))
    curve = None
    if plan.prunes:
        debias = read_debias(options.debias)
        acting = debiasing(options.method, debias, options.curve, info, program)
        plan, curve = plan.debiased(acting.debias), acting.curve
    if curve is not None and curve.fitted_to is not None:
        check_curve(curve, origin(folder, source, plan, program.grid))
    places = curve_places(curve, plan, program)
    curve_table(curve, places)  # refuses a table that is too short
    precision, layers = _precision(folder, config, family, options, stored, plan)
    language = language_interface(info, precision, plan, positions)
    vision = vision_interface(info, precision, plan, program, video)
    decided = Manifest(
        edgeprune_version=edgeprune.__version__,
        opset=_opset(options.opset, precision),
        model=info,
        precision=precision,
        plan=plan,
        curve=curve,
        padding_mask=padding_mask_for(program, options.method),
        language=GraphSpec(file="language.onnx", inputs=language.inputs, outputs=language.outputs),
        vision=GraphSpec(file="vision.onnx", inputs=vision.inputs, outputs=vision.outputs),
        cache_groups=tuple(CacheGroup(first=a, last=b) for a, b in plan.layers_of_groups(info.layers)),
        image_program=program,
        video_program=video,
        positions=positions,
        prompt=prompt,
        generation=generation,
    )
    if curve is not None and curve.num_tokens != places:
        _note_resampled(curve, places)
    return decided, layers


def _precision(
    folder: Path,
    config: PretrainedConfig,
    family: Family,
    options: ExportOptions,
    stored: DType,
    plan: PruningPlan,
) -> tuple[Precision, QuantisedLayers | None]:
    """By what was asked for and, where the model is quantised, by what it is; with its quantised layers."""
    compute = options.dtype or stored
    scheme = read_quantization(folder, read_json(folder / "config.json"))
    if scheme is None:
        layers = config.get_text_config().num_hidden_layers
        found = precision_of(options.weights, compute, stored, plan, layers)
        by_gptq = options.calibrate_images is not None
        return found.model_copy(update={"method": "gptq"}) if by_gptq else found, None
    if options.calibrate_images is not None:
        raise InputError(
            f"`calibrate_images` was given and the model in {folder} is quantised already ({scheme.kind}): "
            "leave it out, or export the original model, from before quantisation"
        )
    note_activations(scheme)
    with FakeTensorMode():
        model = family.build(config, TORCH_DTYPES[compute])
    quantised = QuantisedLayers(model, folder, scheme)
    scales = {form.scale for form in quantised.forms.values()}
    if inexact := {
        scale
        for scale in scales
        if torch.promote_types(scale, TORCH_DTYPES[compute]) != TORCH_DTYPES[compute]
    }:
        names = ", ".join(sorted(_DTYPE_NAMES[scale] for scale in inexact))
        note(
            f"the checkpoint's scales are stored as {names} and rounded to {compute}, in which the graph "
            "computes: weights differ from the checkpoint's by that; with the dtype fp32 they do not"
        )
    return precision_of_checkpoint(options.weights, compute, stored, plan, quantised.forms), quantised


@contextmanager
def _values_of(folder: Path) -> Iterator[None]:
    """What the model's files say and a manifest cannot hold is the model's fault."""
    try:
        yield
    except ValidationError as error:
        raise UnsupportedModelError(
            f"the model in {folder} has a value that no bundle can hold ({first_fault(error)}): correct its "
            "config.json, or the configuration of its processor or tokenizer"
        ) from error


def _note_windows(plan: PruningPlan, windows: Sequence[int | None]) -> None:
    """A layer that sees a window pays nothing to what lies in front of it."""
    whole = next((number for number, window in enumerate(windows) if window is None), None)
    for stage in plan.stages:
        window = None if stage.score_layer is None else windows[stage.score_layer]
        if window is not None:
            behind = "" if whole is None else f"; layer {whole} sees all: prune before layer {whole + 1}"
            note(
                f"before layer {stage.layer}, visual tokens are selected by the attention of layer "
                f"{stage.score_layer}, which sees {window} tokens: those farther from the end of the prompt "
                f"are paid nothing and go first{behind}"
            )


def _note_resampled(curve: BiasCurve, per_image: int) -> None:
    note(
        f"the bias curve was fitted to {curve.num_tokens} visual tokens and is resampled to this model's "
        f"{per_image} by relative position"
        + ("" if curve.fitted_to else "; a curve fitted to this model would be better")
    )


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype that most of the checkpoint's bytes have, but for those of quantised weights."""
    sizes: dict[torch.dtype, int] = {}
    for file in weights.checkpoint_files(folder):
        for tensor in weights.read_header(file).values():
            if tensor.dtype in _DTYPE_NAMES:
                sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.length
    if not sizes:
        raise InputError(
            f"the weights in {folder} are not stored as fp32, fp16 or bf16: export the model before "
            "quantisation"
        )
    return max(sizes, key=lambda d: sizes[d])


def _opset(asked: int | None, precision: Precision) -> int:
    """The least that has the operators, where nothing was asked for: the older, the more runtimes take it."""
    least = NVFP4_OPSET if "nvfp4" in precision.kinds else BLOCKS_OPSET if precision.in_blocks else MIN_OPSET
    if asked is not None and asked < least:
        raise InputError(
            f"opset {asked} has no {precision.weights} weights in blocks: expected {least} at least; "
            "leave out `opset`, or choose weights of a floating type"
        )
    return least if asked is None else asked


def _model_info(family: Family, text: PretrainedConfig, source: str, deepstack: int = 0) -> ModelInfo:
    heads = text.num_attention_heads
    return ModelInfo(
        family=family.name,
        architecture=family.architecture,
        text_model=text.model_type,
        source=model_name(source),
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocab_size=text.vocab_size,
        max_positions=text.max_position_embeddings,
        deepstack=deepstack,
    )
