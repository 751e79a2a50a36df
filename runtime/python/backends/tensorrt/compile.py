"""Builds one engine, in this process. `building.py` runs it in a child process of its own for each engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict

from edgeprune.errors import BackendError, InputError
from edgeprune.files import read_regular, write_bytes
from edgeprune.progress import Progress
from edgeprune.runtime.backends.tensorrt import plugins
from edgeprune.runtime.backends.tensorrt.flavours import Flavour
from edgeprune.runtime.backends.tensorrt.limits import Range
from edgeprune.runtime.backends.tensorrt.token_major import make_token_major

_LARGEST_CACHE = 1_000_000_000


class Job(BaseModel):
    """What to build: passed to the child process as JSON.

    Attributes:
        flavour: its name.
        onnx: the graph's file; its weights lie in the same folder.
        language: whether it is the language graph, whose caches become token-major.
        output: the engine's file to write.
        targets: GPU architectures; empty for the GPU of this machine.
        profiles: the optimization profiles in order.
        stages: how many pruning nodes the graph has.
        plugin: the plugin's library; None keeps the function body.
        workspace: bytes of GPU memory that kernels may use between layers; None for TensorRT's own limit.
        timing_cache: a file that is read if it exists, and written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flavour: str
    onnx: Path
    language: bool
    output: Path
    targets: tuple[str, ...]
    profiles: tuple[dict[str, Range], ...]
    stages: int
    plugin: Path | None = None
    workspace: int | None = None
    timing_cache: Path | None = None


def build_engine(trt: Any, flavour: Flavour, job: Job, progress: Progress) -> None:
    """Builds an engine and writes it to `job.output`.

    Args:
        trt: the flavour's module.
        flavour: must be `job.flavour`.

    Raises:
        BackendError: TensorRT cannot build it; the message has its reason.
    """
    logger = error_logger(trt)
    if job.plugin is not None:
        if not flavour.has_plugins:
            raise AssertionError(f"a plugin library is never loaded into {flavour.title}")
        plugins.load_library(trt, job.plugin)
    builder = trt.Builder(logger)
    # Later versions know nothing else and may drop the flag.
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    # The parser's weights are used until the engine is built, so it has to live as long.
    parser = _parse(trt, network, logger, job)
    config = _configure(trt, builder, job, progress)
    progress.step(f"building {job.output.name}")
    with job.output.open("wb") as file:
        if not _serialize(trt, builder, network, config, file):
            raise BackendError(f"{flavour.title} could not build {job.output.name}: {logger.reason()}")
    del parser
    if job.timing_cache is not None:
        content = bytes(config.get_timing_cache().serialize())
        write_bytes(job.timing_cache, content, "the timing cache")


def read_timing_cache(path: Path) -> bytes:
    """A timing cache's content, empty where there is none yet.

    Raises:
        InputError: it is no file that can be read.
    """
    try:
        return read_regular(path, "the timing cache", _LARGEST_CACHE)
    except FileNotFoundError:
        return b""
    except (OSError, ValueError) as error:
        raise InputError(f"the timing cache {path} cannot be read ({error}): name another file") from error


def _parse(trt: Any, network: Any, logger: Any, job: Job) -> Any:
    parser = trt.OnnxParser(network, logger)
    if job.language:
        parsed = parser.parse(_language_graph(job), str(job.onnx))
    else:
        parsed = parser.parse_from_file(str(job.onnx))
    if not parsed:
        reasons = [_reason(parser.get_error(number)) for number in range(parser.num_errors)]
        raise BackendError(
            f"{job.onnx} cannot be read by {trt.__name__} {trt.__version__}: "
            f"{'; '.join(reasons) or logger.reason()}"
        )
    if job.plugin is not None:
        plugins.check_layers(trt, network, job.stages)
    return parser


def _language_graph(job: Job) -> bytes:
    """As it is built; the weights stay where they are."""
    import onnx

    model = onnx.load(job.onnx, load_external_data=False)
    make_token_major(model)
    if job.plugin is not None:
        plugins.remove_function_body(model)
    return bytes(model.SerializeToString())


def _reason(error: Any) -> str:
    return f"{' '.join(error.desc().split())} ({error.node_operator()} {error.node_name()})"


def _configure(trt: Any, builder: Any, job: Job, progress: Progress) -> Any:
    config = builder.create_builder_config()
    # float32 is exported for exactness; who wants speed exports fp16.
    config.clear_flag(trt.BuilderFlag.TF32)
    for ranges in job.profiles:
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in ranges.items():
            profile.set_shape(name, least, usual, most)
        if config.add_optimization_profile(profile) < 0:
            raise BackendError(f"TensorRT refuses the profile {ranges} of {job.onnx.name}: try other limits")
    if job.targets:
        config.num_compute_capabilities = len(job.targets)
        for number, target in enumerate(job.targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), number)
    if job.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace)
    if job.timing_cache is not None:
        known = read_timing_cache(job.timing_cache)
        # Another GPU's or version's times would be worthless, so those are refused.
        if not config.set_timing_cache(config.create_timing_cache(known), False):
            raise BackendError(
                f"the timing cache {job.timing_cache} is of another GPU or TensorRT: name another file"
            )
    config.progress_monitor = _monitor(trt, job.output.name, progress)
    return config


def _serialize(trt: Any, builder: Any, network: Any, config: Any, file: BinaryIO) -> bool:
    if not hasattr(builder, "build_serialized_network_to_stream"):  # older TensorRT
        engine = builder.build_serialized_network(network, config)
        if engine is not None:
            file.write(engine)
        return engine is not None
    # Written piece by piece, the engine never lies in memory as a whole beside the weights.
    return bool(builder.build_serialized_network_to_stream(network, config, _writer(trt, file)))


# The classes below have TensorRT's as their parents, so they cannot be made before one flavour is chosen.


def _writer(trt: Any, file: BinaryIO) -> Any:
    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            return file.write(data)

    return Writer()


def error_logger(trt: Any) -> Any:
    """A logger that keeps the errors; its `reason()` is them, in one line."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps errors for the message of the one exception that they lead to."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self._errors.append(" ".join(text.split()))

        def reason(self) -> str:
            # TensorRT for RTX says this at the start of every build.
            told = [text for text in self._errors if "Thread context has not been set" not in text]
            return "; ".join(told) or "it gives no reason"

    return Logger()


def _monitor(trt: Any, name: str, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Reports the phases below the whole build that have steps; the ones deeper down flicker."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._depth: dict[str, int] = {}
            self._shown: str | None = None

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._depth[phase] = self._depth.get(parent, 0) + 1 if parent else 0
            if 1 <= self._depth[phase] <= 2 and steps > 1:
                self._shown = phase
                progress.step(f"{name}: {phase[:1].lower()}{phase[1:]}", steps)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase == self._shown:
                progress.advance(1)
            return True

        def phase_finish(self, phase: str) -> None:
            self._depth.pop(phase, None)

    return Monitor()
