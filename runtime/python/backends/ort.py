"""ONNX Runtime, on the CPU or on an NVIDIA GPU by its CUDA execution provider.

Tensors are bound to graphs as they are (I/O binding), so caches pass from one step to the next untouched.
"""

from __future__ import annotations

import ctypes
import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, fields
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import ValidationError

from edgeprune.checks import check_count
from edgeprune.errors import BackendError, BundleError, InputError, MissingDependencyError
from edgeprune.fields import first_fault, shown
from edgeprune.files import utf8_named
from edgeprune.interface import IN_PLACE, TensorSpec, has_buffers
from edgeprune.log import note
from edgeprune.manifest import GraphSpec, Manifest
from edgeprune.memory import PeakMemory, available_memory, host_peak_memory
from edgeprune.runtime.backends.base import Array, Availability, Tensor, to_bfloat16_bits
from edgeprune.runtime.backends.in_place import InPlaceGraph
from edgeprune.runtime.backends.ort_engines import Engines, find_engines

CPU, CUDA = "onnxruntime", "onnxruntime-cuda"
AUTO, COPIED = "auto", "copied"
CACHES = (AUTO, IN_PLACE, COPIED)
_TITLES = {CPU: "ONNX Runtime on the CPU", CUDA: "ONNX Runtime on an NVIDIA GPU"}
# Distribution and extra that bring each; both are imported as onnxruntime.
_PACKAGES = {CPU: ("onnxruntime", "ort"), CUDA: ("onnxruntime-gpu", "ort-gpu")}
_CUDA_PROVIDER = "CUDAExecutionProvider"
# What to do about what the CPU kernels do not run, by `Precision.beyond_onnxruntime`.
INSTEAD = {
    "bfloat16": "export with `dtype='fp16'` or `dtype='fp32'`",
    "nvfp4 weights": "export with, say, `weights='int4'`",
}
# ONNX's numbers of element types.
_ELEMENT_TYPES = {"float32": 1, "int64": 7, "float16": 10, "bfloat16": 16}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
}
_ERRORS_ONLY = 3
# What it says of an operator that has more in a later release.
_TOO_NEW = "Unrecognized attribute"
# Folding writes a transposed copy of every weight matrix beside those read, and half precision is widened
# too: for 1.2 GB of fp32 weights 1.6 to 1.9 GB of peak memory instead of 1.3, of fp16 2.1 instead of 1.3,
# and twice the time to load. Without it the product takes the matrix transposed, just as fast.
NOT_WANTED = ["ConstantFolding"]


@dataclass(frozen=True)
class Options:
    """Options of this back end.

    Attributes:
        threads: CPU threads within one operator; None for what engines were found to be fastest with, or
            without engines for ONNX Runtime's own choice, every core.
        spinning: whether threads wait for work busily, which CPUs that do other work too suffer from; None
            likewise.
        engines: whether to run engines of the bundle that fit here; only the CPU has such.
        device: the GPU's number, for CUDA.
        caches: "copied" makes them anew in every step; "in-place" writes each step's keys and values into
            buffers, which the CPU kernels do; "auto" does that where it can be done.
        exact: whether products with weights in blocks are computed in float32, instead of with inputs that
            are rounded to 8 bits: several times slower, and for comparisons.
    """

    threads: int | None = None
    spinning: bool | None = None
    engines: bool = True
    device: int = 0
    caches: str = AUTO
    exact: bool = False

    def __post_init__(self) -> None:
        if self.caches not in CACHES:
            raise InputError(f"`caches` is {self.caches!r:.80}: expected one of {', '.join(CACHES)}")
        if self.threads is not None:
            check_count("threads", self.threads)
        for name, value in (("spinning", self.spinning), ("engines", self.engines)):
            if not isinstance(value, bool) and not (name == "spinning" and value is None):
                raise InputError(f"`{name}` is {value!r:.60}: expected True or False")
        check_count("device", self.device, least=0)


def availability(name: str) -> Availability:
    """Whether `name`, one of the two above, can run here."""
    reason = _why_not(name)
    return Availability(name, _TITLES[name], reason is None, reason, _PACKAGES[name][1], _version())


