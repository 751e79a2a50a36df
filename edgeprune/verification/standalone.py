"""What can be checked of a bundle without the model it was made from."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.errors import VerificationError
from edgeprune.interface import OP_DOMAIN, OP_NAME
from edgeprune.manifest import Check, Manifest
from edgeprune.onnx_files import external_files

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgeprune.runtime import StageResult

_NEW_TOKENS = 4


def check_graphs(bundle: Path, manifest: Manifest) -> list[Check]:
    """Onnx's full check of every graph, and that they are what the manifest says.

    Raises:
        ModuleNotFoundError: onnx is not installed.
        VerificationError: a graph is not valid ONNX.
    """
    import onnx

    checks = []
    forms = filter(None, map(manifest.language_form, manifest.language_forms))
    language = [(graph, len(manifest.plan.stages)) for graph in (manifest.language, *forms)]
    for graph, stages in ((manifest.vision, 0), *language):
        path = bundle / graph.file
        try:
            _check_by_onnx(path)
            model = onnx.load(path, load_external_data=False)
        except Exception as error:  # onnx has an exception for each of its layers, protobuf's among them
            raise VerificationError(
                f"{path} is not a valid ONNX graph ({error}): export the bundle again"
            ) from error
        nodes = sum((node.domain, node.op_type) == (OP_DOMAIN, OP_NAME) for node in model.graph.node)
        bodies = sum((body.domain, body.name) == (OP_DOMAIN, OP_NAME) for body in model.functions)
        checks += [
            _equal(f"{graph.file}: pruning nodes besides the plan's", abs(nodes - stages)),
            _equal(f"{graph.file}: pruning nodes without a function body", nodes if not bodies else 0),
            _equal(
                f"{graph.file}: inputs and outputs besides the manifest's", _interface_apart(model, graph)
            ),
        ]
    return checks


def _check_by_onnx(path: Path) -> None:
    """Beside files of the weights' names and sizes: hashes have been compared, and links are refused."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="edgeprune-verify-") as scratch:
        for name in external_files(path):
            stand_in = Path(scratch, name)
            stand_in.parent.mkdir(parents=True, exist_ok=True)
            with stand_in.open("wb") as empty:
                empty.truncate((path.parent / name).stat().st_size)  # takes no space
        copy = shutil.copyfile(path, Path(scratch, path.name))
        onnx.checker.check_model(str(copy), full_check=True)


def _interface_apart(model: Any, graph: Any) -> int:
    found = {("in", value.name) for value in model.graph.input} | {
        ("out", v.name) for v in model.graph.output
    }
    expected = {("in", spec.name) for spec in graph.inputs} | {("out", spec.name) for spec in graph.outputs}
    return len(found ^ expected)


def check_run(bundle: Path, manifest: Manifest, backend: str) -> list[Check]:
    """Runs the bundle on a drawn wide image and compares what it kept with the numpy reference.

    Raises:
        PruningError, BackendError, MissingDependencyError: as `load` and `Model.generate`.
    """
    from edgeprune.runtime import load

    reply = load(bundle, backend).generate("What is in the image?", [_picture()], max_new_tokens=_NEW_TOKENS)
    return [_equal("graph runs: tokens missing", 0 if reply.token_ids else 1)] + [
        _equal(f"stage {number}: kept tokens besides the numpy reference's", _kept_apart(stage))
        for number, stage in enumerate(reply.stages)
    ]


def _picture() -> NDArray[np.uint8]:
    """Twice as wide as high, so that letterboxing pads it, with something to see in it."""
    import numpy as np

    rows, columns = np.mgrid[0:64, 0:128]
    disc = (rows - 32) ** 2 + (columns - 40) ** 2 < 18**2
    return np.stack([rows * 3, columns * 2, disc * 255], axis=-1).astype(np.uint8)


def _kept_apart(result: StageResult) -> int:
    """Tokens that only one of the graph and the reference keeps, given the graph's own scores."""
    import numpy as np

    return int(np.setxor1d(result.selected_by(result.weight), result.kept_visual).size)


def _equal(name: str, apart: int) -> Check:
    return Check(name=name, value=float(apart), limit=0.0)
