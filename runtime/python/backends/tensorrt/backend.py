"""TensorRT and TensorRT for RTX: runs the engines that `edgeprune build` made of a bundle's graphs.

Everything stays on the GPU and is queued on one stream. All memory is taken when a graph is loaded: an input
from the host has a buffer; a cache has one, behind whose tokens new ones are written (`caches`); every other
output has two, so that what comes back as an input is read from the one while the other is written. An engine
has an execution context per profile, and they share their scratch memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgeprune.bundle import read_manifest
from edgeprune.checks import check_count
from edgeprune.errors import BackendError, InputError, OutputError
from edgeprune.files import read_regular, write_bytes
from edgeprune.interface import (
    CURVE_PLACE,
    VISUAL_EMBEDS,
    VISUAL_INDEX,
    VISUAL_VALID,
    TensorSpec,
    is_cache,
    is_kept_slots,
    is_past,
    past_mask,
    present_of,
)
from edgeprune.manifest import GraphSpec, Manifest
from edgeprune.memory import PeakMemory
from edgeprune.ownership import RUNTIME_CACHE
from edgeprune.runtime.backends.base import (
    ELEMENT_BYTES,
    Array,
    Availability,
    Tensor,
    to_bfloat16_bits,
)
from edgeprune.runtime.backends.sidecars import has_engines
from edgeprune.runtime.backends.tensorrt import device, flavours, plugins
from edgeprune.runtime.backends.tensorrt.caches import EngineCaches
from edgeprune.runtime.backends.tensorrt.compile import error_logger
from edgeprune.runtime.backends.tensorrt.device import Device, Memory, Staging
from edgeprune.runtime.backends.tensorrt.flavours import Flavour, flavour_by_name
from edgeprune.runtime.backends.tensorrt.limits import (
    Profile,
    default_visual,
    language_profiles,
    most_kept,
    vision_profile,
)
from edgeprune.runtime.backends.tensorrt.sidecar import Here, Sidecar, find_engines
from edgeprune.runtime.backends.tensorrt.token_major import token_major

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64"}
_BUFFERS = 2
_LARGEST_CACHE = 1_000_000_000
GPU_METRIC = "growth of the GPU's used memory since the start (cudaMemGetInfo), whoever took it"


@dataclass(frozen=True)
class Options:
    """Options of these back ends.

    Attributes:
        device: the GPU's number.
    """

    device: int = 0

    def __post_init__(self) -> None:
        check_count("device", self.device, least=0)


def availability(name: str) -> Availability:
    """Whether `name`, a flavour's, can run here."""
    flavour = flavour_by_name(name)
    reason = _why_not(flavour)
    version = flavours.installed_version(flavour)
    return Availability(name, flavour.title, reason is None, reason, flavour.extra, version)


def is_ready(name: str, bundle: Path) -> bool:
    """Whether a bundle has engines for the back end; `auto` passes over it otherwise."""
    return has_engines(bundle, name)


def open_backend(name: str, options: Mapping[str, Any]) -> EngineBackend:
    """The back end `name`. Raises as `backends.open_backend`."""
    flavour = flavour_by_name(name)
    known = [field.name for field in fields(Options)]
    for option in options:
        if option not in known:
            raise InputError(f"the back end {name} has no option {option!r}: it knows {', '.join(known)}")
    chosen = Options(**options)
    trt = flavours.load(flavour, f"the back end {name}")
    cudart = device.runtime(f"the back end {name}", flavour.extra)
    try:
        gpu = Device(cudart, chosen.device)
    except BackendError as error:
        raise BackendError(f"the back end {name} cannot run here: {error}") from error
    return EngineBackend(flavour, trt, gpu)


def _why_not(flavour: Flavour) -> str | None:
    missing = None
    if not flavours.is_installed(flavour):
        missing = flavour.package
    elif not device.is_installed():
        missing = "cuda-bindings"
    if missing is not None:
        return f"the package {missing} is not installed: pip install 'edgeprune[{flavour.extra}]'"
    if device.read_gpu(device.runtime(f"the back end {flavour.name}", flavour.extra)) is None:
        return device.NO_GPU
    try:
        flavours.load(flavour, f"the back end {flavour.name}")
    except BackendError as error:
        return str(error)
    return None


