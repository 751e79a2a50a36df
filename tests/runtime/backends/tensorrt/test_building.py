"""`build`: with the fake of `tensorrt`, and for real with TensorRT for RTX, which needs no GPU for it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeprune.bundle import read_manifest
from edgeprune.errors import BackendError, BundleError, InputError, MissingDependencyError, OutputError
from edgeprune.manifest import DType, Manifest, WeightKind
from edgeprune.runtime.backends.tensorrt import build, building, device, flavours, memory, plugins
from edgeprune.runtime.backends.tensorrt.sidecar import read_sidecar
from tests.conftest import SAMPLE_MODEL
from tests.edgeprune.cli.conftest import snapshot
from tests.manifests import make_manifest, write_bundle
from tests.runtime.backends.tensorrt import fakes
from tests.runtime.test_child import running

needs_rtx = pytest.mark.skipif(
    not flavours.is_installed(flavours.TENSORRT_RTX), reason="pip install 'edgeprune[rtx]'"
)
RTX: dict[str, Any] = {"backend": "tensorrt-rtx", "targets": ["sm89"]}


class Recorder:
    """Progress that remembers its steps."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.advanced = 0

    def step(self, name: str, total: int | None = None) -> None:
        self.steps.append(name)

    def advance(self, amount: int) -> None:
        self.advanced += amount


@pytest.fixture
def bundle(sample_bundle: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "bundle"
    shutil.copytree(sample_bundle, copy)
    return copy


def engine(folder: Path, name: str = "language") -> dict[str, Any]:
    """What the fake wrote."""
    content: dict[str, Any] = json.loads((folder / f"{name}.engine").read_text(encoding="utf-8"))
    return content


# --- TensorRT, by the fake
# ------------------------------------------------------------------------------------


def test_tensorrt_builds_for_this_gpu_and_tells_the_steps(bundle: Path, tensorrt: object) -> None:
    progress = Recorder()
    folder = build(bundle, backend="tensorrt", workspace=1 << 20, progress=progress)
    assert folder == bundle / "engines" / f"tensorrt-{fakes.__version__}-sm89"
    assert engine(folder)["pools"] == {"WORKSPACE": 1 << 20}
    assert engine(folder)["cleared"] == ["TF32"]
    assert len(engine(folder)["profiles"]) == 2
    assert len(engine(folder, "vision")["profiles"]) == 1
    assert "language.engine: timing" in progress.steps
    # Every byte of the bundle is hashed before.
    assert progress.advanced == 4 + sum(entry.bytes for entry in read_manifest(bundle).files)
    sidecar = read_sidecar(folder)
    assert (sidecar.gpu, sidecar.targets, sidecar.pruning) == ("Fake GPU", ("sm89",), "function body")


def test_the_plugin_replaces_the_body_and_is_recorded(
    bundle: Path, tensorrt: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / plugins.LIBRARY
    library.write_bytes(b"plugin")
    monkeypatch.setenv(plugins.ENVIRONMENT, str(tmp_path))
    folder = build(bundle, backend="tensorrt")
    assert engine(folder)["plugin"]
    sidecar = read_sidecar(folder)
    assert sidecar.pruning == "plugin"
    assert sidecar.plugin is not None
    assert sidecar.plugin.file == plugins.LIBRARY
    off = read_sidecar(build(bundle, backend="tensorrt", plugin="off"))
    assert (off.pruning, off.plugin) == ("function body", None)
    assert not engine(folder)["plugin"]
    library.write_bytes(b"something else")
    with pytest.raises(BackendError, match=r"cannot load the plugin library .*build it again"):
        build(bundle, backend="tensorrt")
    library.write_bytes(b"old plugin")
    with pytest.raises(
        BackendError, match=r"does not hold version 2 of Debiased.*build it again from plugins/"
    ):
        build(bundle, backend="tensorrt")
    library.unlink()
    with pytest.raises(InputError, match=rf"{plugins.ENVIRONMENT} names .*: correct or unset it"):
        build(bundle, backend="tensorrt")


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize(("version", "fits"), [("10.3.0", True), ("11.1.0", False)])
def test_a_plugin_library_for_another_major_version_is_not_loaded(
    tensorrt: object, tmp_path: Path, version: str, fits: bool
) -> None:
    library = tmp_path / f"{version}-{plugins.LIBRARY}"
    code = f'const char* edgeprune_plugins_tensorrt_version(void) {{ return "{version}"; }}'
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=code, text=True, check=True)
    if fits:
        plugins.load_library(fakes, library)
        assert fakes._REGISTRY.loaded == [str(library)]
        return
    with pytest.raises(
        BackendError,
        match=rf"was built for TensorRT 11\.1\.0, and {fakes.__version__} is installed: build it",
    ):
        plugins.load_library(fakes, library)
    assert fakes._REGISTRY.loaded == []


def test_a_node_that_does_not_become_a_plugin_layer_is_an_error(tensorrt: object) -> None:
    network = fakes._Network()
    with pytest.raises(
        BackendError, match=r"1 pruning nodes, and TensorRT made 0 plugin layers.*`plugin='off'`"
    ):
        plugins.check_layers(fakes, network, 1)


@pytest.mark.parametrize(
    ("flavour", "version", "words"),
    [
        (flavours.TENSORRT_RTX, "1.7.1", "TensorRT for RTX has no plugins"),
        (flavours.TENSORRT, "10.2.0", "needs TensorRT 10.3 or later, and 10.2.0"),
        (flavours.TENSORRT, "10.3.0", "was not found: build it"),
    ],
)
def test_a_plugin_that_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, flavour: flavours.Flavour, version: str, words: str
) -> None:
    monkeypatch.setattr(plugins, "find_library", lambda: None)
    assert plugins.choose("auto", flavour, version, True) is None
    assert plugins.choose("on", flavour, version, False) is None  # nothing is pruned
    with pytest.raises(InputError, match=f"`plugin='on'`: .*{words}.*`plugin='off'` takes the function body"):
        plugins.choose("on", flavour, version, True)


