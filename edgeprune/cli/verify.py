"""`edgeprune verify`: whether a bundle is whole, and still does what it did when it was made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeprune.cli import summary
from edgeprune.cli.output import Backend, Bundle, Json, print_json, print_reason, progress_on_stderr
from edgeprune.errors import InputError, MissingDependencyError, VerificationError

if TYPE_CHECKING:
    from edgeprune.manifest import Check, Manifest
    from edgeprune.progress import Progress


def verify(
    bundle: Bundle,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="The original model, folder or hub id: repeat the export's comparison."
        ),
    ] = None,
    backend: Backend = "auto",
    as_json: Json = False,
) -> None:
    """Check a bundle's files, graphs and results.

    Files are compared with their hashes. Alone, the graphs run on a drawn image and must keep the
    tokens of the numpy reference, and another back end is compared with ONNX Runtime, output by output. With
    `--against`, the bundle is compared with the original model as when it was exported.
    """
    from edgeprune.bundle import read_manifest
    from edgeprune.manifest import failures

    with progress_on_stderr() as progress:
        total = summary.total_bytes(read_manifest(bundle))
        progress.step("comparing files with their hashes", total)
        manifest = read_manifest(bundle, check="hashes", progress=progress.advance)
        if against is None:
            checks, left_out = _alone(bundle, manifest, backend, progress)
        else:
            checks, left_out = _against(bundle, manifest, against, progress), []
    bad = failures(checks)
    if as_json:
        print_json(
            "verify",
            {
                "bundle": str(bundle),
                "files": len(manifest.files),
                "against": against,
                "verified": not bad,
                "checks": [check.model_dump() for check in checks],
                "left_out": left_out,
            },
        )
    else:
        print(f"{len(manifest.files)} files match their hashes")
        summary.print_checks(checks, "compared with the original model" if against else "checked without it")
        for reason in left_out:
            print_reason("left out", reason)
    if bad:
        raise VerificationError(
            f"the bundle {bundle} does not do what it should: {bad}; export it again, or try "
            "another --backend if this one erred"
        )


def _alone(
    bundle: Path, manifest: Manifest, backend: str, progress: Progress
) -> tuple[list[Check], list[str]]:
    """The checks, and what could not be checked here."""
    from edgeprune.verification.backends import comparable, compare
    from edgeprune.verification.standalone import check_graphs, check_run

    checks, left_out = [], []
    progress.step("checking the graphs")
    try:
        checks += check_graphs(bundle, manifest)
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        left_out.append(
            "the graphs' full check, which needs the package onnx: pip install 'edgeprune[export]'"
        )
    progress.step("running the graphs")
    checks += check_run(bundle, manifest, backend)
    for name in comparable(bundle, backend):
        progress.step(f"comparing {name} with ONNX Runtime")
        try:
            checks += compare(bundle, manifest, name)
        except (InputError, MissingDependencyError) as error:
            left_out.append(f"the comparison of {name} with ONNX Runtime: {error}")
    return checks, left_out


def _against(bundle: Path, manifest: Manifest, model: str, progress: Progress) -> list[Check]:
    from edgeprune.optional import export_module

    comparing = export_module("verification.original")
    folder = export_module("exporter.pipeline").resolve_model(model, progress)
    _check_same_model(manifest, export_module("exporter.families").read_config(folder), model)
    if reason := comparing.why_not(bundle, manifest):
        raise InputError(
            f"the bundle cannot be compared with its original here: {reason}; leave out --against"
        )
    progress.step("comparing with the original model")
    checks: list[Check] = comparing.compare(bundle, manifest, folder)
    return checks


def _check_same_model(manifest: Manifest, config: Any, model: str) -> None:
    """Refuses another model by its sizes, before they fail to fit somewhere in the comparison."""
    text = config.get_text_config()
    ours = manifest.model
    found = (text.model_type, text.num_hidden_layers, text.hidden_size, text.vocab_size)
    expected = (ours.text_model, ours.layers, ours.hidden_size, ours.vocab_size)
    if found != expected or ours.architecture not in (config.architectures or [ours.architecture]):
        described = "{} with {} layers of width {} and {} words"
        raise InputError(
            f"{model} is {described.format(*found)}, and the bundle was made from "
            f"{described.format(*expected)} ({ours.source}): give --against the model that it was made from"
        )
