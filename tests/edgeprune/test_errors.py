"""Messages of errors can be printed, whatever names are in them."""

from __future__ import annotations

import pickle

import pytest

from edgeprune.errors import BundleError, EdgepruneError, InputError, printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, ü, 你好, 🙂", "plain, ü, 你好, 🙂"),
        ("two\r\n\tlines", "two\r\n\tlines"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\ud800\u202eb\0", r"a\ud800\u202eb\x00"),
    ],
)
@pytest.mark.parametrize("kind", [EdgepruneError, InputError, BundleError])
def test_what_cannot_be_printed_is_escaped(text: str, expected: str, kind: type[EdgepruneError]) -> None:
    assert printable(text) == expected
    error = kind(f"the file {text}: use another")
    assert str(error) == f"the file {expected}: use another"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