def open_backend(name: str, options: Mapping[str, Any]) -> OrtBackend:
    """The back end `name`. Raises as `backends.open_backend`."""
    if find_spec("onnxruntime") is None:
        package, extra = _PACKAGES[name]
        raise MissingDependencyError(f"the back end {name}", package, extra)
    known = [field.name for field in fields(Options)]
    for option in options:
        if option not in known:
            raise InputError(f"the back end {name} has no option {option!r}: it knows {', '.join(known)}")
    chosen = Options(**options)
    reason = _why_not(name)
    if reason is not None:
        raise BackendError(f"the back end {name} cannot run here: {reason}")
    if name == CUDA:
        _load_cuda()
    return OrtBackend(name, chosen)


def _load_cuda() -> None:
    """Loads CUDA and cuDNN from NVIDIA's Python packages where these are installed, which ONNX Runtime does
    not look into by itself.
    """
    import onnxruntime

    with redirect_stdout(io.StringIO()):  # it prints what it does not find; loading a graph tells of that
        onnxruntime.preload_dlls()
    # Of each graph it warns of ScatterND, whose indices are never twice the same here, and of plug-ins.
    onnxruntime.set_default_logger_severity(_ERRORS_ONLY)


def _version() -> str | None:
    for package, _ in _PACKAGES.values():
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def _why_not(name: str) -> str | None:
    package, extra = _PACKAGES[name]
    if find_spec("onnxruntime") is None:
        return f"the package {package} is not installed: pip install 'edgeprune[{extra}]'"
    try:
        import onnxruntime
    except Exception as error:  # a broken installation: missing libraries, or a numpy it was not built for
        reason = " ".join(str(error).split())
        return f"onnxruntime is installed but cannot be loaded ({reason}): install it again"
    if name == CPU:
        return None
    if _CUDA_PROVIDER not in onnxruntime.get_available_providers():
        return (
            "the onnxruntime that is installed runs on the CPU only: pip uninstall onnxruntime, then "
            f"pip install 'edgeprune[{extra}]'"
        )
    return None if _gpus() else "no NVIDIA GPU answers here: check the driver with nvidia-smi"


