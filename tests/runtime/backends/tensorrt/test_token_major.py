"""The form that engines are built from: it decodes as the bundle's graph does, and TensorRT takes it.

The engines are fakes, which run that form in ONNX Runtime.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

from edgeprune.bundle import read_manifest
from edgeprune.errors import BackendError
from edgeprune.interface import is_cache
from edgeprune.runtime import load
from edgeprune.runtime.backends.tensorrt import build, compile, flavours
from edgeprune.runtime.backends.tensorrt.token_major import make_token_major, token_major
from tests.export.families import decode_alike
from tests.export.test_cache_forms import bundle_of
from tests.golden.make import BUNDLES, GOLDEN
from tests.runtime.backends.tensorrt.test_building import RTX, needs_rtx


# Of the last one earlier caches are cut, which no golden bundle's are.
@pytest.fixture(scope="module", params=[*BUNDLES, "trimmed"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of(request.param, tmp_path_factory)


def read(bundle: Path) -> onnx.ModelProto:
    """The language graph as it is built."""
    model = onnx.load(bundle / "language.onnx", load_external_data=False)
    make_token_major(model)
    return model


def test_engines_decode_as_the_bundles_graph_does(original: Path, tmp_path: Path, tensorrt: object) -> None:
    """One batch after the other, in the same memory; the rooms asked for change nothing."""
    bundle = Path(shutil.copytree(original, tmp_path / "bundle"))
    build(bundle, backend="tensorrt", max_batch=4, max_new_tokens=24)
    forms = [load(bundle, "tensorrt"), load(bundle, "onnxruntime", threads=1, caches="copied")]
    for batch, steps, room in ((1, 12, 12), (4, 12, 12), (2, 5, 2)):
        decode_alike(forms, batch, steps, room)


def test_a_run_reads_the_first_tokens_and_gives_out_the_new_ones(original: Path) -> None:
    model, language = read(original), read_manifest(original).language
    form = token_major(language)
    for values, specs in ((model.graph.input, form.inputs), (model.graph.output, form.outputs)):
        shapes = {
            value.name: tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim)
            for value in values
            if is_cache(value.name)
        }
        assert shapes == {spec.name: spec.shape for spec in specs if is_cache(spec.name)}
    last, before = form.outputs[-1], language.outputs[-1]
    assert last.shape[0] == str(before.shape[2]).replace("present", "new")
    assert [spec for spec in form.inputs if not is_cache(spec.name)] == [
        spec for spec in language.inputs if not is_cache(spec.name)
    ]


@needs_rtx
def test_tensorrt_reads_it(original: Path) -> None:
    """Inputs and outputs of the parsed network are the form's."""
    trt = flavours.load(flavours.TENSORRT_RTX, "a test")
    wanted = token_major(read_manifest(original).language)
    logger = compile.error_logger(trt)
    network = trt.Builder(logger).create_network(0)
    parser = trt.OnnxParser(network, logger)
    path = original / "language.onnx"
    assert parser.parse(read(original).SerializeToString(), str(path)), logger.reason()
    for count, get, specs in (
        (network.num_inputs, network.get_input, wanted.inputs),
        (network.num_outputs, network.get_output, wanted.outputs),
    ):
        found = {get(number).name: tuple(get(number).shape) for number in range(count)}
        for spec in specs:
            fixed = tuple(axis if isinstance(axis, int) else -1 for axis in spec.shape)
            assert found[spec.name] == fixed, spec.name
        assert len(found) == len(specs)


@needs_rtx
@pytest.mark.slow
def test_tensorrt_builds_it(original: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(original, tmp_path / "bundle"))
    folder = build(bundle, **RTX, max_batch=4, max_new_tokens=24)
    assert (folder / "language.engine").stat().st_size > 10_000


def test_a_graph_that_joins_its_caches_otherwise_is_refused() -> None:
    model = onnx.load(GOLDEN / "one-stage" / "language.onnx", load_external_data=False)
    joined = next(node for node in model.graph.node if "present_value.2" in node.output)
    joined.input[:] = joined.input[::-1]
    with pytest.raises(
        BackendError, match=r"does not make present_value\.2 of past_value\.2 and .*export the bundle again"
    ):
        make_token_major(model)
