"""`export`: from a Hugging Face model to a bundle."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, get_args

import onnx_ir as ir
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig, PreTrainedModel

import edgeprune
from edgeprune.background import InBackground
from edgeprune.bundle import sha256_of, write_manifest
from edgeprune.debias.curves import curve_table
from edgeprune.debias.selection import read_share
from edgeprune.errors import InputError
from edgeprune.exporter import assemble, cache_forms, graph, placing, weights
from edgeprune.exporter.debiasing import check_wish
from edgeprune.exporter.decision import ExportOptions, decide
from edgeprune.exporter.decoder import PrunedDecoder
from edgeprune.exporter.families import Family, ModelParts, family_of, read_config
from edgeprune.exporter.origin import model_name
from edgeprune.exporter.precision import choosing
from edgeprune.exporter.precision.stored import QuantisedLayers
from edgeprune.files import need_utf8
from edgeprune.interface import PLAN_METADATA
from edgeprune.manifest import MAX_OPSET, MIN_OPSET, FileEntry, Manifest, Verification, WeightKind
from edgeprune.plans import keep_ratios, method_by_name, plan_name, read_debias
from edgeprune.progress import Progress, Silent
from edgeprune.replacing import need_space, writing_to

Verify: TypeAlias = "Callable[[Path, Manifest, Path, Progress], Verification]"
"""Compares a bundle with the model's folder; see `edgeprune.verification.original.verify_bundle`."""
ByGptq: TypeAlias = "Callable[..., placing.Quantise]"
"""See `edgeprune.calibration.rounding.by_gptq`."""


