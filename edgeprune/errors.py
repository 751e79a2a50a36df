"""Errors: what was found, what was expected, what to do.

`EdgepruneError` and its children are the user's to fix: the command line prints their message alone.
Anything else that escapes is a bug and keeps its traceback.

A message names parameters as Python callers know them, in backticks: `max_new_tokens`, or with a value
`keep=0.3`. The command line puts its own options in their place (`edgeprune.cli.words`).
"""

from __future__ import annotations


def printable(text: str, keep: str = "\n\r\t") -> str:
    """A text with an escape in the place of every character that cannot be printed, but for those to keep.

    Names in foreign files may hold what moves a terminal's cursor, or half a character.
    """
    return "".join(
        char
        if char.isprintable() or char in keep
        else char.encode("unicode_escape", "surrogatepass").decode("ascii")
        for char in text
    )


class EdgepruneError(Exception):
    """Something the user can put right. The message is complete: found, expected, what to do.

    Args:
        message: what is in it of foreign names and texts is made `printable`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class InputError(EdgepruneError):
    """A value, a file or an image that was handed in cannot be used."""


class UnsupportedModelError(EdgepruneError):
    """The model's architecture, or one feature of it, is not supported."""


class BundleError(EdgepruneError):
    """A bundle is incomplete, altered, too new, or not a bundle."""


class OutputError(EdgepruneError):
    """The place to write to exists already, cannot be written, or is full."""


class MissingDependencyError(EdgepruneError):
    """A package that this step needs is not installed.

    Args:
        what: the step, as the user knows it ("exporting a model").
        package: the distribution that is missing.
        extra: the extra of edgeprune that brings it.
    """

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the package {package}, which is not installed: pip install 'edgeprune[{extra}]'"
        )
        self.extra = extra


class BackendError(EdgepruneError):
    """A back end cannot run here, or refused the work."""


class PruningError(EdgepruneError):
    """Pruning was asked for and did not happen as planned."""


class NumericsError(EdgepruneError):
    """A graph computed no usable numbers."""


class VerificationError(EdgepruneError):
    """The exported graph does not agree with the model it was made from."""
