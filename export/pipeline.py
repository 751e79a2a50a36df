"""`export`: from a Hugging Face model to a bundle."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import torch
from pydantic import ValidationError
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig

import edgeprune
from edgeprune.bundle import sha256_of, write_manifest
from edgeprune.debias.curves import BiasCurve, curve_table
from edgeprune.debias.selection import read_share
from edgeprune.errors import InputError, UnsupportedModelError
from edgeprune.exporter import assemble, graph, weights
from edgeprune.exporter.debiasing import check_wish, debiasing
from edgeprune.exporter.decoder import PrunedDecoder
from edgeprune.exporter.families import Family, family_of, read_config
from edgeprune.exporter.generation import read_generation
from edgeprune.exporter.origin import check_curve, model_name, origin
from edgeprune.exporter.processor import padding_mask_for, read_preprocessing, read_prompt
from edgeprune.fields import first_fault
from edgeprune.files import need_utf8
from edgeprune.interface import PLAN_METADATA, language_interface, vision_interface
from edgeprune.log import note
from edgeprune.manifest import (
    MAX_OPSET,
    MIN_OPSET,
    CacheGroup,
    DType,
    FileEntry,
    GraphSpec,
    Manifest,
    ModelInfo,
    Verification,
)
from edgeprune.plans import Keep, PruningPlan, keep_ratios, method_by_name, plan_name, read_debias
from edgeprune.progress import Progress, Silent
from edgeprune.replacing import need_space, writing_to

Verify: TypeAlias = "Callable[[Path, Manifest, Path, Progress], Verification]"
"""Compares a bundle with the model's folder; see `edgeprune.verification.original.verify_bundle`."""

_DTYPE_NAMES: dict[torch.dtype, DType] = {dtype: name for name, dtype in graph.TORCH_DTYPES.items()}


@dataclass(frozen=True)
class ExportOptions:
    """What to export; the fields are parameters of `edgeprune.export`."""

    keep: Keep = None
    method: str = "fastv"
    layer: int | Sequence[int] | None = None
    curve: str | os.PathLike[str] | None = None
    debias: str | Sequence[str] | None = None
    dtype: DType | None = None
    opset: int = 18
    seed: int = 0


