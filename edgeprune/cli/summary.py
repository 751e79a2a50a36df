"""A bundle in words and in JSON, as `export` and `inspect` print it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.cli.output import bytes_text, print_fields, print_table
from edgeprune.cli.text import shows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeprune.debias.curves import BiasCurve
    from edgeprune.interface import TensorSpec
    from edgeprune.manifest import Check, Manifest

_LEVELS = "▁▂▃▄▅▆▇█"
_PLAIN_LEVELS = "_.:-=+*#"


def as_json(bundle: Path, manifest: Manifest) -> dict[str, Any]:
    """The manifest with the bundle's place and total size."""
    return {"bundle": str(bundle), "bytes": total_bytes(manifest), **manifest.model_dump(mode="json")}


def total_bytes(manifest: Manifest) -> int:
    return sum(entry.bytes for entry in manifest.files)


def print_summary(bundle: Path, manifest: Manifest) -> None:
    """Plan, curve, padding mask, sizes and verification."""
    model = manifest.model
    curve = manifest.curve.describe() if manifest.curve else "none: positions are not debiased"
    fields = [
        ("bundle", f"{bundle} ({bytes_text(total_bytes(manifest))} in {len(manifest.files)} files)"),
        (
            "model",
            f"{model.source}: {model.architecture} with {model.text_model}, {model.layers} layers, "
            f"{manifest.precision.describe()}",
        ),
        ("plan", manifest.plan.describe()),
    ]
    if manifest.plan.shortens:
        program = manifest.image_program
        most = "" if program.fixed_tokens is not None else "up to "
        counts = manifest.plan.describe_counts(model.layers, program.most_tokens)
        fields.append(("visual tokens", most + counts))
    if manifest.plan.prunes:
        fields += [("bias curve", curve), ("padding mask", padding_text(manifest))]
    print_fields(fields)
    print_verification(manifest)


def padding_text(manifest: Manifest) -> str:
    mask = manifest.padding_mask
    if mask.kind == "none":
        return "none: images are never padded"
    acts = "" if "padding" in manifest.plan.debias else "; the plan does not go by it"
    if mask.kind == "bilinear":
        return f"bilinear: padding is where the resized mask is below {mask.threshold:g}{acts}"
    return f"share: a token is padding where more than {mask.threshold:g} of it is padding{acts}"


def print_verification(manifest: Manifest) -> None:
    verification = manifest.verification
    if verification.skipped:
        print(f"not compared with the original model: {verification.skipped}")
    else:
        print_checks(verification.checks, "compared with the original model")


def print_checks(checks: Sequence[Check], title: str) -> None:
    rows = [[check.name, f"{check.value:.3g}", f"{check.limit:.3g}"] for check in checks]
    print_table(["check", "found", "limit"], rows, title)


def print_graphs(manifest: Manifest) -> None:
    """The interface of both graphs; the caches, which are many, as one line a kind."""
    for title, graph in (("vision", manifest.vision), ("language", manifest.language)):
        rows = [("in", spec) for spec in graph.inputs] + [("out", spec) for spec in graph.outputs]
        print_table(["tensor", "", "type", "shape"], _tensor_rows(rows), f"{title}: {graph.file}", left=4)
    for form, file in manifest.language_forms.items():
        print(f"the same with caches {form}: {file}")


def _tensor_rows(tensors: Sequence[tuple[str, TensorSpec]]) -> list[list[str]]:
    grouped: dict[tuple[str, ...], list[str]] = {}
    for direction, spec in tensors:
        stem, _, number = spec.name.partition(".")
        shape = "[" + ", ".join(map(str, spec.shape)) + "]"
        grouped.setdefault((stem, direction, spec.dtype, shape), []).append(number)
    return [
        [stem if numbers == [""] else f"{stem}.{_span(numbers)}", direction, dtype, shape]
        for (stem, direction, dtype, shape), numbers in grouped.items()
    ]


def _span(numbers: Sequence[str]) -> str:
    return numbers[0] if len(numbers) == 1 else f"{numbers[0]}..{numbers[-1]}"


def print_files(manifest: Manifest) -> None:
    rows = [[entry.path, bytes_text(entry.bytes), entry.sha256[:16]] for entry in manifest.files]
    print_table(["file", "size", "SHA-256 begins"], rows)


def curve_plot(curve: BiasCurve, width: int = 64) -> str:
    """The curve's weights as one line of bars, first visual token at the left, 0 to the largest weight."""
    weights = curve.weights()
    columns = min(width, len(weights))
    picked = [float(weights[round(i * (len(weights) - 1) / max(1, columns - 1))]) for i in range(columns)]
    levels = _LEVELS if shows(_LEVELS) else _PLAIN_LEVELS
    top = max(picked)
    return "".join(levels[min(len(levels) - 1, int(value / top * len(levels)))] for value in picked)