class EngineTensor:
    """A part of device memory, from its beginning."""

    def __init__(self, gpu: Device, memory: Memory, shape: Sequence[int], dtype: str) -> None:
        self._gpu = gpu
        self.memory = memory
        self._shape = tuple(shape)
        self._dtype = dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> str:
        return self._dtype

    @property
    def nbytes(self) -> int:
        return prod(self._shape) * ELEMENT_BYTES[self._dtype]

    def reshape(self, *shape: int) -> EngineTensor:
        if prod(shape) != prod(self._shape):
            raise BackendError(f"a tensor of shape {list(self.shape)} cannot be seen as {list(shape)}")
        return EngineTensor(self._gpu, self.memory, shape, self._dtype)

    def numpy(self) -> Array:
        if self._dtype == "bfloat16":
            raise BackendError("a bfloat16 tensor cannot be fetched: numpy has no such type")
        values = np.empty(self._shape, dtype=self._dtype)
        self._gpu.download(self.memory.address, values)
        return values


class _Input:
    """Where an input from the host lies on the device."""

    def __init__(self, gpu: Device, spec: TensorSpec, capacity: int) -> None:
        self.spec = spec
        self.memory = gpu.allocate(capacity)
        self.staging: Staging = gpu.allocate_staging(capacity)


class EngineGraph:
    """An engine with its contexts and buffers.

    Attributes:
        most_behind_past: 1, as engines are built for.
        max_length: the most tokens of prompt and reply that it reads; None where it reads none.

    Args:
        trt: the flavour's module.
        engine: deserialized.
        contexts: an execution context for each profile.
        profiles: what the engine was built for, in the order of its profiles.
        advise: what to say where an input's name, axis and size are in no profile.
    """

    most_behind_past: int | None = 1

    def __init__(
        self,
        gpu: Device,
        trt: Any,
        engine: Any,
        contexts: Sequence[Any],
        profiles: Sequence[Profile],
        spec: GraphSpec,
        advise: Callable[[str, int, int], str],
    ) -> None:
        self._gpu = gpu
        self._name = spec.file
        self._engine = engine
        self._contexts = contexts
        self._profiles = profiles
        self._advise = advise
        self.inputs, self.outputs = _interface(trt, engine)
        expected = {tensor.name for tensor in spec.inputs}
        self._inputs = {
            tensor.name: _Input(gpu, tensor, self._capacity(tensor))
            for tensor in self.inputs
            if tensor.name in expected and not is_past(tensor.name)
        }
        # A past of 0 tokens has no elements, and yet needs an address.
        self._nothing = gpu.allocate(1)
        self._input_dtypes = {tensor.name: tensor.dtype for tensor in self.inputs}
        self._output_dtypes = {tensor.name: tensor.dtype for tensor in self.outputs}
        sizes = _largest_outputs(contexts, self.inputs, self.outputs, profiles)
        self._caches = _caches(gpu, self.inputs, profiles, sizes)
        self._buffers = {
            spec.name: [gpu.allocate(max(size[spec.name] for size in sizes)) for _ in range(_BUFFERS)]
            for spec in self.outputs
            if not is_cache(spec.name)
        }
        self._turn = 0
        pasts = [profile[past_mask(0)].most[1] for profile in profiles if past_mask(0) in profile]
        self.max_length = max(pasts) + 1 if pasts else None

    def expect(self, capacities: Sequence[int]) -> None:
        """Nothing to prepare: all memory was taken when the graph was loaded."""

    def run(self, feeds: Mapping[str, Tensor | Array], outputs: Sequence[str]) -> dict[str, Tensor]:
        for name in self._input_dtypes:
            if name not in feeds:
                raise BackendError(f"{self._name} was run without its input {name}")
        for name in feeds:
            if name not in self._input_dtypes:
                raise BackendError(f"{self._name} has no input {name}")
        shapes = {name: self._caches.shape(name, value) for name, value in feeds.items()}
        context = self._contexts[self._profile(shapes)]
        caches = self._caches.place(feeds)
        buffers = {name: pair[self._turn] for name, pair in self._buffers.items()}
        alive = []
        for name, value in feeds.items():
            memory = caches[name].memory if name in caches else self._place(name, value)
            if any(memory is buffer for buffer in buffers.values()):
                raise BackendError(
                    f"the input {name} of {self._name} is an output of the second last run, which this run "
                    "overwrites"
                )
            alive.append(memory)
            done = context.set_input_shape(name, shapes[name])
            if not (done and context.set_tensor_address(name, memory.address)):
                raise BackendError(f"TensorRT refuses {name} of shape {list(shapes[name])} in {self._name}")
        targets = {name: buffer.address for name, buffer in buffers.items()}
        targets |= {present_of(name): self._caches.target(name, buffer) for name, buffer in caches.items()}
        for name, address in targets.items():
            shapes[name] = tuple(context.get_tensor_shape(name))
            if min(shapes[name], default=0) < 0:
                raise BackendError(
                    f"TensorRT cannot tell the shape of {self._name}'s {name} before it has run"
                )
            context.set_tensor_address(name, address)
        if not context.execute_async_v3(self._gpu.stream):
            raise BackendError(f"TensorRT could not run {self._name}: its log says why")
        self._turn = (self._turn + 1) % _BUFFERS
        presents = self._caches.given_out(caches, {name: shapes[present_of(name)][0] for name in caches})
        return {
            name: presents[name]
            if name in presents
            else EngineTensor(self._gpu, buffers[name], shapes[name], self._output_dtypes[name])
            for name in outputs
        }

    def _place(self, name: str, value: Tensor | Array) -> Memory:
        dtype = self._input_dtypes[name]
        if isinstance(value, EngineTensor):
            if value.dtype != dtype:
                raise BackendError(f"the input {name} of {self._name} is {value.dtype}: expected {dtype}")
            return value.memory
        array = cast(Array, value)
        if not array.size:
            return self._nothing
        if name not in self._inputs:
            # A past's mask from the host comes up where caches are cut, or results are compared.
            self._inputs[name] = _Input(self._gpu, self._spec(name), self._capacity(self._spec(name)))
        place = self._inputs[name]
        array = to_bfloat16_bits(array) if dtype == "bfloat16" else np.ascontiguousarray(array, dtype=dtype)
        self._gpu.upload(place.memory.address, array, place.staging)
        return place.memory

    def _spec(self, name: str) -> TensorSpec:
        return next(spec for spec in self.inputs if spec.name == name)

    def _capacity(self, spec: TensorSpec) -> int:
        return max(prod(profile[spec.name].most) for profile in self._profiles) * ELEMENT_BYTES[spec.dtype]

    def _profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The first profile that takes these shapes."""
        problems = []
        for number, profile in enumerate(self._profiles):
            problem = _outside(profile, shapes)
            if problem is None:
                return number
            problems.append(problem)
        # A prompt is judged by the first profile, a step by the one whose past fits.
        past = shapes.get(past_mask(0), (0, 0))[1] > 0
        name, axis, size = problems[-1 if past else 0]
        raise BackendError(self._advise(name, axis, size))


def _outside(profile: Profile, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, int, int] | None:
    """The first input, axis and size that a profile does not take; None where it takes all."""
    for name, (least, _, most) in profile.items():
        for axis, size in enumerate(shapes[name]):
            if not least[axis] <= size <= most[axis]:
                return name, axis, size
    return None


def _interface(trt: Any, engine: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of an engine; open axes have no names in it."""
    found: dict[bool, list[TensorSpec]] = {True: [], False: []}
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        dtype = _DTYPES.get(engine.get_tensor_dtype(name).name)
        if dtype is None:
            raise BackendError(
                f"the engine's {name} is of a type that edgeprune does not use: build it again"
            )
        shape = tuple("" if axis < 0 else int(axis) for axis in engine.get_tensor_shape(name))
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        found[is_input].append(TensorSpec(name=name, dtype=cast(Any, dtype), shape=shape))
    return tuple(found[True]), tuple(found[False])


