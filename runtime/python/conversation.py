"""Conversations: questions in turn, of which each reads only what is new."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgeprune.plans import Keep
from edgeprune.runtime.decoding import Held
from edgeprune.runtime.images import ImageLike
from edgeprune.runtime.messages import question as message_of
from edgeprune.runtime.videos import VideoLike

if TYPE_CHECKING:
    from edgeprune.runtime.model import Model, Reply


class Conversation:
    """Questions to a model in turn. `Model.conversation` makes one, and says what its arguments are.

    What stays the same from one prompt to the next is not read again: the keys and values of its tokens are
    in the caches, as far as the prompts begin alike. `Reply.statistics.reused_tokens` says how many. The
    vision tower sees each image once.

    Attributes:
        messages: what was said so far.
    """

    def __init__(
        self,
        model: Model,
        system: str | None = None,
        keep: Keep = None,
        debias: str | Sequence[str] | None = None,
        share_by_image: bool = False,
        reselect: bool = False,
        frames: int | None = None,
        fps: float | None = None,
    ) -> None:
        self._model = model
        self._plan = model.plan(keep, debias)
        self._selecting: dict[str, Any] = {"share_by_image": share_by_image, "reselect": reselect}
        self._sampled: dict[str, Any] = {"frames": frames, "fps": fps}
        self._opening: list[Any] = [] if system is None else [{"role": "system", "content": system}]
        self._images: list[ImageLike] = []
        self._videos: list[VideoLike] = []
        self._held: Held | None = None
        self.messages: list[Any] = list(self._opening)

    def ask(
        self,
        question: str,
        images: Sequence[ImageLike] = (),
        *,
        videos: Sequence[VideoLike] = (),
        afresh: bool = False,
        **options: Any,
    ) -> Reply:
        """The answer to the next question.

        Args:
            question: its text.
            images, videos: that it brings, as for `Model.generate`; those of earlier questions stay.
            afresh: whether it stands by itself, without earlier questions and answers, about all images and
                videos so far.
            options: `max_new_tokens`, `seed`, `stop`, `stream` and the options of sampling, as for
                `Model.generate`.

        Raises:
            InputError, PruningError: as `Model.generate`; what was said is then as it was before.
        """
        shown, clips = [*self._images, *images], [*self._videos, *videos]
        before, new = (self._opening, (shown, clips)) if afresh else (self.messages, (images, videos))
        messages = [*before, *message_of(question, *map(len, new))]
        prompt = self._model.prepare(messages, shown, videos=clips, **self._sampled)
        held, self._held = self._held, None  # what fails on the way may have cut the caches
        reply, self._held = self._model.answer(prompt, self._plan, held, **self._selecting, **options)
        self._images, self._videos = shown, clips
        self.messages = [*messages, {"role": "assistant", "content": [_part(reply.text.strip())]}]
        return reply


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
