"""Tokenizers that fail, panic or multiply text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from edgeprune.errors import BundleError, InputError
from edgeprune.runtime import tokenizing
from edgeprune.runtime.tokenizing import BundleTokenizer, check_text


def written(path: Path, **parts: Any) -> Path:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.save(str(path / "tokenizer.json"))
    return path / "tokenizer.json"


def test_a_panic_is_the_bundles_fault(tmp_path: Path) -> None:
    """The library's own error is no Exception: "retry-limit-in-match over" of a regular expression."""
    wild = pre_tokenizers.Split(__import__("tokenizers").Regex(r"(a|a|aa)+$"), "isolated")
    tokenizer = BundleTokenizer(written(tmp_path, pre_tokenizer=wild))
    with pytest.raises(
        BundleError, match=r"the tokenizer .*json cannot take this text .*: copy the bundle again"
    ):
        tokenizer.encode("a" * 60 + "b", special_tokens=True)
    assert tokenizer.encode("a", special_tokens=True) == [1]


def test_other_exceptions_that_are_none_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = BundleTokenizer(written(tmp_path))

    class _Interrupted:
        def decode(self, *_: Any, **__: Any) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer, "_tokenizer", _Interrupted())
    with pytest.raises(KeyboardInterrupt):
        tokenizer.decode([1])


@pytest.mark.parametrize("ids", [[-1], [2**40], ["a"]])
def test_ids_that_are_none(tmp_path: Path, ids: list[Any]) -> None:
    with pytest.raises(BundleError, match="cannot decode these tokens"):
        BundleTokenizer(written(tmp_path)).decode(ids)


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
def test_text_that_is_multiplied(tmp_path: Path, part: str) -> None:
    module = normalizers if part == "normalizer" else decoders
    tenfold = module.Sequence([module.Replace("a", "a" * 16)] * 10)
    path = written(tmp_path, **{part: tenfold})
    with pytest.raises(
        BundleError, match=rf"has a {part} that makes text up to 1\.09951e\+12 times as long: exp"
    ):
        BundleTokenizer(path)
    path = written(
        tmp_path, **{part: module.Sequence([module.Replace("a", "a" * 16), module.Replace("b", "")])}
    )
    BundleTokenizer(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b"{}",
        b"[" * 100000,
        b'{"normalizer": {"normalizers": 3, "pattern": 1}}',
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"the tokenizer .* cannot be read .*: copy the bundle again"):
        BundleTokenizer(tmp_path / "tokenizer.json")


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)
    monkeypatch.setattr(tokenizing, "MAX_TOKENIZER_BYTES", path.stat().st_size - 1)
    with pytest.raises(BundleError, match=r"the tokenizer .*json has .*: expected at most"):
        BundleTokenizer(path)
    with pytest.raises(BundleError, match="is a folder"):
        BundleTokenizer(tmp_path)


def test_texts() -> None:
    check_text("é 🙂 \0", "it")
    with pytest.raises(
        InputError, match=r"it is not Unicode text: character 1 is '\\udce9', half of one; expected"
    ):
        check_text(b"a\xe9".decode("utf-8", "surrogateescape"), "it")
    with pytest.raises(InputError, match="it is not Unicode text"):
        check_text(json.loads('"\\ud83d"'), "it")