def _largest_outputs(
    contexts: Sequence[Any],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    profiles: Sequence[Profile],
) -> list[dict[str, int]]:
    """For each profile, bytes of every output at the largest inputs: TensorRT computes the shapes, here as in
    every run.

    Outputs grow with every axis but one: where tokens are pruned, fewer visual ones leave more of the others.
    So each profile is asked with as many visual tokens as it takes, all kept, and with as few.
    """
    visual_inputs = (VISUAL_EMBEDS, VISUAL_INDEX, VISUAL_VALID, CURVE_PLACE)
    found = []
    for context, profile in zip(contexts, profiles, strict=True):
        sizes = dict.fromkeys((spec.name for spec in outputs), 0)
        for visual in ("least", "most"):
            for spec in inputs:
                shape = list(profile[spec.name].most)
                if spec.name in visual_inputs or is_kept_slots(spec.name):
                    shape[1] = getattr(profile[spec.name], visual)[1]
                context.set_input_shape(spec.name, tuple(shape))
            for spec in outputs:
                largest = prod(context.get_tensor_shape(spec.name)) * ELEMENT_BYTES[spec.dtype]
                sizes[spec.name] = max(sizes[spec.name], largest)
        found.append(sizes)
    return found


def _caches(
    gpu: Device, inputs: Sequence[TensorSpec], profiles: Sequence[Profile], sizes: Sequence[Mapping[str, int]]
) -> EngineCaches:
    """Memory for the longest past of each cache with what is added to it.

    Args:
        sizes: of the outputs, for each profile.
    """
    specs = [spec for spec in inputs if is_cache(spec.name)]
    most, added = (dict.fromkeys((spec.name for spec in specs), 0) for _ in range(2))
    for profile, new in zip(profiles, sizes, strict=True):
        for spec in specs:
            name, more = spec.name, new[present_of(spec.name)]
            past = prod(profile[name].most) * ELEMENT_BYTES[spec.dtype]
            most[name] = max(most[name], past + more)
            if past:
                added[name] = max(added[name], more)
    return EngineCaches(gpu, specs, most, added)


