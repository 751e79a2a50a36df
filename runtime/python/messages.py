"""Conversations: what callers hand over, and the forms that chat templates take them in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

from edgeprune.errors import InputError
from edgeprune.runtime.tokenizing import check_text

Message: TypeAlias = "Mapping[str, Any]"
"""{"role": str, "content": str or list of {"type": "image"}, {"type": "video"} and {"type": "text", "text":
str}}."""

PromptLike: TypeAlias = "str | Sequence[Message]"
"""A prompt's text, or the messages of a conversation."""

Checked: TypeAlias = "list[dict[str, Any]]"
"""Messages in plain types only: a template must not get hold of any other object."""

Places: TypeAlias = "Mapping[str, str]"
"""What stands in a text for an "image", and for a "video" where the model takes videos."""

# With more roles than that, all of them take one form.
_MAX_ROLES = 3


def checked(messages: Sequence[Message]) -> Checked:
    """The messages in plain types.

    Raises:
        InputError: they have another form than `Message`, or a text is not Unicode.
    """
    if not isinstance(messages, Sequence) or not messages:
        raise InputError(
            f"the prompt is {messages!r:.80}: expected a string, or a list of at least one message"
        )
    return [_checked_message(message, number) for number, message in enumerate(messages)]


def question(text: str, images: int, videos: int = 0) -> Checked:
    """One message of a user: the images first, then the videos, then the text."""
    seen = [*({"type": "image"} for _ in range(images)), *({"type": "video"} for _ in range(videos))]
    return [{"role": "user", "content": _Parts([*seen, {"type": "text", "text": text}])}]


def forms(messages: Checked, places: Places) -> Iterator[Checked]:
    """The messages as they are, then in the other forms that templates want, each form once.

    Templates of multimodal models go through a list of parts; those of text models want a string, with the
    places of images and videos in it; some want one for the system's message and the other for the user's.

    Args:
        messages: as `checked` gives them.
        places: what stands for an image, and for a video.
    """
    roles = list(dict.fromkeys(message["role"] for message in messages))
    free = roles if len(roles) <= _MAX_ROLES else roles[:1]
    choices = sorted(product((_parts, _string, _text_part), repeat=len(free)), key=lambda one: len(set(one)))
    seen = [messages]
    yield messages
    for choice in choices:
        of_role: dict[str, Callable[[Any, Places], Any]] = dict(zip(free, choice, strict=True))
        form = [
            {**message, "content": of_role.get(message["role"], choice[0])(message["content"], places)}
            for message in messages
        ]
        if form not in seen:
            seen.append(form)
            yield form


@dataclass(frozen=True)
class Said:
    """One text of a conversation, and the word that stands for it in a trial."""

    role: str
    text: str
    word: str


def marked(messages: Checked) -> tuple[Checked, list[Said]]:
    """The messages with a word of our own in the place of each text.

    A word stays recognisable in whatever way a template transforms texts: stripped, as JSON, in capitals.
    """
    said: list[Said] = []

    def word(role: str, text: str) -> str:
        if not text.strip():
            return text
        said.append(Said(role, text.strip(), f"edgeprune{len(said)}word"))
        return said[-1].word

    result = []
    for message in messages:
        role, content = message["role"], message["content"]
        if isinstance(content, str):
            result.append({"role": role, "content": word(role, content)})
        else:
            parts = [
                {**part, "text": word(role, part["text"])} if part["type"] == "text" else part
                for part in content
            ]
            result.append({"role": role, "content": _Parts(parts)})
    return result, said


def parts_in(messages: Checked, kind: str) -> int:
    """How many parts are of this type."""
    return sum(part["type"] == kind for message in messages for part in _parts(message["content"], {}))


def _checked_message(message: Message, number: int) -> dict[str, Any]:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        found = sorted(map(str, message)) if isinstance(message, Mapping) else type(message).__name__
        raise InputError(f"message {number} is {found}: expected a mapping with role and content only")
    role, content = message["role"], message["content"]
    if not isinstance(role, str):
        raise InputError(f"the role of message {number} is {role!r}: expected a string such as 'user'")
    check_text(role, f"the role of message {number}")
    if isinstance(content, str):
        check_text(content, f"message {number}")
        return {"role": str(role), "content": str(content)}
    if not isinstance(content, Sequence):
        raise InputError(f"the content of message {number} is {content!r:.80}: expected a string or a list")
    return {"role": str(role), "content": _Parts(_checked_part(part, number) for part in content)}


def _checked_part(part: Any, number: int) -> dict[str, str]:
    if isinstance(part, Mapping):
        if part.get("type") in ("image", "video") and set(part) == {"type"}:
            return {"type": str(part["type"])}
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            check_text(part["text"], f"message {number}")
            return {"type": "text", "text": str(part["text"])}
    raise InputError(
        f"message {number} has the part {part!r:.80}: expected {{'type': 'image'}} or {{'type': 'video'}}, "
        "handed over separately in the same order, or {'type': 'text', 'text': ...}"
    )


class _Parts(list[dict[str, str]]):
    """A list that no template can print: one meant for strings fails rather than show Python's notation."""

    def __str__(self) -> str:
        raise TypeError("it prints a list of parts as if it were a string")

    __repr__ = __str__


def _parts(content: Any, _places: Places) -> Any:
    return _Parts([{"type": "text", "text": content}]) if isinstance(content, str) else content


def _string(content: Any, places: Places) -> str:
    """The texts joined, with a line for each image and each video."""
    return "".join(
        part["text"] if part["type"] == "text" else f"{places.get(part['type'], '')}\n"
        for part in _parts(content, places)
    )


def _text_part(content: Any, places: Places) -> Any:
    return _parts(_string(content, places), places)