def _gpus() -> int:
    """How many GPUs the NVIDIA driver offers; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


class OrtTensor:
    """An OrtValue, perhaps seen under another shape of the same size."""

    def __init__(self, value: Any, shape: Sequence[int] | None = None) -> None:
        self.value = value
        self._shape = tuple(value.shape() if shape is None else shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> str:
        return _DTYPES[self.value.data_type()]

    @property
    def nbytes(self) -> int:
        return int(self.value.tensor_size_in_bytes())

    def reshape(self, *shape: int) -> OrtTensor:
        if np.prod(shape) != np.prod(self.shape):
            raise BackendError(f"a tensor of shape {list(self.shape)} cannot be seen as {list(shape)}")
        return OrtTensor(self.value, shape)

    def numpy(self) -> Array:
        if self.dtype == "bfloat16":
            raise BackendError("a bfloat16 tensor cannot be fetched: numpy has no such type")
        values: Array = self.value.numpy()
        return values.reshape(self.shape)


class OrtGraph:
    """An ONNX file in an inference session."""

    max_length: int | None = None
    most_behind_past: int | None = None

    def __init__(self, session: Any, device: tuple[str, int], name: str) -> None:
        self._session = session
        self._device = device
        self._name = name
        self.inputs = tuple(_spec(value, name) for value in session.get_inputs())
        self.outputs = tuple(_spec(value, name) for value in session.get_outputs())
        self._input_dtypes = {spec.name: spec.dtype for spec in self.inputs}

    def expect(self, capacities: Sequence[int]) -> None:
        """Nothing to prepare: every run makes its outputs anew."""

    def run(self, feeds: Mapping[str, Tensor | Array], outputs: Sequence[str]) -> dict[str, Tensor]:
        return self.run_into(feeds, outputs, {})

    def run_into(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], written: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """As `run`; feeds may be OrtValues, and so are, by name, further outputs that are written where they
        lie and not handed out.
        """
        missing = self._input_dtypes.keys() - feeds.keys()
        if missing:
            raise BackendError(f"{self._name} was run without its input {min(missing)}")
        binding = self._session.io_binding()
        alive = []  # the binding itself does not keep what it is bound to
        try:
            for name, value in feeds.items():
                tensor = self._tensor(name, value)
                alive.append(tensor)
                self._bind(binding, name, tensor)
            for name in outputs:
                binding.bind_output(name, *self._device)
            for name, place in written.items():
                binding.bind_ortvalue_output(name, place)
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime raises plain RuntimeError and types of its own
            reason = " ".join(str(error).split())
            raise BackendError(f"ONNX Runtime could not run {self._name}: {reason}") from error
        # Of what was written elsewhere, these are wrappers that do not keep its memory.
        made = binding.get_outputs()[: len(outputs)]
        return dict(zip(outputs, map(OrtTensor, made), strict=True))

    def _tensor(self, name: str, value: Any) -> OrtTensor:
        if isinstance(value, OrtTensor):
            return value
        return self._to_device(name, value) if isinstance(value, np.ndarray) else OrtTensor(value)

    def _bind(self, binding: Any, name: str, tensor: OrtTensor) -> None:
        if tensor.shape == tuple(tensor.value.shape()):
            binding.bind_ortvalue_input(name, tensor.value)
            return
        kind = _ELEMENT_TYPES[tensor.dtype]
        binding.bind_input(name, *self._device, kind, list(tensor.shape), tensor.value.data_ptr())

    def _to_device(self, name: str, array: Array) -> OrtTensor:
        import onnxruntime

        dtype = self._input_dtypes.get(name)
        if dtype is None:
            raise BackendError(f"{self._name} has no input {name}")
        if dtype == "bfloat16":
            bits = to_bfloat16_bits(array)
            return OrtTensor(
                onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _ELEMENT_TYPES[dtype])
            )
        # The memory is shared on the CPU; OrtValue keeps the array alive.
        array = np.ascontiguousarray(array, dtype=dtype)
        return OrtTensor(onnxruntime.OrtValue.ortvalue_from_numpy(array, *self._device))


def _spec(value: Any, graph: str) -> TensorSpec:
    dtype = _DTYPES.get(value.type)
    shape = tuple("" if axis is None else axis for axis in value.shape)
    try:
        return TensorSpec(name=value.name, dtype=cast(Any, dtype), shape=shape)
    except ValidationError as error:
        raise BundleError(
            f"{graph} has the input or output {shown(value.name)} of type {shown(value.type)}, which no "
            f"graph of a bundle has ({first_fault(error)}): export the bundle again"
        ) from error


def session_settings(threads: int | None, spinning: bool | None) -> Any:
    """How every session is set, in ONNX Runtime's form; the arguments are those of `Options`."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _ERRORS_ONLY
    settings.intra_op_num_threads = threads or 0
    # A pattern is kept for every shape ever met, and each decode step has another one.
    settings.enable_mem_pattern = False
    if spinning is not None:
        settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return settings


