"""Writing a bundle's weights: files that stay as they are, and one for all that changes.

A weight that is stored as it is wanted stays where it is: its file is brought into the bundle byte for byte,
as a copy, in the end perhaps a hard link, and the graph points into it. What is wanted in another form, and
the rest of a file that would be mostly idle, goes into one new file. One weight is in memory at a time.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import torch

from edgeprune.bundle import copy_with_sha256, sha256_of
from edgeprune.errors import InputError
from edgeprune.exporter.precision.blocks import (
    BITS,
    VALUE_DTYPES,
    BlockForm,
    Blocks,
    packed,
    quantise,
    unpacked,
)
from edgeprune.exporter.precision.stored import QuantisedLayers
from edgeprune.exporter.weights import SAFETENSORS_NAMES, StoredTensor, read_header, read_tensor
from edgeprune.files import link
from edgeprune.log import note
from edgeprune.manifest import FileEntry

CONVERTED = "converted.safetensors"
_NAMES = {
    **SAFETENSORS_NAMES,
    torch.uint8: "U8",
    torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3",
}
_ROWS_AT_ONCE = 1 << 24  # values of a weight that are converted at once

Form: TypeAlias = "torch.dtype | BlockForm"
Quantise: TypeAlias = "Callable[[str, torch.Tensor, BlockForm], Blocks]"
"""Brings the weight [N, K] of a name into blocks."""


@dataclass(frozen=True)
class QuantisedTensor:
    """A linear layer's weight in blocks, where it lies; see `Blocks`.

    Attributes:
        form: its kind and block.
        shape: K, N.
        values: bytes, two 4 bit values in each.
        scale: [K / block, N].
        correction, order: of quantised checkpoints alone.
        tensor_scale: float32 [], of nvfp4 alone.
    """

    form: BlockForm
    shape: tuple[int, int]
    values: StoredTensor
    scale: StoredTensor
    correction: StoredTensor | None = None
    order: StoredTensor | None = None
    tensor_scale: StoredTensor | None = None

    def blocks(self, folder: Path) -> Blocks:
        """The values and scales, read."""
        values = unpacked(read_tensor(folder, self.values).reshape(-1), self.form.kind).reshape(self.shape)
        more = (
            None if part is None else read_tensor(folder, part)
            for part in (self.correction, self.order, self.tensor_scale)
        )
        return Blocks(values, read_tensor(folder, self.scale), *more)


Placed: TypeAlias = "StoredTensor | QuantisedTensor"


class Placing:
    """Brings tensors of a checkpoint into a bundle.

    Args:
        wanted: where each is stored.
        forms: what each becomes.
        source, target: the model and the bundle.
        scale: the type of the scales of blocks.
        layers: the checkpoint's quantised layers, which are none of `wanted`.
    """

    def __init__(
        self,
        wanted: Mapping[str, StoredTensor],
        forms: Mapping[str, Form],
        source: Path,
        target: Path,
        scale: torch.dtype,
        layers: QuantisedLayers | None = None,
    ) -> None:
        self._wanted, self._forms = wanted, forms
        self._source, self._target, self._scale = source, target, scale
        gained: dict[str, int] = {}
        for tensor, form in {(tensor, forms[name]) for name, tensor in wanted.items()}:
            stays = tensor.length if form == tensor.dtype else -tensor.length
            gained[tensor.file] = gained.get(tensor.file, 0) + stays
        self._whole = tuple(sorted(file for file, gain in gained.items() if gain >= 0))
        self._anew = {
            (tensor, forms[name]): name
            for name, tensor in wanted.items()
            if tensor.file not in self._whole or forms[name] != tensor.dtype
        }
        self._layers = layers
        # Of layers whose inputs are in one order, the first one's is stored.
        self._orders: dict[str, str] = {}
        for name, layer in layers.forms.items() if layers else ():
            if layer.order is not None:
                self._orders.setdefault(layer.order, name)

    @property
    def bytes(self) -> int:
        """What will be written, but for one header."""
        whole = sum((self._source / file).stat().st_size for file in self._whole)
        return whole + sum(piece.bytes for job in self._jobs(self._nearest) for piece in job.pieces)

    def copy(self, progress: Callable[[int], None]) -> list[FileEntry]:
        """Copies the files that stay as they are; `progress` is told the bytes written.

        Returns:
            Those files with their sums.
        """
        return [copy_with_sha256(self._source / file, self._target / file, progress) for file in self._whole]

    def check_links(self) -> None:
        """Tells whether `link` will work, before there is a copy.

        Raises:
            InputError: the system links a file of the model not there.
        """
        if not self._whole:
            note("no file of the model stays as it is, so none is linked: all weights are written anew")
        for file in self._whole:
            link(self._source / file, self._target / file)
            (self._target / file).unlink()

    def link(self, entries: Iterable[FileEntry], progress: Callable[[int], None]) -> None:
        """Puts hard links in the place of the copies.

        Args:
            entries: what `copy` returned; a file of the model that is not the same any more is refused.
            progress: told the bytes that were compared for that.

        Raises:
            InputError: as `check_links`.
        """
        for entry in entries:
            if sha256_of(self._source / entry.path, progress) != entry.sha256:
                raise InputError(
                    f"{self._source / entry.path} was altered while it was exported: expected it to stay as "
                    "it was; export again"
                )
            (self._target / entry.path).unlink()
            link(self._source / entry.path, self._target / entry.path)

    def convert(
        self, progress: Callable[[int], None], into_blocks: Quantise | None = None
    ) -> tuple[dict[str, Placed], list[FileEntry]]:
        """Writes what changes; `progress` is told the bytes written.

        Args:
            progress: see above.
            into_blocks: how weights come into blocks, asked for one after the other in the model's order;
                None rounds them to the nearest.

        Returns:
            Where every tensor now lies, and the file written, if any, with its sum.

        Raises:
            InputError: a weight is stored in no floating type, or is beyond the range of the one it becomes.
        """
        for tensor, _ in self._anew:
            if tensor.dtype not in SAFETENSORS_NAMES:
                raise InputError(
                    f"{tensor.file} stores {tensor.key} in a type that is not fp32, fp16 or bf16: "
                    "expected that of all weights but quantised linear layers; export the original model"
                )
        jobs = self._jobs(into_blocks or self._nearest)
        if not jobs:
            return dict(self._wanted), []
        name = CONVERTED
        while name in self._whole:  # a checkpoint's own file may be called so
            name = f"_{name}"
        written, entry = _write(jobs, self._target / name, progress)
        forms, stored = self._forms, iter(written)
        moved = {key: _placed(*key, next(stored)) for key in self._anew}
        placed: dict[str, Placed] = {
            name: moved.get((tensor, forms[name]), tensor) for name, tensor in self._wanted.items()
        }
        orders: dict[str, StoredTensor] = {}
        for name, layer in self._layers.forms.items() if self._layers else ():
            values, scale, *more = next(stored)
            correction = more.pop(0) if layer.corrected else None
            if more and layer.order is not None:
                orders[layer.order] = more[0]
            order = None if layer.order is None else orders[layer.order]
            placed[name] = QuantisedTensor(layer.form, layer.shape, values, scale, correction, order)
        return placed, [entry]

    def _nearest(self, _: str, weight: torch.Tensor, form: BlockForm) -> Blocks:
        return quantise(weight, form, self._scale)

    def _jobs(self, into_blocks: Quantise) -> list[_Job]:
        """What is written, in order."""
        jobs = [
            _Job(
                tensor.key,
                _pieces(tensor, form, self._scale),
                partial(_contents, tensor, form, name, self._source, self._scale, into_blocks),
            )
            for (tensor, form), name in self._anew.items()
        ]
        for name, layer in self._layers.forms.items() if self._layers else ():
            k, n = layer.shape
            scale = _Piece(self._scale, (k // layer.form.block, n))
            pieces = [_Piece(torch.uint8, (math.ceil(k * n * BITS[layer.form.kind] / 8),)), scale]
            pieces += [scale] if layer.corrected else []
            pieces += [_Piece(torch.int64, (k,))] if self._stores_order(name) else []
            jobs.append(_Job(name, pieces, partial(self._layer_contents, name)))
        return jobs

    def _stores_order(self, name: str) -> bool:
        return name in self._orders.values()

    def _layer_contents(self, name: str) -> Iterator[memoryview]:
        assert self._layers is not None
        blocks = self._layers.blocks(name, self._scale)
        yield _bytes(packed(blocks.values, self._layers.forms[name].form.kind))
        yield _bytes(blocks.scale)
        if blocks.correction is not None:
            yield _bytes(blocks.correction)
        if blocks.order is not None and self._stores_order(name):
            yield _bytes(blocks.order)


@dataclass(frozen=True)
class _Piece:
    """A tensor to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Job:
    """Tensors to be written one behind the other.

    Attributes:
        key: what their keys end with.
        pieces: what they are.
        contents: gives their bytes.
    """

    key: str
    pieces: list[_Piece]
    contents: Callable[[], Iterator[memoryview]]


