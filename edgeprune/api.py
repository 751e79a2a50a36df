"""`edgeprune.export`: its signature and help, without what exporting needs; that is loaded at the call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.optional import export_module

if TYPE_CHECKING:
    from edgeprune.manifest import DType, WeightKind
    from edgeprune.plans import Keep
    from edgeprune.progress import Progress


def export(
    model: str | os.PathLike[str],
    *,
    keep: Keep = None,
    output: str | os.PathLike[str] | None = None,
    method: str = "fastv",
    layer: int | Sequence[int] | None = None,
    curve: str | os.PathLike[str] | None = None,
    debias: str | Sequence[str] | None = None,
    dtype: DType | None = None,
    weights: WeightKind | None = None,
    calibrate_images: str | os.PathLike[str] | None = None,
    calibrate_prompts: str | os.PathLike[str] | None = None,
    opset: int | None = None,
    seed: int = 0,
    max_pixels: int | None = None,
    force: bool = False,
    link: bool = False,
    verify: bool = True,
    progress: Progress | None = None,
) -> Path:
    """Writes a bundle.

    Args:
        model: a folder in Hugging Face's layout, or a hub id.
        keep: the share of visual tokens that the layers behind the first stage see on average, 0 < keep
            <= 1; 1 drops nothing. A sequence is the share of each stage, of all visual tokens; text such as
            "192/576" is a fraction, read exactly; None is the method's published setting. It is the bundle's
            default: a run may ask for another.
        output: the bundle's folder; by default named after model, method and keep, in the current folder.
        method: the pruning method, one of `edgeprune.plans.METHODS`; "none" for the unpruned graph.
        layer: prune before this decoder layer, or these where the method has several stages; None is the
            method's published layers, scaled to the decoder's depth.
        curve: a bias curve's JSON file, or a preset's name; None is the published one in the models it was
            fitted to (LLaVA-1.5 with 576 visual tokens an image).
        debias: what the first stage is debiased by: "position" (the bias curve), "padding" (the padding
            mask), both, or "none"; None is what there is a curve for, and padding. A default too.
        dtype: what the graphs compute in, "fp32", "fp16" or "bf16"; None is the checkpoint's own.
        weights: the type that weights are stored in: one of those, no wider than `dtype`, or "int4", "int8",
            "fp8" or "nvfp4" for the decoder's linear layers, see docs/precision.md; None is `dtype`. Where
            all is as in the checkpoint, its files stay as they are. "nvfp4" is for TensorRT on Blackwell GPUs
            alone: ONNX Runtime does not run it, so the result is not compared with the original model.
        calibrate_images: images to round int4 or int8 weights by (GPTQ), a folder, a list of paths, or a
            question file (.jsonl), some dozens like those that the model will see; None rounds to the
            nearest. The model is loaded whole for it.
        calibrate_prompts: a file with a question a line, asked in turn; None is a general one.
        opset: ONNX opset, 18 to 23; None is the least that has what is needed, 18, for weights in blocks 21,
            for nvfp4 23.
        seed: of the method "random".
        max_pixels: where images of any size are resized to a budget of pixels, the most that one has; None is
            the checkpoint's own. Fewer pixels are fewer visual tokens, and smaller engines.
        force: replace an earlier bundle at `output`.
        link: make files of the model that stay as they are hard links in the end instead of copies: they take
            no place on the disk, and both folders have to be on one file system. Model and bundle then share
            these files: altering one alters the other, and the bundle is refused as damaged. The back ends
            read them; `onnx.load` and onnx's checker refuse files with several links.
        verify: compare the result with the original model before it is put in place.
        progress: told the steps.

    Returns:
        The bundle's folder.

    Raises:
        InputError, UnsupportedModelError, OutputError, VerificationError: see their messages.
    """
    pipeline = export_module("exporter.pipeline")
    options = pipeline.ExportOptions(
        keep=keep,
        method=method,
        layer=layer,
        curve=curve,
        debias=debias,
        dtype=dtype,
        weights=weights,
        calibrate_images=calibrate_images,
        calibrate_prompts=calibrate_prompts,
        opset=opset,
        seed=seed,
        max_pixels=max_pixels,
    )
    written: Path = pipeline.export(
        model,
        options,
        output=output,
        force=force,
        link=link,
        verify=export_module("verification.original").verify_bundle if verify else None,
        by_gptq=None if calibrate_images is None else export_module("calibration.rounding").by_gptq,
        progress=progress,
    )
    return written
