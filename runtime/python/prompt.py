"""From a prompt or a conversation to token ids, and from token ids back to text.

Everything comes from the bundle: `tokenizer.json` and the chat template, a Jinja program that runs in a
sandbox. Token ids equal those of the model's own Hugging Face processor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from edgeprune.errors import BundleError, InputError
from edgeprune.manifest import Prompt

Message: TypeAlias = "Mapping[str, Any]"
"""{"role": str, "content": str or list of {"type": "image"} and {"type": "text", "text": str}}."""

PromptLike: TypeAlias = "str | Sequence[Message]"
"""A prompt's text, or the messages of a conversation."""

# What the Unicode decoders put in place of bytes that are not (yet) a character.
_REPLACEMENT = "\ufffd"


class PromptEncoder:
    """Makes token ids of prompts, with room for the visual tokens, and text of token ids.

    An *image place* is one occurrence of the image token in the text that the model reads. There is no way
    to write the image token as mere text: in a user's words, too, it is an image place, and counts as one.

    Args:
        folder: the bundle.
        prompt: the manifest's part on prompts.
        tokens_per_image: how many visual tokens one picture has.

    Raises:
        BundleError: the tokenizer or the chat template cannot be read.
    """

    def __init__(self, folder: str | os.PathLike[str], prompt: Prompt, tokens_per_image: int) -> None:
        self.prompt = prompt
        self.tokens_per_image = tokens_per_image
        self._tokenizer = _read_tokenizer(Path(folder) / prompt.tokenizer)
        template = prompt.chat_template
        self._template = _read_template(Path(folder) / template) if template is not None else None

    def render(self, prompt: PromptLike, images: int) -> str:
        """The text that the model reads, with one image token per image place.

        Args:
            prompt: a string that holds the image token is used as it stands. A string without becomes one
                user message, the pictures first, in the chat template (without pictures and template it is
                used as it stands). Messages go through the chat template, which also opens the reply.
            images: how many pictures come with the prompt.

        Raises:
            InputError: image places and pictures differ in number; a message has another form than
                `Message`; the template refuses it, leaves text out, or is missing.
        """
        if isinstance(prompt, str):
            text = self._wrap(prompt, images)
        else:
            text = self._apply_template(_checked(prompt))
        places = text.count(self.prompt.image_token)
        if places != images:
            raise InputError(
                f"the prompt has {_count(places, 'image place')} ({self.prompt.image_token}) and comes with "
                f"{_count(images, 'picture')}: expected as many of one as of the other; add or remove some"
            )
        return text

    def encode(self, prompt: PromptLike, images: int) -> list[int]:
        """Token ids of a prompt, each image place expanded to `tokens_per_image` image tokens.

        The tokenizer adds its special tokens (often a BOS token in front), unless the text begins with the
        BOS token already.

        Raises:
            InputError: as `render`; or nothing is left to encode.
            BundleError: the tokenizer does not know the image token as one token.
        """
        image_token = self.prompt.image_token
        text = self.render(prompt, images).replace(image_token, image_token * self.tokens_per_image)
        has_bos = bool(self.prompt.bos_token) and text.startswith(self.prompt.bos_token or "")
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=not has_bos).ids
        if not ids:
            raise InputError("the prompt is empty: expected at least one token; write a question")
        found, wanted = ids.count(self.prompt.image_token_id), images * self.tokens_per_image
        if found != wanted:
            raise BundleError(
                f"the bundle's tokenizer makes {found} image tokens of {_count(images, 'picture')}, expected "
                f"{wanted}: {image_token!r} is not one token, {self.prompt.image_token_id}; export again"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens and without any clean-up of spaces."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def stream(self) -> Stream:
        """A new incremental decoder of this tokenizer."""
        return Stream(self.decode)

    def _wrap(self, text: str, images: int) -> str:
        if self.prompt.image_token in text:
            return text
        if self._template is None and not images:
            return text
        parts = _Parts([*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}])
        return self._apply_template([{"role": "user", "content": parts}])

    def _apply_template(self, messages: list[dict[str, Any]]) -> str:
        """Renders messages, their content as it is, or in the other form where the template wants that.

        Templates of multimodal models go through a list of parts and may pass over a plain string without
        a word; templates of text models want a string. Which one it is shows in the result: every user's
        text must be in it.
        """
        if self._template is None:
            raise InputError(
                "the bundle has no chat template: expected a prompt that is one string and holds "
                f"{self.prompt.image_token} where each picture goes; write the prompt so"
            )
        wanted = [
            part["text"].strip()
            for message in messages
            if message["role"] == "user"
            for part in _parts(message["content"])
            if part["type"] == "text"
        ]
        problem = ""
        for form in (messages, _as_parts(messages), _as_strings(messages)):
            if form is None:
                continue
            try:
                text = self._template.render(messages=form, **self._variables())
            except Exception as error:  # a template is a program: it fails in any way
                problem = problem or f"{type(error).__name__}: {error}"
                continue
            if all(part in text for part in wanted):
                return text
            problem = problem or "it leaves out what the user says"
        raise InputError(
            f"the chat template cannot take these messages ({problem}): change them, or write the prompt as "
            f"one string with {self.prompt.image_token} where each picture goes"
        )

    def _variables(self) -> dict[str, Any]:
        # The absent ones are None, not undefined: some templates ask "is not none".
        tokens = {"bos_token": self.prompt.bos_token, "eos_token": self.prompt.eos_token}
        return {
            "add_generation_prompt": True,
            "tools": None,
            "documents": None,
            **{name: token for name, token in tokens.items() if token is not None},
            **self.prompt.template_variables,
        }


