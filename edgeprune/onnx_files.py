"""What an ONNX graph says of itself: the files it keeps its tensors in, and its metadata, without onnx.

A bundle's graphs are protobuf messages that name other files ("external data"). A runtime opens whatever
they name, so a bundle is whole only if every such file is in its manifest's list. Only what can hold a
tensor is looked into; all else is skipped by its length. What protobuf would merge or override is taken all
together, so nothing that a runtime opens is missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeprune.errors import BundleError, InputError
from edgeprune.fields import shown
from edgeprune.files import open_regular

# Weights lie outside, so a graph is small; protobuf itself ends at 2 GB.
_MOST_BYTES = 256 << 20
# Protobuf's own limit on messages within messages.
_DEEPEST = 100

# ONNX Runtime reads a file with this mark as something else than protobuf.
_ORT_FORMAT = b"ORTM"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Fields of onnx.proto that lead to tensors: message -> field number -> the message it holds.
_FIELDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
_KEY, _VALUE = 1, 2
_METADATA = 14  # of a model: entries of key and value


@dataclass(frozen=True)
class GraphFile:
    """What a graph says of itself.

    Attributes:
        external_files: the files that its tensors lie in, as it names them.
        metadata: its metadata_props: texts by name, the last of one name.
    """

    external_files: frozenset[str]
    metadata: Mapping[str, str]


def read_graph(path: Path) -> GraphFile:
    """Reads a graph's file once.

    Raises:
        BundleError: the file is no ONNX graph, or larger than any that edgeprune writes.
        OSError: it cannot be read.
    """
    try:
        with open_regular(path, "the graph") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES >> 20} MB, and weights belong into other files")
        if content[4:8] == _ORT_FORMAT:
            raise ValueError("it is in ONNX Runtime's own format")
        model = memoryview(content)
        return GraphFile(frozenset(_locations(model, "Model", 0)), dict(_metadata(model)))
    except (ValueError, InputError) as error:
        raise BundleError(
            f"{path} is no ONNX graph ({error}): copy the bundle again, or export it again"
        ) from error


def external_files(path: Path) -> frozenset[str]:
    """See `read_graph`, of which this is one part."""
    return read_graph(path).external_files


def _metadata(model: memoryview) -> Iterator[tuple[str, str]]:
    for number, content in _fields(model):
        if number == _METADATA and content is not None:
            entry = {n: bytes(c).decode("utf-8", "replace") for n, c in _fields(content) if c is not None}
            yield entry.get(_KEY, ""), entry.get(_VALUE, "")


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("its messages are nested too deeply")
    inner = _FIELDS[kind]
    for number, content in _fields(message):
        child = inner.get(number)
        if child is None or content is None:
            continue
        if child == "Entry":
            yield from _location(content)
        else:
            yield from _locations(content, child, depth + 1)


def _location(entry: memoryview) -> Iterator[str]:
    """The values of an entry of `external_data`, where its key is `location`."""
    fields = [(number, bytes(content)) for number, content in _fields(entry) if content is not None]
    if (_KEY, b"location") not in fields:
        return
    # A value that is left out is an empty text.
    for content in [content for number, content in fields if number == _VALUE] or [b""]:
        try:
            yield content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"it names the file {shown(content)}, which is not UTF-8") from error


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | None]]:
    """Field numbers of a message; with their bytes, where they have a length of their own."""
    place, end = 0, len(message)
    while place < end:
        tag, place = _varint(message, place)
        number, wire = tag >> 3, tag & 7
        content: memoryview | None = None
        if wire == _BYTES:
            length, place = _varint(message, place)
            content = message[place : place + length]
            place += length
        elif wire == _VARINT:
            _, place = _varint(message, place)
        elif wire == _FIXED64:
            place += 8
        elif wire == _FIXED32:
            place += 4
        else:
            raise ValueError(f"a field of type {wire} is none of ONNX")
        if place > end:
            raise ValueError("it is cut short")
        # Parsers differ in what they make of others: they cut a longer number off, or refuse it.
        if not 0 < number < 1 << 29:
            raise ValueError(f"a field has the number {number}")
        yield number, content


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """The number at `place`, and the place behind it."""
    value = shift = 0
    while True:
        if place >= len(message) or shift > 63:
            raise ValueError("it is cut short")
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
