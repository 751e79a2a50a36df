"""The files a graph names, read from its bytes: equal to what the package onnx finds, and never too few."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from edgeprune import onnx_files as module
from edgeprune.errors import BundleError
from edgeprune.onnx_files import external_files, read_graph
from tests.manifests import field, graph_pointing_to


def tensor(location: str | None, name: str = "w") -> TensorProto:
    made = helper.make_tensor(name, TensorProto.FLOAT, [2], [1.0, 2.0])
    if location is not None:
        made.ClearField("float_data")
        made.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "8")):
            made.external_data.add(key=key, value=value)
    return made


def sparse(values: str, indices: str) -> Any:
    return helper.make_sparse_tensor(tensor(values, "v"), tensor(indices, "i"), [4])


def graph(**parts: Any) -> Any:
    made = helper.make_graph(parts.pop("nodes", []), "g", [], [], parts.pop("initializer", []))
    for value in parts.pop("sparse", []):
        made.sparse_initializer.append(value)
    assert not parts
    return made


def node(**attributes: Any) -> Any:
    return helper.make_node("Anything", ["a"], ["b"], domain="com.example", **attributes)


def with_function() -> Any:
    function = helper.make_function(
        "com.example", "F", [], [], [node(value=tensor("in a function"))], [helper.make_opsetid("", 18)]
    )
    function.attribute_proto.append(helper.make_attribute("default", tensor("in a default")))
    return helper.make_model(graph(), functions=[function])


def with_training() -> Any:
    model = helper.make_model(graph())
    info = model.training_info.add()
    info.initialization.CopyFrom(graph(initializer=[tensor("to begin with")]))
    info.algorithm.CopyFrom(graph(nodes=[node(value=tensor("to train with"))]))
    return model


PLACES: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "nowhere": (lambda: helper.make_model(graph(initializer=[tensor(None)])), set()),
    "initializers": (
        lambda: helper.make_model(graph(initializer=[tensor("a"), tensor("b/c", "x"), tensor("a", "y")])),
        {"a", "b/c"},
    ),
    "sparse initializers": (lambda: helper.make_model(graph(sparse=[sparse("v", "i")])), {"v", "i"}),
    "attributes": (
        lambda: helper.make_model(
            graph(nodes=[node(one=tensor("t"), many=[tensor("u"), tensor("v")], s=sparse("w", "x"))])
        ),
        {*"tuvwx"},
    ),
    "graphs within graphs": (
        lambda: helper.make_model(
            graph(
                nodes=[
                    node(
                        then_branch=graph(nodes=[node(inner=graph(initializer=[tensor("deep")]))]),
                        several=[graph(initializer=[tensor("one")]), graph(nodes=[node(t=tensor("two"))])],
                    )
                ]
            )
        ),
        {"deep", "one", "two"},
    ),
    "functions": (with_function, {"in a function", "in a default"}),
    "training": (with_training, {"to begin with", "to train with"}),
}


def every_tensor(message: Any) -> list[TensorProto]:
    """Every tensor anywhere in a message, by protobuf's own reflection."""
    found = [message] if isinstance(message, TensorProto) else []
    for descriptor, value in message.ListFields():
        if descriptor.type == descriptor.TYPE_MESSAGE:
            repeated = not hasattr(value, "ListFields")
            for part in value if repeated else [value]:
                found += every_tensor(part)
    return found


def by_onnx(content: bytes) -> set[str]:
    """What `external_files` is to find, by onnx's own parser."""
    return {
        entry.value
        for found in every_tensor(onnx.load_model_from_string(content))
        for entry in found.external_data
        if entry.key == "location"
    }


@pytest.mark.parametrize("name", PLACES)
def test_finds_what_onnx_finds_wherever_a_tensor_can_stand(name: str, tmp_path: Path) -> None:
    make, expected = PLACES[name]
    content = make().SerializeToString()
    (tmp_path / "g.onnx").write_bytes(content)
    assert external_files(tmp_path / "g.onnx") == by_onnx(content) == expected


def test_the_handmade_graph_is_one(tmp_path: Path) -> None:
    assert by_onnx(graph_pointing_to("x")) == {"x"}


def test_altered_graphs_are_refused_or_read_as_onnx_reads_them(tmp_path: Path) -> None:
    """Never fewer files than onnx's parser finds: a runtime would open one that nobody listed."""
    rng = random.Random(0)
    contents = [make().SerializeToString() for make, _ in PLACES.values()]
    path, read, refused = tmp_path / "g.onnx", 0, 0
    for _ in range(3000):
        content = bytearray(rng.choice(contents))
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(content))
            content[place] = rng.choice([rng.randrange(256), content[place] ^ 1 << rng.randrange(8)])
        path.write_bytes(content)
        try:
            found = external_files(path)
        except BundleError:
            refused += 1
            continue
        read += 1
        try:
            theirs = by_onnx(bytes(content))
        except Exception:  # onnx's parser refuses more: text that is not UTF-8, for one
            continue
        assert theirs <= found, bytes(content)
    assert read > 500
    assert refused > 500


REFUSED: dict[str, tuple[bytes, str]] = {
    "text": (b"no graph", "field of type 6"),
    "a length beyond the end": (bytes([7 << 3 | 2, 100]), "cut short"),
    "a number without end": (b"\xff" * 20, "cut short"),
    "a number cut short": (bytes([8, 0x80]), "cut short"),
    "field 0": (bytes([0, 0]), "number 0"),
    "a field beyond protobuf's numbers": (b"\xba\x80\x80\x80\x80\x01\x00", "has the number"),
    "ONNX Runtime's own format": (b"\x08\x00\x00\x00ORTM", "own format"),
    "a name that is not UTF-8": (
        field(7, field(5, field(13, field(1, b"location") + field(2, b"\xff")))),
        "not UTF-8",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_graph_is_refused(name: str, tmp_path: Path) -> None:
    content, message = REFUSED[name]
    (tmp_path / "g.onnx").write_bytes(content)
    with pytest.raises(
        BundleError, match=rf"g\.onnx is no ONNX graph \(.*{message}.*\): copy the bundle again"
    ):
        external_files(tmp_path / "g.onnx")


def test_endless_nesting_is_refused(tmp_path: Path) -> None:
    content = b""
    for _ in range(300):  # attribute of a node of a graph of an attribute
        for number in (6, 5, 1):
            size = len(content)
            length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
            content = bytes([number << 3 | 2]) + length + content
    (tmp_path / "g.onnx").write_bytes(field_of_any_size(7, content))
    with pytest.raises(BundleError, match="nested too deeply"):
        external_files(tmp_path / "g.onnx")


def field_of_any_size(number: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def test_a_graph_that_holds_weights_itself_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 10)
    (tmp_path / "g.onnx").write_bytes(b"\0" * 11)
    with pytest.raises(BundleError, match="weights belong into other files"):
        external_files(tmp_path / "g.onnx")


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "g.onnx")
    with pytest.raises(BundleError, match="is a pipe: expected a regular file"):
        external_files(tmp_path / "g.onnx")


def test_metadata_equals_onnx_s(tmp_path: Path) -> None:
    model = helper.make_model(graph())
    helper.set_model_props(model, {"edgeprune.plan": "{}", "empty": "", "größe": "größer"})
    onnx.save(model, tmp_path / "g.onnx")
    assert read_graph(tmp_path / "g.onnx").metadata == {
        entry.key: entry.value for entry in model.metadata_props
    }
    onnx.save(helper.make_model(graph()), tmp_path / "none.onnx")
    assert read_graph(tmp_path / "none.onnx").metadata == {}
