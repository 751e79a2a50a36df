"""ONNX Runtime on graphs of a few nodes: binding, reshaping, conversion, and messages."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgeprune.bundle import read_manifest
from edgeprune.errors import BackendError, BundleError, InputError
from edgeprune.interface import TensorSpec
from edgeprune.manifest import GraphSpec
from edgeprune.runtime.backends import open_backend, ort
from edgeprune.runtime.backends.ort import Options, OrtBackend, OrtGraph, OrtTensor
from edgeprune.runtime.session import Session
from tests.golden.make import GOLDEN
from tests.manifests import make_manifest

SPEC = GraphSpec(
    file="graph.onnx",
    inputs=(TensorSpec(name="new", dtype="float32", shape=("batch", "sequence", 2)),),
    outputs=(TensorSpec(name="present", dtype="float32", shape=("batch", "total", 2)),),
)


def write(
    folder: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: tuple[Any, ...] = ()
) -> Path:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.save(model, folder / "graph.onnx")
    return folder


def value(name: str, kind: int, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.fixture
def cache(tmp_path: Path) -> OrtGraph:
    """present = past ++ new along axis 1, total = their sum; a cache of a decoder."""
    folder = write(
        tmp_path,
        [
            helper.make_node("Concat", ["past", "new"], ["present"], axis=1),
            helper.make_node("ReduceSum", ["present"], ["total"], keepdims=0),
        ],
        [value("past", 1, "batch", "past", 2), value("new", 1, "batch", "sequence", 2)],
        [value("present", 1, "batch", "total", 2), value("total", 1)],
    )
    return open_backend("onnxruntime", threads=1).load(folder, SPEC)  # type: ignore[return-value]


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, dtype=np.float32)


def test_the_interface_is_read_from_the_graph(cache: OrtGraph) -> None:
    assert [(spec.name, spec.dtype, spec.shape) for spec in cache.inputs] == [
        ("past", "float32", ("batch", "past", 2)),
        ("new", "float32", ("batch", "sequence", 2)),
    ]
    assert [spec.name for spec in cache.outputs] == ["present", "total"]


def test_outputs_go_back_in_without_a_copy(cache: OrtGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache.run({"past": ones(1, 0, 2), "new": ones(1, 3, 2)}, ["present"])
    bound: list[tuple[str, Any]] = []
    original = onnxruntime.IOBinding.bind_ortvalue_input

    def spy(self: Any, name: str, ortvalue: Any) -> None:
        bound.append((name, ortvalue))
        original(self, name, ortvalue)

    monkeypatch.setattr(onnxruntime.IOBinding, "bind_ortvalue_input", spy)
    address = first["present"].value.data_ptr()  # type: ignore[attr-defined]
    second = cache.run({"past": first["present"], "new": 2 * ones(1, 1, 2)}, ["present", "total"])
    past = dict(bound)["past"]
    assert past is first["present"].value  # type: ignore[attr-defined]
    assert past.data_ptr() == address
    assert second["present"].shape == (1, 4, 2)
    assert second["total"].numpy() == 10
    assert second["present"].nbytes == 4 * 2 * 4


def test_host_arrays_are_shared_not_copied(cache: OrtGraph) -> None:
    array = ones(1, 3, 2)
    tensor = cache._to_device("new", array)
    assert tensor.value.data_ptr() == array.ctypes.data


def test_only_what_is_asked_for_is_given(cache: OrtGraph) -> None:
    found = cache.run({"past": ones(2, 0, 2), "new": ones(2, 1, 2)}, ["total"])
    assert list(found) == ["total"]


def test_empty_axes_are_taken(cache: OrtGraph) -> None:
    found = cache.run({"past": ones(2, 0, 2), "new": ones(2, 0, 2)}, ["present"])
    assert found["present"].shape == (2, 0, 2)
    assert found["present"].numpy().shape == (2, 0, 2)


def test_a_tensor_under_another_shape_is_the_same_memory(cache: OrtGraph) -> None:
    new = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    tensor = cache.run({"past": ones(2, 0, 2), "new": new}, ["present"])["present"]
    flat = tensor.reshape(1, 4, 2)
    assert isinstance(flat, OrtTensor)
    assert flat.value.data_ptr() == tensor.value.data_ptr()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(flat.numpy(), new.reshape(1, 4, 2))
    del tensor
    found = cache.run({"past": flat, "new": ones(1, 1, 2)}, ["present", "total"])
    assert found["present"].shape == (1, 5, 2)
    np.testing.assert_array_equal(found["present"].numpy()[0, :4], new.reshape(4, 2))
    with pytest.raises(BackendError, match="cannot be seen as"):
        flat.reshape(3, 2)


def test_results_outlive_the_graph(cache: OrtGraph) -> None:
    values = [
        cache.run({"past": ones(1, 0, 2), "new": number * ones(1, 1, 2)}, ["present"])["present"].numpy()
        for number in range(20)
    ]
    assert [float(array[0, 0, 0]) for array in values] == list(range(20))


@pytest.mark.parametrize(
    ("kind", "name"), [(TensorProto.FLOAT16, "float16"), (TensorProto.BFLOAT16, "bfloat16")]
)
def test_host_floats_become_the_input_s_type(tmp_path: Path, kind: int, name: str) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)]
    nodes.append(helper.make_node("Identity", ["x"], ["same"]))
    folder = write(tmp_path, nodes, [value("x", kind, "n")], [value("y", 1, "n"), value("same", kind, "n")])
    graph = open_backend("onnxruntime", threads=1).load(folder, SPEC)
    found = graph.run({"x": np.array([1.0, 0.1, 300.0], dtype=np.float32)}, ["y", "same"])
    np.testing.assert_allclose(found["y"].numpy(), [1, 0.1, 300], rtol=4e-3)
    assert found["y"].numpy()[1] != np.float32(0.1)
    assert found["same"].dtype == name
    if name == "bfloat16":
        with pytest.raises(BackendError, match="numpy has no such type"):
            found["same"].numpy()


def test_feeds_that_do_not_fit_get_one_message(cache: OrtGraph) -> None:
    with pytest.raises(BackendError, match=r"graph\.onnx was run without its input past"):
        cache.run({"new": ones(1, 1, 2)}, ["present"])
    with pytest.raises(BackendError, match=r"could not run graph\.onnx: .*Expected: 2"):
        cache.run({"past": ones(1, 0, 2), "new": ones(1, 1, 3)}, ["present"])
    with pytest.raises(BackendError, match=r"graph\.onnx has no input extra"):
        cache.run({"past": ones(1, 0, 2), "new": ones(1, 1, 2), "extra": ones(1)}, ["present"])


def test_a_file_that_is_no_graph_gets_one_message(tmp_path: Path) -> None:
    backend = open_backend("onnxruntime")
    with pytest.raises(BackendError, match=r"cannot load .*graph\.onnx"):
        backend.load(tmp_path, SPEC)
    (tmp_path / "graph.onnx").write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"cannot load .*graph\.onnx") as caught:
        backend.load(tmp_path, SPEC)
    assert "\n" not in str(caught.value)


def test_an_input_of_a_type_that_no_bundle_has_is_refused(tmp_path: Path) -> None:
    whole = helper.make_tensor_sequence_value_info("new", TensorProto.FLOAT, None)
    for given, node in (
        (whole, helper.make_node("ConcatFromSequence", ["new"], ["present"], axis=0)),
        (value("new", TensorProto.DOUBLE, 2), helper.make_node("Cast", ["new"], ["present"], to=1)),
    ):
        folder = write(tmp_path, [node], [given], [value("present", TensorProto.FLOAT, "n")])
        with pytest.raises(BundleError, match=r"graph\.onnx has the input or output new of type .*export"):
            open_backend("onnxruntime").load(folder, SPEC)


def test_a_type_without_kernels_is_told_with_the_way_out(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["new"], ["present"])
    folder = write(
        tmp_path,
        [node],
        [value("new", TensorProto.BFLOAT16, 1, 2)],
        [value("present", TensorProto.BFLOAT16, 1, 2)],
    )
    with pytest.raises(
        BackendError, match=r"has no kernels .*neither computes in bfloat16 .*`dtype='fp16'` or"
    ):
        open_backend("onnxruntime").load(folder, SPEC)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"compute": "bf16"},
            r"do not run bfloat16: export with `dtype='fp16'` or .*, or build engines and",
        ),
        (
            {"weights": "nvfp4", "block": 16, "method": "nearest"},
            r"do not run nvfp4 weights: export with, say, `weights='int4'`, or build engines and",
        ),
    ],
)
def test_a_bundle_without_kernels_is_refused_before_a_graph_is_loaded(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    precision = make_manifest().precision.model_copy(update=changes)
    manifest = make_manifest(precision=precision)
    with pytest.raises(BackendError, match=words):
        Session(open_backend("onnxruntime"), tmp_path, manifest)


def weighted(folder: Path) -> Path:
    """y = x + w with w in a file beside the graph."""
    array = np.array([10, 20], dtype=np.float32)
    (folder / "weights.bin").write_bytes(array.tobytes())
    weight = TensorProto(name="w", data_type=1, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", "weights.bin"), ("offset", "0"), ("length", "8")):
        weight.external_data.add(key=key, value=text)
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    return write(folder, nodes, [value("x", 1, "n", 2)], [value("y", 1, "n", 2)], (weight,))


def test_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    """ONNX Runtime takes no such path, neither of a graph nor of its weights."""
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xe9en"))
    odd.mkdir()
    weighted(odd)
    graph = open_backend("onnxruntime", threads=1).load(odd, SPEC)
    np.testing.assert_array_equal(graph.run({"x": ones(1, 2)}, ["y"])["y"].numpy(), [[11, 21]])


def test_threads_reach_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def session(path: str, settings: Any, **_: Any) -> Any:
        seen.append(settings.intra_op_num_threads)
        raise RuntimeError("enough")

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    for threads in (3, None):
        with pytest.raises(BackendError):
            open_backend("onnxruntime", threads=threads).load(tmp_path, SPEC)
    assert seen == [3, 0]


@pytest.mark.parametrize("options", [{"spinning": 1}, {"engines": None}])
def test_switches_are_true_or_false(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected True or False"):
        Options(**options)


def test_cuda_that_silently_became_the_cpu_is_an_error(
    cache: OrtGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def session(path: str, settings: Any, providers: list[Any], **_: Any) -> Any:
        asked.extend(providers)
        return cache._session

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    backend = OrtBackend("onnxruntime-cuda", Options(device=1))
    with pytest.raises(BackendError, match=r"CUDA was asked for, but ONNX Runtime runs graph\.onnx with CPU"):
        backend.load(Path("anywhere"), SPEC)
    assert asked[0] == ("CUDAExecutionProvider", {"device_id": 1, "use_tf32": 0})
    assert "host alone" in backend.peak_memory().metric


def test_cuda_is_loaded_from_the_packages_that_bring_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    def preload() -> None:
        calls.append("preload")
        print("Failed to load libcudnn.so.9")

    monkeypatch.setattr(ort, "_why_not", lambda name: None)
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", lambda level: calls.append(str(level)))
    open_backend("onnxruntime")
    assert calls == []
    open_backend("onnxruntime-cuda")
    assert calls == ["preload", "3"]
    assert capsys.readouterr().out == ""


def test_gpus_are_counted_by_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def __init__(self, status: int) -> None:
            self.status = status

        def cuInit(self, flags: int) -> int:  # noqa: N802 - CUDA's own name
            return self.status

        def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
            count._obj.value = 2
            return 0

    def missing(name: str) -> Any:
        raise OSError(name)

    for library, expected in ((missing, 0), (lambda name: Driver(100), 0), (lambda name: Driver(0), 2)):
        monkeypatch.setattr(ctypes, "CDLL", library)
        assert ort._gpus() == expected


def test_peak_memory_says_what_it_is() -> None:
    assert "VmHWM" in open_backend("onnxruntime").peak_memory().metric


def test_a_form_that_is_too_new_makes_room_for_the_portable_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Path(shutil.copytree(GOLDEN / "one-stage", tmp_path / "bundle"))
    path = bundle / "language.in-place.onnx"
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            node.attribute.append(helper.make_attribute("of_tomorrow", 1))
    onnx.save(model, path)
    manifest = read_manifest(GOLDEN / "one-stage")
    backend = open_backend("onnxruntime", threads=1)
    graph = backend.load(bundle, backend.language_form(manifest))
    assert isinstance(graph, OrtGraph)
    assert "does not know all of" in caplog.text
    assert "a newer release writes them in place" in caplog.text
    backend = open_backend("onnxruntime", threads=1, caches="in-place")
    with pytest.raises(BackendError, match=r"cannot load .*language\.in-place\.onnx: .*of_tomorrow"):
        backend.load(bundle, backend.language_form(manifest))


def test_which_form_of_the_language_graph_runs() -> None:
    both, portable = make_manifest(), make_manifest(language_forms={})
    for how, manifest, file in (
        ("auto", both, "language.in-place.onnx"),
        ("in-place", both, "language.in-place.onnx"),
        ("copied", both, "language.onnx"),
        ("auto", portable, "language.onnx"),
    ):
        backend = open_backend("onnxruntime", caches=how)
        assert backend.language_form(manifest).file == file
    cuda = OrtBackend("onnxruntime-cuda", Options())
    assert cuda.language_form(both) == both.language
    for backend, manifest, why in (
        (open_backend("onnxruntime", caches="in-place"), portable, "the bundle has no such graph"),
        (OrtBackend("onnxruntime-cuda", Options(caches="in-place")), both, "only its CPU kernels do that"),
    ):
        with pytest.raises(BackendError, match=rf"^caches in place were asked for, and {why}: leave out `c"):
            backend.language_form(manifest)
    with pytest.raises(InputError, match="`caches` is 'here': expected one of auto, in-place, copied"):
        open_backend("onnxruntime", caches="here")