def _pieces(tensor: StoredTensor, form: Form, scale: torch.dtype) -> list[_Piece]:
    if isinstance(form, torch.dtype):
        return [_Piece(form, tensor.shape)]
    outputs, inputs = tensor.shape
    values = form.bytes_of((outputs, inputs), scale)[0]
    pieces = [
        _Piece(torch.uint8, (values,)),
        _Piece(form.scale_dtype(scale), (inputs // form.block, outputs)),
    ]
    return [*pieces, _Piece(torch.float32, ())] if form.kind == "nvfp4" else pieces


def _write(
    jobs: Sequence[_Job], path: Path, progress: Callable[[int], None]
) -> tuple[list[list[StoredTensor]], FileEntry]:
    """Writes one safetensors file; returns each job's tensors."""
    header: dict[str, object] = {}
    end = 0
    for number, job in enumerate(jobs):
        for part, piece in enumerate(job.pieces):
            begin, end = end, end + piece.bytes
            # Keys of different files may coincide; the number keeps them apart.
            header[f"{number}.{part}.{job.key}"] = {
                "dtype": _NAMES[piece.dtype],
                "shape": list(piece.shape),
                "data_offsets": [begin, end],
            }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with _HashedFile(path, progress) as writer:
        writer.write(struct.pack("<Q", len(text)) + text, silent=True)
        for job in jobs:
            for content in job.contents():
                writer.write(content)
        entry = writer.entry()
    stored = iter(read_header(path).values())
    return [[next(stored) for _ in job.pieces] for job in jobs], entry


def _placed(tensor: StoredTensor, form: Form, written: Sequence[StoredTensor]) -> Placed:
    if isinstance(form, torch.dtype):
        return written[0]
    outputs, inputs = tensor.shape
    values, scale, *whole = written
    return QuantisedTensor(form, (inputs, outputs), values, scale, tensor_scale=whole[0] if whole else None)


def _contents(
    tensor: StoredTensor,
    form: Form,
    name: str,
    source: Path,
    scale: torch.dtype,
    into_blocks: Quantise,
) -> Iterator[memoryview]:
    """The bytes of a tensor in its form, piece by piece."""
    if isinstance(form, torch.dtype):
        flat = read_tensor(source, tensor).reshape(-1)
        for part in flat.split(_ROWS_AT_ONCE) if len(flat) else ():
            converted = part.to(form)
            if bool(converted.isinf().any()) and not bool(part.isinf().any()):
                raise InputError(
                    f"{tensor.file} stores {tensor.key} with values up to {float(part.abs().max()):.3g}, "
                    f"beyond {SAFETENSORS_NAMES[form].lower()}: choose a wider type for weights"
                )
            yield _bytes(converted)
        return
    blocks = into_blocks(name, read_tensor(source, tensor), form)
    assert (blocks.values.dtype, blocks.scale.dtype) == (VALUE_DTYPES[form.kind], form.scale_dtype(scale))
    yield _bytes(packed(blocks.values, form.kind))
    yield _bytes(blocks.scale)
    if blocks.tensor_scale is not None:
        yield _bytes(blocks.tensor_scale)


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


class _HashedFile:
    """A file that is hashed while it is written, both behind the back of whoever makes its content."""

    def __init__(self, path: Path, progress: Callable[[int], None]) -> None:
        self._path = path
        self._progress = progress
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self._size = 0
        self._thread = ThreadPoolExecutor(1)
        self._busy: Future[None] | None = None

    def write(self, content: bytes | memoryview, silent: bool = False) -> None:
        """Takes the content over; it must not change afterwards."""
        self._wait()
        if not silent:
            self._progress(len(content))
        self._busy = self._thread.submit(self._put, content)

    def _put(self, content: bytes | memoryview) -> None:
        self._file.write(content)
        self._digest.update(content)
        self._size += len(content)

    def _wait(self) -> None:
        if self._busy is not None:
            self._busy.result()

    def entry(self) -> FileEntry:
        """What was written until now."""
        self._wait()
        self._file.flush()
        return FileEntry(path=self._path.name, bytes=self._size, sha256=self._digest.hexdigest())

    def __enter__(self) -> _HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        self._file.close()