class OrtBackend:
    """See the module's description.

    Args:
        name: one of the two above.
        options: of it.
        built: the engines to run of whichever bundle; None for those that are found to fit it.
    """

    def __init__(self, name: str, options: Options, built: Engines | None = None) -> None:
        self.name = name
        self.options = options
        self.engines: str | None = None
        self._built = built
        self._found: dict[Path, Engines | None] = {}
        self._device = ("cuda", options.device) if name == CUDA else ("cpu", 0)
        # By the file of a form that may be too new for this release, what runs instead.
        self._instead: dict[str, GraphSpec] = {}

    def language_form(self, manifest: Manifest) -> GraphSpec:
        lacking = manifest.precision.beyond_onnxruntime if self.name == CPU else None
        if lacking is not None:
            raise BackendError(
                f"ONNX Runtime's CPU kernels do not run {lacking}: {INSTEAD[lacking]}, or build engines and "
                "choose their back end"
            )
        # CUDA's kernel of the same operator takes half precision only.
        form = manifest.language_form(IN_PLACE) if self.name == CPU else None
        if self.options.caches == IN_PLACE and form is None:
            why = "only its CPU kernels do that" if self.name == CUDA else "the bundle has no such graph"
            raise BackendError(
                f"caches in place were asked for, and {why}: leave out `caches`, or give `caches='auto'`"
            )
        if form is None or self.options.caches == COPIED:
            return manifest.language
        if self.options.caches == AUTO:
            self._instead[form.file] = manifest.language
        return form

    def load(self, folder: Path, spec: GraphSpec) -> OrtGraph | InPlaceGraph:
        import onnxruntime

        built = self.find(folder)
        if built is not None and spec.file not in built.files:
            built = None  # another form of the language graph was asked for
        home, file = (folder, spec.file) if built is None else (built.folder, built.files[spec.file])
        path, options = home / file, self.options
        if built is not None:
            options = built.chosen(options)
            self.engines = built.folder.name
        settings = session_settings(options.threads, options.spinning)
        if options.exact:
            settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        if built is not None:
            settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            with utf8_named(home) as named:
                session = onnxruntime.InferenceSession(
                    str(named / file),
                    settings,
                    providers=self._providers(),
                    disabled_optimizers=NOT_WANTED,
                )
        except Exception as error:  # as in run()
            reason = " ".join(str(error).split())
            portable = self._instead.get(spec.file)
            if portable is not None and _TOO_NEW in reason:
                note(
                    f"caches are copied in every step: onnxruntime {onnxruntime.__version__} does not know "
                    f"all of {path}; a newer release writes them in place"
                )
                return self.load(folder, portable)
            if "NOT_IMPLEMENTED" in reason:
                raise BackendError(
                    f"ONNX Runtime has no kernels for all of {path} here ({reason}): expected a graph that "
                    "neither computes in bfloat16 nor has nvfp4 weights; export with `dtype='fp16'` or "
                    "`dtype='fp32'` and other weights, or choose another back end"
                ) from error
            raise BackendError(
                f"ONNX Runtime cannot load {path}: {reason}; try another back end, or export the bundle again"
            ) from error
        active = session.get_providers()
        if self.name == CUDA and _CUDA_PROVIDER not in active:
            raise BackendError(
                f"CUDA was asked for, but ONNX Runtime runs {path.name} with {', '.join(active)}: it could "
                "not load CUDA or cuDNN in the versions it was built for; install those (pip install "
                f"'onnxruntime-gpu[cuda,cudnn]' brings them), or choose the back end {CPU}"
            )
        graph = OrtGraph(session, self._device, path.name)
        return InPlaceGraph(graph, spec.inputs) if has_buffers(spec.inputs) else graph

    def find(self, folder: Path) -> Engines | None:
        """The engines of a bundle that fit here, looked for once; None where its own graphs are run."""
        # What engines multiply weights in blocks with is settled.
        if self._built is not None or self.name != CPU or not self.options.engines or self.options.exact:
            return self._built
        if folder not in self._found:
            self._found[folder] = find_engines(folder)
        return self._found[folder]

    def _providers(self) -> list[Any]:
        if self.name != CUDA:
            return ["CPUExecutionProvider"]
        # Products in TF32, ONNX Runtime's default, round fp32 to 10 bits, and other tokens would be kept.
        settings = {"device_id": self.options.device, "use_tf32": 0}
        return [(_CUDA_PROVIDER, settings), "CPUExecutionProvider"]

    def synchronize(self) -> None:
        """Nothing to wait for: a run of ONNX Runtime ends when its results are there."""

    def peak_memory(self) -> PeakMemory:
        host = host_peak_memory()
        if self.name != CUDA:
            return host
        return PeakMemory(host.bytes, f"{host.metric}, of the host alone: the GPU's is not told")

    def free_bytes(self) -> int | None:
        """Of the host; the GPU's is not told."""
        return None if self.name == CUDA else available_memory()
