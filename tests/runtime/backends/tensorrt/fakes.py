"""CUDA and TensorRT without a GPU: device memory is the host's, and engines run in ONNX Runtime.

Only as much as edgeprune uses, and strict where the real ones are: an address that is null, outside what was
allocated or not a multiple of 256, a shape outside the profile, a missing input, or a plugin that is not
registered is an error.
What a GPU does differently (asynchronous copies, kernels, memory limits) is not shown by any of this.
"""

from __future__ import annotations

import base64
import ctypes
import json
from collections.abc import Mapping
from enum import Enum, IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from edgeprune.bundle import read_manifest
from edgeprune.interface import kept_axis
from edgeprune.manifest import Manifest
from edgeprune.plans import Merge
from edgeprune.plans.plan import recycled_count
from edgeprune.runtime.backends.tensorrt.token_major import token_major

__version__ = "10.9.0"
_POISON = 0xA5
# Of what CUDA allocates, and what TensorRT asks of the address of an input or output.
_ALIGNMENT = 256


class FakeCudart:
    """cuda.bindings.runtime on the host.

    Attributes:
        live: bytes by the address of what is allocated and not freed.
        capacity: bytes of "device memory".
        waits: how often the stream was waited for.
        copied: bytes from the "device" to itself.
    """

    cudaStreamNonBlocking = 1  # noqa: N815
    cudaEventDisableTiming = 2  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(  # noqa: N815
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )

    def __init__(
        self, gpus: int = 1, target: str = "sm89", name: str = "Fake GPU", capacity: int = 1 << 40
    ) -> None:
        self.live: dict[int, np.ndarray] = {}
        self.capacity = capacity
        self.waits = 0
        self.copied = 0
        self.allocations = 0
        self._gpus = gpus
        digits = target[2:]
        self._properties = SimpleNamespace(
            name=name.encode(),
            major=int(digits[:-1]),
            minor=int(digits[-1]),
            totalGlobalMem=capacity,
            integrated=0,
        )

    def cudaGetDeviceCount(self) -> tuple[int, int | None]:  # noqa: N802
        return (0, self._gpus) if self._gpus else (35, None)

    def cudaGetDeviceProperties(self, number: int) -> tuple[int, Any]:  # noqa: N802
        return 0, self._properties

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, f"error {error}".encode()

    def cudaSetDevice(self, number: int) -> tuple[int]:  # noqa: N802
        return (0,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:  # noqa: N802
        assert flags == self.cudaStreamNonBlocking
        return 0, 77

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        assert stream == 77
        self.waits += 1
        return (0,)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[int, int]:  # noqa: N802
        return 0, 5

    def cudaEventRecord(self, event: int, stream: int) -> tuple[int]:  # noqa: N802
        assert (event, stream) == (5, 77)
        return (0,)

    def cudaEventSynchronize(self, event: int) -> tuple[int]:  # noqa: N802
        assert event == 5
        return (0,)

    def cudaEventDestroy(self, event: int) -> tuple[int]:  # noqa: N802
        return (0,)

    def cudaMalloc(self, size: int) -> tuple[int, int | None]:  # noqa: N802
        assert size > 0
        if self.used + size > self.capacity:
            return 2, None
        self.allocations += 1
        memory = np.full(size + _ALIGNMENT, _POISON, dtype=np.uint8)
        memory = memory[-memory.ctypes.data % _ALIGNMENT :][:size]
        self.live[memory.ctypes.data] = memory
        return 0, memory.ctypes.data

    def cudaFree(self, address: int) -> tuple[int]:  # noqa: N802
        del self.live[address]
        return (0,)

    cudaMallocHost, cudaFreeHost = cudaMalloc, cudaFree  # noqa: N815

    def cudaMemGetInfo(self) -> tuple[int, int, int]:  # noqa: N802
        return 0, self.capacity - self.used, self.capacity

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:  # noqa: N802
        assert stream == 77
        for address, on_device in ((target, kind != 2), (source, kind != 1)):
            if on_device:
                self.check(address, size)
        self.copied += size * (kind == 3)
        ctypes.memmove(target, source, size)
        return (0,)

    @property
    def used(self) -> int:
        return sum(len(memory) for memory in self.live.values())

    def check(self, address: int, size: int) -> None:
        """Asserts that the bytes lie in one live allocation."""
        assert address, "a null address"
        start = max((begin for begin in self.live if begin <= address), default=None)
        assert start is not None
        assert address + size <= start + len(self.live[start]), "outside of what was allocated"


CUDART = FakeCudart()
"""What the contexts below check addresses with; tests put a fresh one here."""


# --- What both flavours have
# ------------------------------------------------------------------------------------


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)