def export(
    model: str | os.PathLike[str],
    options: ExportOptions,
    *,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    verify: Verify | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes a bundle; see `edgeprune.export`. What `verify` refuses is not put in place; None skips it."""
    listener = progress or Silent()
    if not MIN_OPSET <= options.opset <= MAX_OPSET:
        raise InputError(f"opset {options.opset} is not supported: choose {MIN_OPSET} to {MAX_OPSET}")
    _check_options(options)
    folder = resolve_model(model, listener)
    config = read_config(folder)
    family = family_of(config)
    target = Path(output) if output is not None else default_output(model, options)
    _check_target(target, folder)
    with writing_to(target, force) as scratch:
        manifest = _write(folder, str(model), config, family, options, scratch, listener)
        verification = Verification(skipped="it was not asked for")
        if verify is not None:
            verification = verify(scratch, manifest, folder, listener)
        write_manifest(scratch, manifest.model_copy(update={"verification": verification}))
    return target


def _check_options(options: ExportOptions) -> None:
    """Refuses what is wrong whatever the model, before one is fetched."""
    if options.dtype is not None and options.dtype not in graph.TORCH_DTYPES:
        raise InputError(
            f"the dtype {options.dtype!r} is not supported: choose one of {', '.join(graph.TORCH_DTYPES)}"
        )
    method = method_by_name(options.method)
    for share in keep_ratios(options.keep):
        read_share(share)
    check_wish(options.method, read_debias(options.debias), options.curve)
    if method.ranking is None:
        _check_nothing_asked(options)


def _check_target(target: Path, folder: Path) -> None:
    """Refuses to write a bundle in the place of the model, or of a folder that holds it, or under a name that
    the libraries which read and write the files cannot take."""
    need_utf8(folder, "the model's folder")
    need_utf8(target, "the output")
    if Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(target)):
        raise InputError(
            f"the output {target} is, or holds, the model's own folder {folder}: choose another `output`"
        )


def _check_nothing_asked(options: ExportOptions) -> None:
    """What a method that prunes nothing would leave out in silence; a keep ratio of 1 asks for nothing."""
    keep = None if options.keep == 1 else options.keep
    asked = {"keep": keep, "layer": options.layer, "curve": options.curve, "debias": options.debias}
    for name, given in asked.items():
        if given is not None:
            shown = ",".join(map(str, given)) if isinstance(given, (list, tuple)) else given
            raise InputError(
                f"`{name}={shown}` was given and the method {options.method} prunes nothing: leave it out, "
                "or choose a method that prunes"
            )


def default_output(model: str | os.PathLike[str], options: ExportOptions) -> Path:
    """The folder name a bundle gets when none is given."""
    name = model_name(model).rsplit("/", 1)[-1]
    prunes = method_by_name(options.method).ranking is not None
    suffix = plan_name(options.method, options.keep) if prunes else "unpruned"
    return Path(f"{name}-{suffix}")


def resolve_model(model: str | os.PathLike[str], progress: Progress) -> Path:
    """A local folder for a folder or a hub id.

    Raises:
        InputError: there is no such folder, and it cannot be had from the hub.
    """
    text = str(model)
    folder = Path(text).expanduser()
    if os.path.isdir(folder):
        return folder
    looks_like_id = (
        text.count("/") <= 1 and not text.startswith((".", "/", "~")) and not os.path.isfile(folder)
    )
    if not looks_like_id:
        raise InputError(
            f"{text} is not a folder: expected a model folder in Hugging Face's layout, or a hub id"
        )
    from huggingface_hub import snapshot_download

    progress.step(f"downloading {text}")
    try:
        patterns = ["*.json", "*.safetensors", "*.jinja"]
        return Path(snapshot_download(text, allow_patterns=patterns))
    except Exception as error:  # of the hub, of its HTTP client and of the system
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{text} is neither a folder here nor a model that could be fetched from the hub ({reason}): "
            "check the spelling, or download it and give its folder"
        ) from error


def _write(
    folder: Path,
    source: str,
    config: PretrainedConfig,
    family: Family,
    options: ExportOptions,
    scratch: Path,
    progress: Progress,
) -> Manifest:
    text = config.get_text_config()
    dtype = graph.TORCH_DTYPES[options.dtype] if options.dtype else stored_dtype(folder)
    with _values_of(folder):
        preprocessing = read_preprocessing(folder, family.image_size(config), family.grid(config))
        info = _model_info(family, text, source, dtype)
        prompt = read_prompt(folder, config, scratch)
        generation = read_generation(folder)
    plan = method_by_name(options.method).plan(
        text.num_hidden_layers,
        options.keep,
        options.layer,
        visual_tokens=preprocessing.places_per_image,
        seed=options.seed,
        tower_layers=family.tower_layers(config),
    )
    per_image = plan.tokens_per_image(preprocessing.places_per_image)
    curve = None
    if plan.prunes:
        debias = read_debias(options.debias)
        acting = debiasing(options.method, debias, options.curve, info, preprocessing)
        plan, curve = plan.debiased(acting.debias), acting.curve
    if curve is not None and curve.fitted_to is not None:
        check_curve(curve, origin(folder, source, plan, preprocessing.grid))
    if curve is not None and curve.num_tokens != per_image:
        _note_resampled(curve, per_image)
    bias = torch.from_numpy(curve_table(curve, per_image))

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        model = family.build(config, dtype)
        curve_buffer = torch.empty(len(bias))
    stored = weights.locate(model, folder)
    size = weights.bytes_to_write(stored, folder, dtype)
    need_space(scratch.parent, size)
    buffers = weights.buffer_values(model)
    parts = family.parts(model, plan.tower)

    progress.step("tracing the vision graph")
    vision_spec = vision_interface(info, plan, preprocessing.image_size, preprocessing.places_per_image)
    vision = graph.trace_vision(parts.vision, vision_spec, mode, options.opset)
    progress.step("tracing the language graph")
    decoder = PrunedDecoder(
        parts.text_model, parts.lm_head, plan, parts.image_token_id, curve_buffer, info.max_positions
    ).eval()
    language_spec = language_interface(info, plan)
    language = graph.trace_language(decoder, language_spec, mode, options.opset)

    progress.step("writing weights", size)
    placed, entries = weights.place(stored, folder, scratch, dtype, progress.advance)

    progress.step("writing and checking the graphs")
    for module, traced, spec, name, stages in (
        (parts.vision, vision, vision_spec, "vision.onnx", 0),
        (decoder, language, language_spec, "language.onnx", len(plan.stages)),
    ):
        sources = assemble.initializer_sources(module, model, placed, buffers)
        if stages:
            sources |= PrunedDecoder.constants(plan, bias, info.max_positions)
        assemble.attach(traced, sources, scratch)
        assemble.optimize(traced)
        stated = {PLAN_METADATA: plan.model_dump_json()} if module is decoder else None
        assemble.save(traced, spec, scratch / name, edgeprune.__version__, stated)
        assemble.check(scratch / name, spec, stages)

    listed = [*entries, *(_entry(scratch / n) for n in ("vision.onnx", "language.onnx", prompt.tokenizer))]
    if prompt.chat_template:
        listed.append(_entry(scratch / prompt.chat_template))
    return Manifest(
        edgeprune_version=edgeprune.__version__,
        opset=options.opset,
        model=info,
        plan=plan,
        curve=curve,
        padding_mask=padding_mask_for(preprocessing, options.method),
        language=GraphSpec(file="language.onnx", inputs=language_spec.inputs, outputs=language_spec.outputs),
        vision=GraphSpec(file="vision.onnx", inputs=vision_spec.inputs, outputs=vision_spec.outputs),
        cache_groups=_cache_groups(plan, info.layers),
        preprocessing=preprocessing,
        prompt=prompt,
        generation=generation,
        files=tuple(listed),
    )


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


def _note_resampled(curve: BiasCurve, per_image: int) -> None:
    note(
        f"the bias curve was fitted to {curve.num_tokens} visual tokens and is resampled to this model's "
        f"{per_image} by relative position"
        + ("" if curve.fitted_to else "; a curve fitted to this model would be better")
    )


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype that most of the checkpoint's bytes have."""
    sizes: dict[torch.dtype, int] = {}
    for file in weights.checkpoint_files(folder):
        for tensor in weights.read_header(file).values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.length
    dtype = max(sizes, key=lambda d: sizes[d])
    if dtype not in _DTYPE_NAMES:
        raise InputError(
            f"the weights in {folder} are not stored as fp32, fp16 or bf16: export the model before "
            "quantisation"
        )
    return dtype


def _model_info(family: Family, text: PretrainedConfig, source: str, dtype: torch.dtype) -> ModelInfo:
    heads = text.num_attention_heads
    return ModelInfo(
        family=family.name,
        architecture=family.architecture,
        text_model=text.model_type,
        source=model_name(source),
        dtype=_DTYPE_NAMES[dtype],
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocab_size=text.vocab_size,
        max_positions=text.max_position_embeddings,
    )


def _cache_groups(plan: PruningPlan, layers: int) -> tuple[CacheGroup, ...]:
    edges = [0, *(stage.layer for stage in plan.stages), layers]
    return tuple(CacheGroup(first=a, last=b - 1) for a, b in pairwise(edges))


def _entry(path: Path) -> FileEntry:
    return FileEntry(path=path.name, bytes=path.stat().st_size, sha256=sha256_of(path))