class Stream:
    """Decodes token by token, so that the pieces in a row are the text of all the tokens.

    A token's text depends on its neighbours (the space in front of a word, a character made of several
    tokens' bytes). So each step decodes a short window twice, with and without the new tokens, and shows
    the difference once it no longer ends inside a character.

    Args:
        decode: text of token ids, as `PromptEncoder.decode`.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        # The window: tokens shown in the last step, which give the context, and those held back since.
        self._context: list[int] = []
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that this token makes safe to show, which may be none."""
        self._held.append(token_id)
        return self._advance(final=False)

    def finish(self) -> str:
        """What was held back: replacement characters where the last bytes make no character."""
        return self._advance(final=True)

    def _advance(self, final: bool) -> str:
        before = self._decode(self._context)
        after = self._decode([*self._context, *self._held])
        if not after.startswith(before):
            # Bytes that make no character spoil the bytes in front of them, which are shown already.
            before, after = "", self._decode(self._held)
        if len(after) <= len(before) or (after.endswith(_REPLACEMENT) and not final):
            return ""
        self._context, self._held = self._held, []
        return after[len(before) :]


class StopStrings:
    """Cuts a stream of text at the first stop string, of which nothing is ever shown.

    The first one is the one that is complete first (of several, the longest), so that the result does not
    depend on how the text is divided into pieces.

    Args:
        stops: the stop strings.

    Raises:
        InputError: a stop string is empty.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        if isinstance(stops, str):
            stops = (stops,)
        if not all(isinstance(stop, str) and stop for stop in stops):
            raise InputError(f"of the stop strings {list(stops)}, one is empty or no string: leave it out")
        self._stops = tuple(stops)
        self._held = ""
        self.hit: str | None = None
        """The stop string that was met, if any; from then on no text passes."""

    def push(self, text: str) -> str:
        """The part of the text so far, not shown yet, that cannot belong to a stop string."""
        if self.hit is not None:
            return ""
        self._held += text
        starts = [(self._held.find(stop), stop) for stop in self._stops]
        ends = [(start + len(stop), start, stop) for start, stop in starts if start >= 0]
        if ends:
            _, start, self.hit = min(ends)
            shown, self._held = self._held[:start], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """What was held back as the possible beginning of a stop string that never came."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop` without completing it."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _checked(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages in plain types only: a template must not get hold of any other object."""
    if not isinstance(messages, Sequence) or not messages:
        raise InputError(
            f"the prompt is {messages!r:.80}: expected a string, or a list of at least one message"
        )
    return [_checked_message(message, number) for number, message in enumerate(messages)]


def _checked_message(message: Message, number: int) -> dict[str, Any]:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        found = sorted(map(str, message)) if isinstance(message, Mapping) else type(message).__name__
        raise InputError(f"message {number} is {found}: expected a mapping with role and content only")
    role, content = message["role"], message["content"]
    if not isinstance(role, str):
        raise InputError(f"the role of message {number} is {role!r}: expected a string such as 'user'")
    if isinstance(content, str):
        return {"role": str(role), "content": str(content)}
    if not isinstance(content, Sequence):
        raise InputError(f"the content of message {number} is {content!r:.80}: expected a string or a list")
    return {"role": str(role), "content": _Parts(_checked_part(part, number) for part in content)}


def _checked_part(part: Any, number: int) -> dict[str, str]:
    if isinstance(part, Mapping):
        if part.get("type") == "image" and set(part) == {"type"}:
            return {"type": "image"}
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            return {"type": "text", "text": str(part["text"])}
    raise InputError(
        f"message {number} has the part {part!r:.80}: expected {{'type': 'image'}}, its picture handed over "
        "separately in the same order, or {'type': 'text', 'text': ...}"
    )


class _Parts(list[dict[str, str]]):
    """A list that no template can print: one meant for strings fails rather than show Python's notation."""

    def __str__(self) -> str:
        raise TypeError("it prints a list of parts as if it were a string")

    __repr__ = __str__


def _parts(content: str | list[dict[str, str]]) -> list[dict[str, str]]:
    return _Parts([{"type": "text", "text": content}]) if isinstance(content, str) else content


def _as_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**message, "content": _parts(message["content"])} for message in messages]


def _as_strings(messages: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Messages with their texts joined, or None where a picture is among them."""
    result = []
    for message in messages:
        parts = _parts(message["content"])
        if any(part["type"] != "text" for part in parts):
            return None
        result.append({**message, "content": "".join(part["text"] for part in parts)})
    return result


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise BundleError(f"the tokenizer {path} cannot be read ({error}): copy the bundle again") from error
    # Either may be left over from training; prompts are never cut or padded here.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_template(path: Path) -> jinja2.Template:
    try:
        return _environment().from_string(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, jinja2.TemplateError) as error:
        raise BundleError(
            f"the chat template {path} cannot be read ({error}): copy the bundle again"
        ) from error


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as chat templates expect it, with the names and the white space rules of transformers."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class _Generation(Extension):
    """{% generation %} marks the model's words for training; here its body is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own interface

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter, this one does not escape HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