class IStreamWriter:
    pass


class IProgressMonitor:
    pass


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(Enum):
    TF32 = 0


class MemoryPoolType(Enum):
    WORKSPACE = 0


class LayerType(Enum):
    PLUGIN_V3, ELEMENTWISE = range(2)


class TensorIOMode(Enum):
    INPUT, OUTPUT = range(2)


class ExecutionContextAllocationStrategy(Enum):
    STATIC, USER_MANAGED = range(2)


class _Registry:
    """Loads any library whose file says "plugin"; its plugin has version 1 where it begins with "old"."""

    def __init__(self) -> None:
        self.all_creators: list[Any] = []
        self.loaded: list[str] = []

    def load_library(self, path: str) -> object | None:
        self.loaded.append(path)
        content = Path(path).read_bytes()
        if b"plugin" not in content:
            return None
        version = "1" if content.startswith(b"old") else "2"
        self.all_creators.append(SimpleNamespace(name="DebiasedTokenPrune", plugin_version=version))
        return self


_REGISTRY = _Registry()


def get_plugin_registry() -> _Registry:
    return _REGISTRY


class OnnxParser:
    """Finds the pruning nodes: a function body wins over a registered plugin, as in versions up to 10.6."""

    def __init__(self, network: Any, logger: Any) -> None:
        self._network = network
        self._errors: list[str] = []

    def parse_from_file(self, path: str) -> bool:
        return self.parse(Path(path).read_bytes(), path)

    def parse(self, content: bytes, path: str) -> bool:
        import onnx

        model = onnx.load_model_from_string(content)
        bodies = {function.name for function in model.functions}
        self._network.path = path
        # A plugin's node has no body, and is run by that all the same.
        for function in onnx.load(path, load_external_data=False).functions:
            if function.name not in bodies:
                model.functions.append(function)
        self._network.content = model.SerializeToString()
        for node in model.graph.node:
            kind = LayerType.ELEMENTWISE
            if node.op_type == "DebiasedTokenPrune" and node.op_type not in bodies:
                attributes = {attribute.name: attribute.s.decode() for attribute in node.attribute}
                wanted = (node.op_type, attributes.get("plugin_version", "1"))
                if not any((one.name, one.plugin_version) == wanted for one in _REGISTRY.all_creators):
                    self._errors.append("Plugin not found: DebiasedTokenPrune")
                    return False
                kind = LayerType.PLUGIN_V3
            self._network.layers.append(SimpleNamespace(type=kind))
        return True

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, number: int) -> Any:
        return SimpleNamespace(
            desc=lambda: self._errors[number], node_operator=lambda: "Op", node_name=lambda: "node"
        )


class _Network:
    def __init__(self) -> None:
        self.path = ""
        self.content = b""
        self.layers: list[Any] = []

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, number: int) -> Any:
        return self.layers[number]


class _Config:
    def __init__(self) -> None:
        self.profiles: list[dict[str, Any]] = []
        self.progress_monitor: Any = None
        self.cache = b""
        self.cleared: list[str] = []
        self.pools: dict[str, int] = {}

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.cleared.append(flag.name)

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile.ranges)
        return len(self.profiles) - 1

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        self.pools[pool.name] = size

    def create_timing_cache(self, content: bytes) -> bytes:
        return content

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache + b"t"
        return not cache.startswith(b"other")

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.cache)


class _Profile:
    def __init__(self) -> None:
        self.ranges: dict[str, Any] = {}

    def set_shape(self, name: str, least: Any, usual: Any, most: Any) -> None:
        self.ranges[name] = (least, usual, most)


class Builder:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int) -> _Network:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return _Network()

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network_to_stream(self, network: _Network, config: _Config, writer: Any) -> bool:
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 1)
        monitor.phase_start("Timing", "Building engine", 2)
        for step in range(2):
            assert monitor.step_complete("Timing", step)
        monitor.phase_finish("Timing")
        monitor.phase_finish("Building engine")
        content = {
            "onnx": network.path,
            "graph": base64.b64encode(network.content).decode(),
            "profiles": config.profiles,
            "cleared": config.cleared,
            "pools": config.pools,
            "plugin": any(layer.type is LayerType.PLUGIN_V3 for layer in network.layers),
        }
        writer.write(json.dumps(content).encode())
        return True


