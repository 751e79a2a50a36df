"""A bundle, loaded: prompts and pictures in, text and statistics out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from edgeprune.manifest import Manifest
from edgeprune.runtime.images import Picture
from edgeprune.runtime.prompt import Message, PromptLike
from edgeprune.runtime.session import StageResult
from edgeprune.runtime.statistics import Statistics

FinishReason = Literal["stop", "length", "stop_string"]
DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True, eq=False)
class Reply:
    """What a model answers to one prompt.

    Attributes:
        text: the reply, without special tokens, cut before a stop string.
        token_ids: every token that was generated, an end-of-sequence token included.
        finish_reason: "stop" at an end-of-sequence token, "stop_string", or "length".
        stages: what each pruning stage did.
        statistics: tokens, times and memory.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stages: tuple[StageResult, ...]
    statistics: Statistics

    @property
    def kept_visual(self) -> tuple[tuple[int, ...], ...]:
        """Per pruning stage, the kept visual tokens as ascending indices 0..V-1."""
        return tuple(tuple(int(index) for index in stage.kept_visual) for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `edgeprune run --json`: text, token ids, kept tokens, every statistic."""
        return {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "kept_visual": [list(stage) for stage in self.kept_visual],
            **self.statistics.to_dict(),
        }


class Model:
    """A loaded bundle. Made by `load`.

    Attributes:
        manifest: what the bundle says of itself.
        backend_name: the back end that runs it.
    """

    manifest: Manifest
    backend_name: str

    @overload
    def generate(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[Picture] = (),
        *,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] | None = None,
        stop: Sequence[str] = (),
        stream: Callable[[str], object] | None = None,
        batch_size: int = 8,
    ) -> Reply: ...

    @overload
    def generate(
        self,
        prompt: Sequence[PromptLike],
        images: Sequence[Sequence[Picture]],
        *,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] | None = None,
        stop: Sequence[str] = (),
        stream: Callable[[str], object] | None = None,
        batch_size: int = 8,
    ) -> list[Reply]: ...

    def generate(
        self,
        prompt: Any,
        images: Any = (),
        *,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] | None = None,
        stop: Sequence[str] = (),
        stream: Callable[[str], object] | None = None,
        batch_size: int = 8,
    ) -> Reply | list[Reply]:
        """Answers one prompt, or a list of prompts.

        Args:
            prompt: a string, or the messages of a conversation; or a list of strings or of conversations.
            images: the pictures of the prompt, in the order of its image places; for a list of prompts, a
                list of such lists. Paths, bytes, file objects, PIL images or uint8 arrays.
            max_new_tokens: generate at most so many tokens; fewer where the position range ends.
            temperature: 0 takes the likeliest token each time; above 0 draws.
            top_p: draw among the likeliest tokens whose probabilities reach this sum, above 0 and at most 1.
            seed: makes drawing repeatable, whatever else is in the batch; for a list of prompts one for all
                or one for each. None draws anew each time.
            stop: strings that end the reply; they are not part of its text.
            stream: called with each piece of text as soon as it is sure; for a single prompt only.
            batch_size: of a list of prompts, how many run together at most.

        Returns:
            A Reply for one prompt, a list of them in the same order for a list.

        Raises:
            InputError: a picture, a prompt or a number cannot be used.
            PruningError: the graph did not prune as the bundle's plan says.
        """
        raise NotImplementedError


def load(
    bundle: str | os.PathLike[str],
    backend: str = "auto",
    *,
    check: Literal["sizes", "hashes"] = "sizes",
    **options: Any,
) -> Model:
    """Loads a bundle.

    Args:
        bundle: the folder that `edgeprune export` wrote.
        backend: a name of `edgeprune.runtime.backends.NAMES`, or "auto" for the best one available here.
        check: "sizes" compares every file's size with the manifest; "hashes" reads every file for its sum.
        options: of the back end; `threads` (None: one per core) is known to all that run on the CPU.

    Raises:
        BundleError: not a bundle, or a damaged one.
        BackendError: the back end is unknown or cannot run here, or an option is unknown.
        MissingDependencyError: the back end's package is not installed.
    """
    raise NotImplementedError(str(Path(bundle)))