def test_a_plugin_is_never_even_looked_for_with_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "find_library", lambda: pytest.fail("looked for"))
    assert plugins.choose("auto", flavours.TENSORRT_RTX, "1.7", True) is None


def test_the_timing_cache_is_read_and_written(bundle: Path, tensorrt: object, tmp_path: Path) -> None:
    cache = tmp_path / "times"
    build(bundle, backend="tensorrt", timing_cache=cache)
    assert cache.read_bytes() == b"tt"  # once for each engine
    cache.write_bytes(b"other GPU")
    with pytest.raises(BackendError, match="is of another GPU or TensorRT: name another file"):
        build(bundle, backend="tensorrt", timing_cache=cache)


def test_a_timing_cache_that_cannot_be_is_refused_before_the_build(
    bundle: Path, tensorrt: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_run", None)
    os.mkfifo(tmp_path / "fifo")
    weights = (bundle / "language.onnx").read_bytes()
    for path, words in (
        (tmp_path / "fifo", "the timing cache .* is a pipe: expected a regular file"),
        (tmp_path, "is a folder"),
        (bundle / "language.onnx", r"the output .*language\.onnx and the input .* are one file"),
        (bundle / "edgeprune.json", "are one file"),
    ):
        with pytest.raises(InputError, match=words):
            build(bundle, backend="tensorrt", timing_cache=path)
    with pytest.raises(OutputError, match="in a folder that exists"):
        build(bundle, backend="tensorrt", timing_cache=tmp_path / "none" / "times")
    assert (bundle / "language.onnx").read_bytes() == weights


def test_weights_that_the_target_cannot_read_are_refused_before_the_build(
    tensorrt: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_run", None)
    monkeypatch.setattr(building, "check_source", None)
    fp4 = {"weights": "nvfp4", "block": 16, "method": "nearest"}
    precision = make_manifest().precision.model_copy(update=fp4)
    bundle = write_bundle(tmp_path / "bundle", precision=precision, opset=23)
    before = snapshot(bundle)
    with pytest.raises(InputError, match=r"nvfp4 weights, .*from Blackwell \(sm100\) on, .* is sm89: export"):
        build(bundle, backend="tensorrt", targets=["sm89"])
    assert snapshot(bundle) == before


def test_a_killed_build_takes_its_child_along(bundle: Path, tensorrt: object, tmp_path: Path) -> None:
    module = tmp_path / "packages" / "tensorrt.py"
    pid = tmp_path / "pid"
    sleeping = (
        f"\nimport os, time\nfrom pathlib import Path\n"
        f"def build_for_long(*_):\n"
        f"    Path({str(pid)!r}).write_text(str(os.getpid()))\n"
        f"    time.sleep(120)\n"
        f"Builder.build_serialized_network_to_stream = build_for_long\n"
    )
    module.write_text(module.read_text(encoding="utf-8") + sleeping, encoding="utf-8")
    code = (
        "from edgeprune.runtime.backends.tensorrt import build, device, memory\n"
        "from tests.runtime.backends.tensorrt import fakes\n"
        "device.is_installed = lambda: True\n"
        "device.runtime = lambda what, extra: fakes.CUDART\n"
        "memory.available_memory = lambda: 1 << 40\n"
        f"build({str(bundle)!r}, backend='tensorrt')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        child = int(_soon(lambda: pid.exists() and pid.read_text()))
        assert running(child)
    finally:
        parent.kill()
        parent.wait()
    _soon(lambda: not running(child))
    assert list((bundle / "engines").iterdir())  # what it was at, which the next build removes
    module.write_text(module.read_text(encoding="utf-8").replace(sleeping, ""), encoding="utf-8")
    folder = build(bundle, backend="tensorrt")
    assert list((bundle / "engines").iterdir()) == [folder]


def _soon(condition: Callable[[], Any]) -> Any:
    """The condition's value as soon as it is true."""
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_tensorrt_builds_for_no_other_gpu_and_for_none(
    bundle: Path, tensorrt: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"here sm89 \(Fake GPU\), not for sm87: run this command on"):
        build(bundle, backend="tensorrt", targets=["sm87"])
    monkeypatch.setattr(fakes, "CUDART", fakes.FakeCudart(gpus=0))
    with pytest.raises(BackendError, match=r"no NVIDIA GPU answers .*`backend='tensorrt-rtx'`"):
        build(bundle, backend="tensorrt")


def test_too_little_memory_is_said_before_and_force_tries(
    bundle: Path, tensorrt: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 300_000_000)
    with pytest.raises(InputError, match=r"takes about 4\d\d MB .*300 MB are available.*`force=True`"):
        build(bundle, backend="tensorrt")
    assert not (bundle / "engines").exists()
    assert build(bundle, backend="tensorrt", force=True).is_dir()
    monkeypatch.setattr(memory, "available_memory", lambda: 1 << 40)
    monkeypatch.setattr(fakes, "CUDART", fakes.FakeCudart(capacity=1_000_000))
    with pytest.raises(InputError, match=r"of the GPU's memory, and 1 MB are free"):
        build(bundle, backend="tensorrt")


def test_the_estimate_has_some_room_over_what_was_measured() -> None:
    """By the table in docs/tensorrt.md, which benchmarks/build_memory.py prints."""
    page = Path(__file__).resolve().parents[4] / "docs" / "tensorrt.md"
    row = r"^\| \w+ \| (\d+) \| fp\d\d \| ([\d.]+) \| [\d.]+ \| [\d.]+ \| ([\d.]+) \| ([\d.]+) \|"
    rows = re.findall(row, page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) >= 7
    base = make_manifest()
    for layers, weights, own, asked in rows:
        model = base.model.model_copy(update={"layers": int(layers)})
        file = base.files[-1].model_copy(update={"bytes": int(float(weights) * 1e9)})
        assert file.path.endswith(".safetensors")
        manifest = base.model_copy(update={"model": model, "files": (file,)})
        estimate = memory.estimate(manifest, flavours.TENSORRT_RTX) / 1e9
        assert estimate == pytest.approx(float(asked), abs=0.02)
        assert 0.7 < float(own) / estimate < 0.8
        assert memory.estimate(manifest, flavours.TENSORRT) / 1e9 == pytest.approx(0.4 + 4 * float(weights))


def test_a_control_group_limits_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("900\n")
    (group / "memory.current").write_text("700\n")
    (group / "memory.stat").write_text("anon 400\nfile 300\nfile_mapped 1\n")
    assert memory.available_bytes(tmp_path) == 500
    (group / "memory.max").write_text("max\n")
    assert memory.available_bytes(tmp_path) == 1000


# --- The child process
# ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("os.kill(os.getpid(), 9)", "vision.engine was killed, as the system does when memory runs out"),
        ("os.abort()", "TensorRT ended with signal 6 while building vision.engine"),
        (
            "raise SystemExit(3)",
            "TensorRT ended with status 3 while building vision.engine: it printed nothing",
        ),
    ],
)
def test_a_build_that_dies_is_one_sentence_and_leaves_nothing(
    bundle: Path, tensorrt: object, tmp_path: Path, ending: str, words: str
) -> None:
    module = tmp_path / "packages" / "tensorrt.py"
    original = module.read_text(encoding="utf-8")
    # The parent imports it too, and only the child has this module as its main one.
    guard = "import os, sys\nif sys.argv[0].endswith('worker.py'):\n    "
    module.write_text(f"{guard}{ending}\n{original}", encoding="utf-8")
    with pytest.raises(BackendError, match=words):
        build(bundle, backend="tensorrt")
    assert not any((bundle / "engines").iterdir())


def test_an_interrupted_build_ends_its_child_at_once(bundle: Path, tensorrt: object, tmp_path: Path) -> None:
    class Interrupting(Recorder):
        def step(self, name: str, total: int | None = None) -> None:
            if name != "comparing files with their hashes":
                raise KeyboardInterrupt

    module = tmp_path / "packages" / "tensorrt.py"
    sleeping = "\nimport time\nBuilder.build_serialized_network_to_stream = lambda *_: time.sleep(60)\n"
    module.write_text(module.read_text(encoding="utf-8") + sleeping, encoding="utf-8")
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        build(bundle, backend="tensorrt", progress=Interrupting())
    assert time.monotonic() - began < 45
    assert not any((bundle / "engines").iterdir())


def test_an_earlier_engine_stays_when_a_build_fails(
    bundle: Path, tensorrt: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build(bundle, backend="tensorrt")
    before = (folder / "engine.json").read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(bundle, backend="tensorrt")
    assert [path.name for path in (bundle / "engines").iterdir()] == [folder.name]
    assert (folder / "engine.json").read_bytes() == before


ALTERED: dict[str, tuple[str, Callable[[bytearray], bytes]]] = {
    "random weights": ("model.safetensors", lambda b: bytes(b[:-4096]) + random.Random(0).randbytes(4096)),
    "weights of zeros": ("model.safetensors", lambda b: bytes(b[:-4096]) + bytes(4096)),
    "a random tokenizer": ("tokenizer.json", lambda b: random.Random(0).randbytes(len(b))),
    "another graph": ("vision.onnx", lambda b: bytes(b[:-1]) + b"x"),
    "a bit in language.onnx": ("language.onnx", lambda b: bytes([*b[:999], b[999] ^ 4, *b[1000:]])),
    "a bit in vision.onnx": ("vision.onnx", lambda b: bytes([b[0] ^ 1, *b[1:]])),
    "a bit in tokenizer.json": ("tokenizer.json", lambda b: bytes([*b[:-1], b[-1] ^ 2])),
    "a bit in chat_template.jinja": ("chat_template.jinja", lambda b: bytes([*b[:99], b[99] ^ 2, *b[100:]])),
    "a bit in model.safetensors": ("model.safetensors", lambda b: bytes(b[:-1]) + bytes([b[-1] ^ 64])),
}


@pytest.mark.parametrize("name", ALTERED)
def test_no_engines_are_built_of_an_altered_bundle(
    bundle: Path, tensorrt: object, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, altered = ALTERED[name]
    content = (bundle / file).read_bytes()
    (bundle / file).write_bytes(altered(bytearray(content)))
    assert (bundle / file).stat().st_size == len(content)
    # As of files that are too large to be hashed at every load.
    monkeypatch.setattr("edgeprune.bundle._QUICK_FILE", 0)
    with pytest.raises(BundleError, match=rf"{file} (does not match its SHA-256 sum|is no ONNX graph)"):
        build(bundle, backend="tensorrt")
    assert not (bundle / "engines").exists()


# --- Bad input
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"backend": "abacus"},
            "no engines are built for a back end 'abacus': choose one of tensorrt, tensorrt-rtx",
        ),
        ({"workspace": 0}, "`workspace` is 0: expected a whole number of at least 1"),
        ({"plugin": "maybe"}, "`plugin` is 'maybe': expected auto, on or off"),
        ({"targets": ["turing"]}, r"`targets` 'turing' is no GPU architecture: .*sm87 \(Jetson Orin\)"),
        ({"targets": []}, "no `targets`"),
    ],
)
def test_wrong_options(bundle: Path, tensorrt: object, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build(bundle, **{"backend": "tensorrt", **options})


def test_nothing_installed_names_both_extras(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavours, "is_installed", lambda flavour: False)
    with pytest.raises(InputError, match=r"edgeprune\[trt\].*edgeprune\[rtx\]"):
        build(bundle)
    with pytest.raises(MissingDependencyError, match=r"needs the package tensorrt, .*edgeprune\[trt\]"):
        build(bundle, backend="tensorrt")


def test_the_language_graph_gets_its_form_by_onnx(
    bundle: Path, tensorrt: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "find_spec", lambda name: None)
    with pytest.raises(
        MissingDependencyError, match=r"building engines for TensorRT needs the package onnx, .*\[trt\]"
    ):
        build(bundle, backend="tensorrt")


def test_a_bundle_that_cannot_be_written_to(
    bundle: Path, tensorrt: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="cannot be written to, where the engines go"):
        build(bundle, backend="tensorrt")


# --- TensorRT for RTX, for real
# -------------------------------------------------------------------------------


@needs_rtx
@pytest.mark.slow
def test_rtx_builds_the_sample_for_three_gpus_in_one_engine(bundle: Path) -> None:
    progress = Recorder()
    folder = build(
        bundle, backend="tensorrt-rtx", targets=["sm120", "sm86", "sm89"], max_batch=2, progress=progress
    )
    assert folder.name.endswith("-sm86-sm89-sm120")
    sidecar = read_sidecar(folder)
    assert (sidecar.pruning, sidecar.gpu) == ("function body", None)
    assert sidecar.engines["language"].bytes > 1_000_000
    assert (sidecar.engines["language"].peak_memory_bytes or 0) > 1_000_000
    assert "language.engine: optimizing graph" in progress.steps
    assert [path.name for path in (bundle / "engines").iterdir()] == [folder.name]


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "dtype", "weights"),
    [
        ("sample", "fp32", None),
        ("random", "fp16", None),
        ("sample", "bf16", None),
        ("sample", "fp16", "int4"),
        ("random", "fp32", "int8"),
        ("sample", "fp16", "fp8"),
        ("sample", "fp16", "nvfp4"),
        ("random", "bf16", "nvfp4"),
    ],
)
def test_rtx_builds_every_type_for_three_gpus(
    model: str, dtype: DType, weights: WeightKind | None, tmp_path: Path
) -> None:
    from edgeprune import export
    from tests.tiny import save_llava

    source = SAMPLE_MODEL if model == "sample" else save_llava(tmp_path / "model")
    out = export(source, keep=0.3, dtype=dtype, weights=weights, output=tmp_path / "out", verify=False)
    manifest = read_manifest(out)
    assert manifest.opset == {None: 18, "nvfp4": 23}.get(weights, 21)
    assert not (weights == "nvfp4" and manifest.language_forms)  # ONNX Runtime's own form
    targets = ["sm86", "sm89", "sm120"][{"fp8": 1, "nvfp4": 2}.get(weights or "", 0) :]
    folder = build(out, backend="tensorrt-rtx", targets=targets, max_images=2)
    sidecar = read_sidecar(folder)
    assert sidecar.targets == tuple(targets)
    assert sidecar.engines["language"].bytes > 10_000