class EngineBackend:
    """See the module's description."""

    def __init__(self, flavour: Flavour, trt: Any, gpu: Device) -> None:
        self.name = flavour.name
        self.engines: str | None = None
        self._flavour = flavour
        self._trt = trt
        self._gpu = gpu
        self._logger = error_logger(trt)
        self._runtime = trt.Runtime(self._logger)

    def language_form(self, manifest: Manifest) -> GraphSpec:
        return token_major(manifest.language)

    def load(self, folder: Path, spec: GraphSpec) -> EngineGraph:
        manifest = read_manifest(folder)
        engines, sidecar = self.find(folder, manifest)
        self.engines = engines.name
        which = "language" if spec.file == manifest.language.file else "vision"
        spec = self.language_form(manifest) if which == "language" else spec
        if sidecar.plugin is not None:
            plugins.load_library(self._trt, cast(Path, plugins.find_library()))
        entry = sidecar.engines[cast(Any, which)]
        # Mapped: on a board whose GPU uses the same memory, reading it would need that twice.
        with (engines / entry.path).open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise BackendError(
                f"{self._flavour.title} cannot load {engines / entry.path} ({self._logger.reason()}): build "
                f"it again: `{sidecar.build_command(folder)}`"
            )
        if which == "language":
            profiles = tuple(language_profiles(manifest, sidecar.limits, sidecar.plugin is not None).values())
        else:
            profiles = (vision_profile(manifest, sidecar.limits),)
        contexts = self._contexts(engine, engines / f"{which}.{RUNTIME_CACHE}", len(profiles))
        advise = _Advice(folder, manifest, sidecar, spec)
        return EngineGraph(self._gpu, self._trt, engine, contexts, profiles, spec, advise)

    def find(self, folder: Path, manifest: Manifest) -> tuple[Path, Sidecar]:
        """The folder and sidecar of a bundle's engines that run here. Raises as `sidecar.find_engines`."""
        library = plugins.find_library() if self._flavour.has_plugins else None
        gpu = self._gpu.gpu
        here = Here(self._flavour, str(self._trt.__version__), gpu.target, gpu.name, library)
        return find_engines(folder, manifest, here)

    def synchronize(self) -> None:
        self._gpu.synchronize()

    def peak_memory(self) -> PeakMemory:
        return PeakMemory(self._gpu.used_bytes(), GPU_METRIC, shared=True)

    def free_bytes(self) -> int:
        """Memory of the GPU that nothing has taken yet."""
        return self._gpu.free_bytes()

    def _contexts(self, engine: Any, cache_file: Path, profiles: int) -> list[_Context]:
        scratch = self._gpu.allocate(engine.device_memory_size_v2)
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        cache = _RuntimeCache.open(engine, strategy, cache_file)
        contexts = []
        for number in range(profiles):
            context = engine.create_execution_context(cache.config if cache else strategy)
            if context is None:
                raise BackendError(
                    f"TensorRT cannot make a context ({self._logger.reason()}): is the GPU's memory full?"
                )
            context.set_device_memory(scratch.address, scratch.size)
            if not context.set_optimization_profile_async(number, self._gpu.stream):
                raise BackendError(f"the engine has no profile {number}: build it again")
            contexts.append(_Context(context, scratch, cache, self._runtime))
        self._gpu.synchronize()
        return contexts


