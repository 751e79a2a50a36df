"""DebiasedTokenPrune's C++ reference and kernels on NumPy arrays, through the C interface of check.h.

`build` makes the library with CMake, for the CPU (any C++ compiler) or with the kernels for the GPU (nvcc);
`CheckLibrary` calls it. For tests and benchmarks; nothing of edgeprune runs on it.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import BackendError, InputError

SOURCES = Path(__file__).resolve().parents[1]
Array = NDArray[Any]


class _Sizes(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "sequence", "visual", "kept", "width")),
        ("element_bytes", ctypes.c_int32),
    )


_BUFFERS = ("hidden_states", "score", "visual_index", "weight", "pruned_states", "kept_index")


class _Buffers(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in _BUFFERS)


def missing_tools(cuda: bool = False) -> list[str]:
    """Which of the programs that `build` needs are not on the PATH."""
    return [tool for tool in ("cmake", "c++", *(("nvcc",) if cuda else ())) if shutil.which(tool) is None]


def build(folder: Path, cuda: bool = False, options: tuple[str, ...] = ()) -> Path:
    """Builds the library in a folder, or brings it up to date there.

    Args:
        folder: CMake's build folder; one for each of the two kinds.
        cuda: with the kernels for the GPU instead of those on the CPU.
        options: further options of `cmake`, for example `-DCMAKE_CUDA_ARCHITECTURES=native`.

    Returns:
        The library's path.

    Raises:
        BackendError: a program is missing, or the build failed; the message ends with what it printed.
    """
    if missing := missing_tools(cuda):
        raise BackendError(f"building the check library needs {' and '.join(missing)}: install them")
    target = "edgeprune_check_cuda" if cuda else "edgeprune_check"
    configure = [
        "cmake",
        "-S",
        str(SOURCES),
        "-B",
        str(folder),
        f"-DEDGEPRUNE_CUDA={'ON' if cuda else 'OFF'}",
    ]
    for command in ([*configure, *options], ["cmake", "--build", str(folder), "--target", target]):
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode != 0:
            raise BackendError(
                f"{' '.join(command)} failed with {done.returncode}; it printed:\n{done.stdout[-4000:]}"
            )
    return folder / "check" / f"lib{target}.so"


class CheckLibrary:
    """A library that `build` made.

    Raises:
        BackendError: the file cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise BackendError(f"{path} cannot be loaded ({error}); build it again") from error
        for name in ("reference", "kernels"):
            function = getattr(self._library, f"edgeprune_check_{name}")
            function.argtypes = (ctypes.POINTER(_Sizes), ctypes.POINTER(_Buffers))
            function.restype = ctypes.c_char_p

    def devices(self) -> int:
        """How many devices the kernels can run on: 1 on the CPU, 0 without a usable GPU."""
        return int(self._library.edgeprune_check_devices())

    def thread_order(self, order: int) -> None:
        """The order in which the CPU runs a block's threads: 0 theirs, 1 backwards, else shuffled by it."""
        self._library.edgeprune_check_thread_order(ctypes.c_uint32(order))

    def reference(self, inputs: dict[str, Array]) -> tuple[Array, Array]:
        """The C++ reference.

        Args:
            inputs: the operator's inputs by name: hidden_states [B, S, D] of 2 or 4 byte elements, score
                float32 [B, S], visual_index int64 [B, V], weight float32 [B, V] and kept_slots int64
                [B or 1, K].

        Returns:
            pruned_states [B, S', D] of the type of hidden_states, and kept_index int64 [B, S'].

        Raises:
            InputError: an array has another dtype or shape; the sizes do not fit together.
            KeyError: an array is missing.
        """
        return self._run("reference", inputs)

    def kernels(self, inputs: dict[str, Array]) -> tuple[Array, Array]:
        """The kernels, on the CPU or the GPU as the library was built; as `reference`.

        Raises:
            BackendError: the library is for the GPU and there is none that CUDA can use.
            InputError: as `reference`; also where CUDA fails, with its words.
        """
        if self.devices() == 0:
            raise BackendError(
                "the kernels need an NVIDIA GPU and CUDA found none: run them on a machine with one, or "
                "build the library without cuda to run them on the CPU"
            )
        return self._run("kernels", inputs)

    def _run(self, function: str, inputs: dict[str, Array]) -> tuple[Array, Array]:
        batch, sequence, width = inputs["hidden_states"].shape
        visual = inputs["visual_index"].shape[1]
        rows, kept = inputs["kept_slots"].shape
        expected: dict[str, tuple[Any, tuple[int, ...]]] = {
            "hidden_states": (inputs["hidden_states"].dtype, (batch, sequence, width)),
            "score": (np.float32, (batch, sequence)),
            "visual_index": (np.int64, (batch, visual)),
            "weight": (np.float32, (batch, visual)),
            "kept_slots": (np.int64, (rows if rows == batch else 1, kept)),
        }
        arrays: dict[str, Array] = {}
        for name, (dtype, shape) in expected.items():
            array = inputs[name]
            if array.dtype != dtype or array.shape != shape:
                raise InputError(
                    f"{name} is {array.dtype} {list(array.shape)}: expected {np.dtype(dtype)} {list(shape)}; "
                    "convert it, or pass it with its axes in this order"
                )
            arrays[name] = np.ascontiguousarray(array)
        element = arrays["hidden_states"].itemsize
        sizes = _Sizes(batch, sequence, visual, kept, width, element)
        length = max(0, sequence - visual + kept)
        arrays["pruned_states"] = np.empty((batch, length, width), arrays["hidden_states"].dtype)
        arrays["kept_index"] = np.full((batch, length), -1, np.int64)
        buffers = _Buffers(*(arrays[name].ctypes.data for name in _BUFFERS))
        problem = getattr(self._library, f"edgeprune_check_{function}")(
            ctypes.byref(sizes), ctypes.byref(buffers)
        )
        if problem is not None:
            raise InputError(f"the {function} could not run: {problem.decode()}")
        return arrays["pruned_states"], arrays["kept_index"]
