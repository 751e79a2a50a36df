"""The bundle's tokenizer, whatever is in its file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgeprune.errors import BundleError, InputError
from edgeprune.files import read_regular

# The largest published ones have some 35 MB.
MAX_TOKENIZER_BYTES = 1 << 27
# How many times as long a text may become by what a tokenizer's file replaces in it. Published ones replace
# a character by one or a few; ten replacements by sixteen in a row make a terabyte of one character.
MAX_GROWTH = 256


class BundleTokenizer:
    """Reads `tokenizer.json`; text to ids and back, without truncation or padding.

    The file is data, but its regular expressions can go wild. They end in an error once they have tried for
    long (the library then writes lines of its own to stderr), but how long one call takes cannot be bounded
    from here. How far it makes text grow can.

    Args:
        path: the file. Its folders' names may be any bytes.

    Raises:
        BundleError: it cannot be read, is too large, or multiplies text.
    """

    def __init__(self, path: Path) -> None:
        self._name = f"the tokenizer {path}"
        with self._contained("cannot be read"):
            content = read_regular(path, "the tokenizer", MAX_TOKENIZER_BYTES)
            _check_growth(json.loads(content), self._name)
            # Not by its path, which the library takes as UTF-8 alone.
            self._tokenizer = Tokenizer.from_buffer(content)
        # Either may be left over from training; prompts are never cut or padded here.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str, *, special_tokens: bool) -> list[int]:
        """Token ids; `special_tokens` adds those that the tokenizer puts around a text.

        Raises:
            InputError: the text is not Unicode; see `check_text`.
            BundleError: the tokenizer fails on it.
        """
        check_text(text, "the prompt")
        with self._contained("cannot take this text"):
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens and without any clean-up of spaces.

        Raises:
            BundleError: the tokenizer fails on them.
        """
        with self._contained("cannot decode these tokens"):
            text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    @contextmanager
    def _contained(self, problem: str) -> Iterator[None]:
        try:
            yield
        except BundleError:
            raise
        except BaseException as error:
            # The library raises plain Exception; a panic in it is a BaseException of no module to import.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise BundleError(f"{self._name} {problem} ({error}): copy the bundle again") from error


def check_text(text: str, what: str) -> None:
    """Refuses a string that holds half a character: a surrogate, as bytes that are no UTF-8 become in Python.

    Raises:
        InputError: names `what` and the place.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} is not Unicode text: character {error.start} is {text[error.start]!a}, half of one; "
            "expected text that can be written as UTF-8; save or type it as such"
        ) from error


def _check_growth(tokenizer: Any, name: str) -> None:
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        growth = _growth(tokenizer.get(part)) if isinstance(tokenizer, dict) else 1.0
        if growth > MAX_GROWTH:
            raise BundleError(
                f"{name} has a {part} that makes text up to {growth:g} times as long: expected at most "
                f"{MAX_GROWTH} times; do not use this bundle"
            )


def _growth(part: Any) -> float:
    """How many times as long a text becomes, at most, by the replacements in a part and its parts."""
    if not isinstance(part, dict):
        return 1.0
    growth = 1.0
    for members in ("normalizers", "pretokenizers", "decoders"):
        listed = part.get(members)
        for member in listed if isinstance(listed, list) else ():
            growth *= _growth(member)
    content, pattern = part.get("content"), part.get("pattern")
    if isinstance(content, str) and isinstance(pattern, dict):
        replaced = pattern.get("String")
        # A regular expression may match between any two characters.
        growth *= max(1.0, len(content) / len(replaced)) if replaced else 1.0 + len(content)
    return growth