class Runtime:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, content: Any) -> FakeEngine | None:
        try:
            return FakeEngine(json.loads(bytes(content)))
        except ValueError:
            self._logger.log(ILogger.Severity.ERROR, "the plan is\n corrupt")
            return None


class FakeEngine:
    """Runs the graph that was parsed, with the interface of the bundle's manifest."""

    device_memory_size_v2 = 1000

    def __init__(self, content: dict[str, Any]) -> None:
        import onnxruntime

        path = Path(content["onnx"])
        self.manifest = read_manifest(path.parent)
        is_language = path.name == self.manifest.language.file
        self.graph = token_major(self.manifest.language) if is_language else self.manifest.vision
        self.profiles = content["profiles"]
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        weights = str(path.resolve().parent)
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", weights)
        graph = base64.b64decode(content["graph"])
        self.session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
        self._tensors = [*self.graph.inputs, *self.graph.outputs]

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, number: int) -> str:
        return self._tensors[number].name

    def get_tensor_dtype(self, name: str) -> Any:
        names = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64"}
        return SimpleNamespace(name=names[self._spec(name).dtype])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(axis, str) else axis for axis in self._spec(name).shape)

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if self._spec(name) in self.graph.inputs else TensorIOMode.OUTPUT

    def create_execution_context(self, strategy: Any) -> FakeContext:
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        return FakeContext(self)

    def _spec(self, name: str) -> Any:
        return next(spec for spec in self._tensors if spec.name == name)


class FakeContext:
    """An execution context; keeps what it is told as the real one does."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._profile: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = False

    def set_device_memory(self, address: int, size: int) -> None:
        CUDART.check(address, size)
        assert size >= self._engine.device_memory_size_v2
        self._scratch = True

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        assert stream == 77
        self._profile = self._engine.profiles[number]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._profile[name]
        if not all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
            return False
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address != 0 and address % _ALIGNMENT == 0

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        axes = _axes(self._engine.manifest, self._engine.graph.inputs, self._shapes)
        shape = self._engine._spec(name).shape
        return tuple(axis if isinstance(axis, int) else axes[axis] for axis in shape)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77
        assert self._scratch, "no scratch memory"
        graph = self._engine.graph
        feeds = {spec.name: self._view(spec, self._shapes[spec.name]).copy() for spec in graph.inputs}
        names = [spec.name for spec in graph.outputs]
        for spec, value in zip(graph.outputs, self._engine.session.run(names, feeds), strict=True):
            assert value.shape == self.get_tensor_shape(spec.name), spec.name
            self._view(spec, value.shape)[...] = value
        return True

    def _view(self, spec: Any, shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(spec.dtype).itemsize
        CUDART.check(self._addresses[spec.name], size)
        # An array without elements is not made from an address.
        content = (ctypes.c_char * size).from_address(self._addresses[spec.name])
        return np.frombuffer(content, dtype=spec.dtype).reshape(shape)


def _axes(manifest: Manifest, inputs: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The size of every named axis of inputs and outputs."""
    axes = {
        axis: size
        for spec in inputs
        for axis, size in zip(spec.shape, shapes[spec.name], strict=True)
        if isinstance(axis, str)
    }
    if "sequence" not in axes:
        return {"visual": axes.get("tiles", 0) * manifest.tokens_per_tile} | axes
    length, visual = axes["sequence"], axes["visual"]
    lengths = [length]
    for number, stage in enumerate(manifest.plan.stages):
        kept = axes[kept_axis(number)]
        appended = recycled_count(visual - kept)[1] if stage.merge is Merge.RECYCLE else 0
        visual, length = kept + appended, length - visual + kept + appended
        axes[f"kept_{number + 1}"] = length
        lengths.append(length)
    if manifest.plan.trims_earlier_caches:
        lengths = lengths[-1:] * len(lengths)
    for group, length in enumerate(lengths):
        axes |= {f"new_{group}": length, f"present_{group}": axes[f"past_{group}"] + length}
    return axes