@needs_rtx
def test_rtx_refuses_what_it_cannot_do(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"cannot build for sm87: it can for sm75.*for a Jetson, run"):
        build(bundle, backend="tensorrt-rtx", targets=["sm87"])
    with pytest.raises(InputError, match="has no timing cache: leave out"):
        build(bundle, **RTX, timing_cache="times")
    monkeypatch.setattr(device, "runtime", lambda what, extra: fakes.FakeCudart(gpus=0))
    with pytest.raises(BackendError, match=r"no NVIDIA GPU answers .*for another machine.*sm75"):
        build(bundle, backend="tensorrt-rtx")
    monkeypatch.setattr(device, "runtime", lambda what, extra: fakes.FakeCudart(target="sm90", name="H100"))
    with pytest.raises(InputError, match="cannot build for sm90"):
        build(bundle, backend="tensorrt-rtx")


@needs_rtx
def test_rtx_says_why_a_graph_cannot_be_read(bundle: Path) -> None:
    import onnx

    path = bundle / "vision.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.node[0].op_type = "Nonsense"
    onnx.save(model, path)
    _accept(bundle, "vision.onnx")
    with pytest.raises(BackendError, match=r"vision\.onnx cannot be read by tensorrt_rtx .*\(Nonsense"):
        build(bundle, **RTX)
    assert not any((bundle / "engines").iterdir())


@needs_rtx
@pytest.mark.slow
def test_ctrl_c_leaves_nothing(bundle: Path) -> None:
    code = f"from edgeprune.runtime.backends.tensorrt import build; build({str(bundle)!r}, **{RTX!r})"
    running = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list((bundle / "engines").glob(".*/vision.engine")):
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=30) != 0
    finally:
        running.kill()
    assert not any((bundle / "engines").iterdir())


def _accept(bundle: Path, name: str) -> None:
    """Makes the manifest agree with a changed file."""
    from edgeprune.bundle import read_manifest, sha256_of, write_manifest

    text = json.loads((bundle / "edgeprune.json").read_text(encoding="utf-8"))
    for entry in text["files"]:
        if entry["path"] == name:
            entry |= {"bytes": (bundle / name).stat().st_size, "sha256": sha256_of(bundle / name)}
    write_manifest(bundle, Manifest.model_validate(text))
    assert isinstance(read_manifest(bundle, "hashes"), Manifest)


def test_a_library_built_in_the_repository_is_looked_for_there() -> None:
    assert (plugins._REPOSITORY / "plugins" / "CMakeLists.txt").is_file()
