"""Which back ends there are, which are available, and what is said where one is not."""

from __future__ import annotations

import builtins
from typing import Any

import onnxruntime
import pytest

from edgeprune.errors import BackendError, InputError, MissingDependencyError
from edgeprune.runtime import backends
from edgeprune.runtime.backends import ort


def reason(name: str) -> str | None:
    return next(entry.reason for entry in backends.available() if entry.name == name)


def test_onnxruntime_is_available_and_chosen_automatically_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    entries = {entry.name: entry for entry in backends.available()}
    assert tuple(entries) == backends.NAMES
    assert entries["onnxruntime"].available
    assert entries["onnxruntime"].version == onnxruntime.__version__
    assert not entries["onnxruntime-cuda"].available
    assert backends.open_backend().name == "onnxruntime"


def test_cuda_needs_another_package_or_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "edgeprune[ort-gpu]" in (reason("onnxruntime-cuda") or "")
    with pytest.raises(BackendError, match=r"runs on the CPU only.*edgeprune\[ort-gpu\]"):
        backends.open_backend("onnxruntime-cuda")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort, "_gpus", lambda: 0)
    assert "no NVIDIA GPU" in (reason("onnxruntime-cuda") or "")
    monkeypatch.setattr(ort, "_gpus", lambda: 1)
    assert reason("onnxruntime-cuda") is None
    assert backends.open_backend().name == "onnxruntime-cuda"


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "find_spec", lambda name: None)
    for name, extra in (("onnxruntime", "ort"), ("onnxruntime-cuda", "ort-gpu")):
        assert f"pip install 'edgeprune[{extra}]'" in (reason(name) or "")
        with pytest.raises(MissingDependencyError, match="is not installed") as caught:
            backends.open_backend(name)
        assert caught.value.extra == extra
    with pytest.raises(BackendError, match=r"no back end can run here .*edgeprune\[ort\]"):
        backends.open_backend("auto")


def test_a_broken_package_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def broken(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError("libfoo.so: cannot open\nshared object file")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    assert "cannot be loaded (libfoo.so: cannot open shared object file)" in (reason("onnxruntime") or "")


def test_an_unknown_back_end_is_refused_with_the_list() -> None:
    with pytest.raises(BackendError, match=r"no back end 'quantum': choose one of auto, tensorrt"):
        backends.open_backend("quantum")


def test_an_unknown_option_is_refused_with_the_list() -> None:
    with pytest.raises(
        InputError, match=r"has no option 'thread': it knows threads, spinning, engines, device"
    ):
        backends.open_backend("onnxruntime", thread=2)


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 1.5}, {"threads": True}, {"device": -1}])
def test_options_have_to_make_sense(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected a whole number"):
        backends.open_backend("onnxruntime", **options)