class _Context:
    """An execution context, and what has to live as long as it."""

    def __init__(self, context: Any, *kept: object) -> None:
        self._context = context
        self._kept = kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class _RuntimeCache:
    """What TensorRT for RTX compiles for this GPU when an engine first runs, kept for the next start."""

    def __init__(self, config: Any, cache: Any, file: Path) -> None:
        self.config = config
        known = _known(file)
        # A cache of another GPU or driver is refused by itself, and written anew.
        if known and not cache.deserialize(known):
            known = b""
        # At the end of the process, or earlier with the graph.
        weakref.finalize(self, _save, cache, file, len(known))

    @staticmethod
    def open(engine: Any, strategy: Any, file: Path) -> _RuntimeCache | None:
        """None for a TensorRT that compiles nothing at run time."""
        config = engine.create_runtime_config() if hasattr(engine, "create_runtime_config") else None
        if config is None or not hasattr(config, "create_runtime_cache"):
            return None
        config.set_execution_context_allocation_strategy(strategy)
        cache = config.create_runtime_cache()
        config.set_runtime_cache(cache)
        return _RuntimeCache(config, cache, file)


def _known(file: Path) -> bytes:
    """What was compiled before; empty where nothing can be read."""
    try:
        return read_regular(file, limit=_LARGEST_CACHE)
    except (OSError, InputError):
        return b""


def _save(cache: Any, file: Path, known: int) -> None:
    compiled = bytes(cache.serialize())
    if len(compiled) == known:
        return
    with suppress(OutputError):  # a bundle that cannot be written to: it is compiled again next time
        write_bytes(file, compiled)


@dataclass(frozen=True)
class _Advice:
    """Says what does not fit an engine and which command builds one that takes it."""

    folder: Path
    manifest: Manifest
    sidecar: Sidecar
    spec: GraphSpec

    def __call__(self, name: str, axis: int, size: int) -> str:
        limits = self.sidecar.limits
        shape = next(tensor.shape for tensor in self.spec.inputs if tensor.name == name)
        kind = str(shape[axis])
        if kind == "batch":
            found, most, changed = f"{size} prompts at once", f"{limits.batch}", {"batch": size}
        elif kind == "sequence":
            found, most, changed = f"the prompt's {size} tokens", f"{limits.prompt}", {"prompt": size}
        elif kind == "visual":
            # Behind the batch, or of all of its prompts.
            visual = size if axis else -(-size // limits.batch)
            found, most = f"{visual} visual tokens", f"{limits.visual} per prompt"
            changed = {"visual": visual, "prompt": limits.prompt + max(0, visual - limits.visual)}
        elif kind in ("tiles", "frames"):
            room = vision_profile(self.manifest, limits)[name].most[axis]
            found, most = f"{size} {kind}", f"{room} for {limits.batch} prompts of {limits.images} images"
            images = max(limits.images, -(-size // self.manifest.image_program.most_tiles))
            visual = default_visual(self.manifest, images)
            changed = {
                "images": images,
                "visual": max(limits.visual, visual),
                "prompt": limits.prompt + max(0, visual - limits.visual),
            }
        elif is_kept_slots(name):
            largest = most_kept(self.manifest, limits, self.sidecar.plugin is not None)
            return (
                f"a pruning stage is to keep {size} visual tokens, and without the plugin TensorRT selects "
                f"at most {largest}: give a lower `keep` or fewer images, or build with the plugin "
                "(`backend='tensorrt'`, `plugin='on'`)"
            )
        else:
            total = limits.prompt + limits.new_tokens
            found = f"the {size + 1} tokens of prompt and reply"
            most = f"{total} ({limits.prompt} of the prompt, {limits.new_tokens} new ones)"
            changed = {"new_tokens": size + 1 - limits.prompt}
        command = self.sidecar.build_command(self.folder, limits=limits.model_copy(update=changed))
        return (
            f"{found} do not fit the engine, which takes at most {most}: shorten, or build again: `{command}`"
        )