def export(
    model: str | os.PathLike[str],
    options: ExportOptions,
    *,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    link: bool = False,
    verify: Verify | None = None,
    by_gptq: ByGptq | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes a bundle; see `edgeprune.export`. What `verify` refuses is not put in place; None skips it."""
    listener = progress or Silent()
    if options.opset is not None and not MIN_OPSET <= options.opset <= MAX_OPSET:
        raise InputError(f"opset {options.opset} is not supported: choose {MIN_OPSET} to {MAX_OPSET}")
    _check_options(options)
    folder = resolve_model(model, listener)
    config = read_config(folder)
    family = family_of(config)
    target = Path(output) if output is not None else default_output(model, options)
    _check_target(target, folder)
    with writing_to(target, force) as scratch:
        decided, layers = decide(folder, str(model), config, family, options, scratch)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        prepared = _prepare(decided, layers, config, family, folder, scratch, mode, link)
        # Tracing computes and copying waits for the disk; converting would wait for tracing at every step.
        with InBackground(prepared.placing.copy) as copying:
            traced = _trace(decided, prepared.parts, mode, listener)
            listener.step("writing weights", prepared.placing.bytes)
            copied = copying.finish(listener.advance)
        into_blocks = None
        if options.calibrate_images is not None and by_gptq is not None:
            images, prompts = options.calibrate_images, options.calibrate_prompts
            into_blocks = by_gptq(folder, decided, images, prompts, listener)
            listener.step("rounding weights by what they are multiplied with", prepared.placing.bytes)
        placed, converted = prepared.placing.convert(listener.advance, into_blocks)
        entries = [*copied, *converted]
        manifest = _write(decided, prepared, traced, placed, entries, scratch, listener)
        if link:  # not before, because onnx refuses to work on a file with several links
            listener.step("linking weights", sum(entry.bytes for entry in copied))
            prepared.placing.link(copied, listener.advance)
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
    kinds = get_args(WeightKind)
    if options.weights is not None and options.weights not in kinds:
        raise InputError(
            f"weights of the type {options.weights!r} are not supported: choose one of {', '.join(kinds)}"
        )
    if options.calibrate_images is not None and options.weights not in ("int4", "int8"):
        raise InputError(
            f"`calibrate_images` was given and weights are {options.weights or 'not rounded'}: expected int4 "
            "or int8 weights, which it rounds better; leave it out, or choose `weights`"
        )
    if options.calibrate_prompts is not None and options.calibrate_images is None:
        raise InputError(
            "`calibrate_prompts` was given without images: expected `calibrate_images` beside it, which the "
            "questions are asked about"
        )
    method = method_by_name(options.method)
    for share in keep_ratios(options.keep):
        read_share(share)
    check_wish(options.method, read_debias(options.debias), options.curve)
    if method.ranking is None:
        _check_nothing_asked(options)


def _check_target(target: Path, folder: Path) -> None:
    """Refuses to write a bundle in the place of the model, or of a folder that holds it, or under a name that
    the libraries which read and write the files cannot take.
    """
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


@dataclass(frozen=True)
class _Prepared:
    """A model without memory for its weights, and what becomes of these.

    Attributes:
        model: all of it.
        parts: of it.
        placing: brings them into the bundle.
    """

    model: PreTrainedModel
    parts: ModelParts
    placing: placing.Placing


@dataclass(frozen=True)
class _Traced:
    """The modules that the graphs were traced from, and the graphs, whose weights are to be attached."""

    vision: nn.Module
    decoder: PrunedDecoder
    vision_graph: ir.Model
    language_graph: ir.Model


def _prepare(
    decided: Manifest,
    layers: QuantisedLayers | None,
    config: PretrainedConfig,
    family: Family,
    folder: Path,
    scratch: Path,
    mode: FakeTensorMode,
    link: bool,
) -> _Prepared:
    """Finds the weights, and whether there is space for them, and links if they are asked for."""
    precision = decided.precision
    dtype = graph.TORCH_DTYPES[precision.compute]
    with mode:
        model = family.build(config, dtype)
    if layers is None:  # what is quantised all the same is refused
        layers = QuantisedLayers(model, folder, None)
    # Before the parts are taken: it unties what the checkpoint stores apart.
    stored = weights.locate(model, folder, layers.forms)
    parts = family.parts(model, decided.plan.tower)
    choosing.untie(parts.text_model, parts.lm_head, precision)
    forms = choosing.forms_of(model, parts.text_model, parts.lm_head, decided.plan, precision)
    found = placing.Placing(stored, forms, folder, scratch, dtype, layers=layers)
    need_space(scratch.parent, found.bytes)
    if link:
        found.check_links()
    return _Prepared(model, parts, found)


def _trace(decided: Manifest, parts: ModelParts, mode: FakeTensorMode, progress: Progress) -> _Traced:
    progress.step("tracing the vision graph")
    vision = graph.trace_vision(parts.vision, decided.vision, mode, decided.opset)
    progress.step("tracing the language graph")
    with mode:
        curve = torch.empty(1 + decided.curve_places)
    decoder = PrunedDecoder(
        parts.text_model,
        parts.lm_head,
        decided.plan,
        parts.image_token_id,
        curve,
        decided.model.max_positions,
        parts.two_way,
    ).eval()
    language = graph.trace_language(decoder, decided.language, mode, decided.opset)
    return _Traced(parts.vision, decoder, vision, language)


def _write(
    decided: Manifest,
    prepared: _Prepared,
    traced: _Traced,
    placed: Mapping[str, placing.Placed],
    entries: Sequence[FileEntry],
    scratch: Path,
    progress: Progress,
) -> Manifest:
    """Writes the graphs over the weights; returns the manifest with its files."""
    buffers = weights.buffer_values(prepared.model)
    progress.step("writing and checking the graphs")
    curve = torch.from_numpy(curve_table(decided.curve, decided.curve_places))
    constants = PrunedDecoder.constants(decided.plan, curve, decided.model.max_positions)
    metadata = {PLAN_METADATA: decided.plan.model_dump_json()}
    for module, traced_graph, spec, added, stated in (
        (traced.vision, traced.vision_graph, decided.vision, {}, {}),
        (traced.decoder, traced.language_graph, decided.language, constants, metadata),
    ):
        sources = assemble.initializer_sources(module, prepared.model, placed, buffers) | added
        assemble.attach(traced_graph, sources, scratch)
        assemble.optimize(traced_graph)
        assemble.save(traced_graph, spec, scratch / spec.file, edgeprune.__version__, stated)
        if module is traced.vision:
            assemble.check(scratch / spec.file, spec, 0)
    forms = cache_forms.write(scratch / decided.language.file, decided, traced.decoder.two_way)
    decided = decided.model_copy(update={"language_forms": forms})
    for form in (decided.language, *filter(None, map(decided.language_form, forms))):
        assemble.check(scratch / form.file, form, len(decided.plan.stages))

    prompt = decided.prompt
    own = [*decided.graph_files, prompt.tokenizer]
    own += [prompt.chat_template] if prompt.chat_template else []
    return decided.model_copy(update={"files": (*entries, *(_entry(scratch / name) for name in own))})


def _entry(path: Path) -> FileEntry:
    return FileEntry(path=path.name, bytes=path.stat().st_size, sha256=sha256_of(path))
