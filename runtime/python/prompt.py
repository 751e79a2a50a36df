"""From a prompt or a conversation to token ids, and from token ids back to text.

Everything comes from the bundle: `tokenizer.json` and the chat template, a Jinja program that runs in a
sandbox. Token ids equal those of the model's own Hugging Face processor.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgeprune.errors import BundleError, EdgepruneError, InputError
from edgeprune.manifest import Prompt
from edgeprune.runtime.messages import (
    Checked,
    Places,
    PromptLike,
    Said,
    checked,
    forms,
    marked,
    parts_in,
    question,
)
from edgeprune.runtime.templates import Template, read_template
from edgeprune.runtime.tokenizing import BundleTokenizer, check_text

# What the Unicode decoders put in place of bytes that are not (yet) a character.
_REPLACEMENT = "\ufffd"
# The longest tokens of published tokenizers are runs of some hundred spaces.
_MAX_TOKEN_LENGTH = 256


class PromptEncoder:
    """Makes token ids of prompts, with room for the visual tokens, and text of token ids.

    An *image place* is one occurrence of the prompt's `place`, in most models the image token, in the text
    that the model reads; a *video place* one of its `video_place`. There is no way to write them as mere
    text: in a user's words, too, they are places, and count as such.

    Args:
        folder: the bundle.
        prompt: the manifest's part on prompts.
        max_positions: of the model. Text far beyond it is refused before the tokenizer sees it, whose time
            grows with the text; None for no limit.

    Raises:
        BundleError: the tokenizer or the chat template cannot be read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        prompt: Prompt,
        max_positions: int | None = None,
    ) -> None:
        self.prompt = prompt
        self._longest = None if max_positions is None else max_positions * _MAX_TOKEN_LENGTH
        self._tokenizer = BundleTokenizer(Path(folder) / prompt.tokenizer)
        template = prompt.chat_template
        self._template = read_template(Path(folder) / template) if template is not None else None
        video = {} if prompt.video_place is None else {"video": prompt.video_place}
        self._places: Places = {"image": prompt.place, **video}
        # The longer one first, of which the other may be a part.
        longest = sorted(self._places.values(), key=len, reverse=True)
        self._place = re.compile("|".join(map(re.escape, longest)))

    def render(self, prompt: PromptLike, images: int, videos: int = 0) -> str:
        """The text that the model reads, with image and video places in it.

        Args:
            prompt: a string that holds a place is used as it stands. A string without becomes one user
                message, the images and then the videos first, in the chat template (without any of them and
                without template it is used as it stands). Messages go through the chat template, which also
                opens the reply.
            images, videos: how many come with the prompt.

        Raises:
            InputError: places and images, or videos, differ in number; the model takes no videos; a message
                has another form than `Message`; a text is not Unicode; the template refuses it, leaves text
                out, or is missing.
            BundleError: the template does not end within bounds.
        """
        messages = None if isinstance(prompt, str) else checked(prompt)
        if "video" not in self._places and (videos or (messages and parts_in(messages, "video"))):
            raise InputError(
                "the prompt comes with videos, and this model takes none: give some frames as images, or "
                "export a model for videos"
            )
        if messages is None:
            check_text(str(prompt), "the prompt")
            text = self._wrap(str(prompt), images, videos)
        else:
            text = self._apply_template(messages)
        if self.prompt.image_place is not None and self.prompt.image_token in text:
            raise InputError(
                f"the prompt holds {self.prompt.image_token}, which stands for one visual token: write "
                f"{self.prompt.place} where an image goes"
            )
        order = self.order(text)
        for kind, place in self._places.items():
            places, given = order.count(kind), {"image": images, "video": videos}[kind]
            if places != given:
                raise InputError(
                    f"the prompt has {_count(places, f'{kind} place')} ({place}) and comes with "
                    f"{_count(given, kind)}: expected as many of one as of the other; add or remove some"
                )
        return text

    def order(self, text: str) -> list[str]:
        """What stands in a rendered text, in order: "image" or "video" for each place."""
        kinds = {place: kind for kind, place in self._places.items()}
        return [kinds[place] for place in self._place.findall(text)]

    def encode(self, text: str, seen: Sequence[str]) -> list[int]:
        """Token ids of a rendered text, with images and videos in their places.

        Args:
            text: of `render`.
            seen: what each place becomes, in their order: an image token for every visual token, and text
                around them.

        The tokenizer adds its special tokens (often a BOS token in front), unless the text begins with the
        BOS token already.

        Raises:
            InputError: nothing is left to encode, or far too much.
            BundleError: the tokenizer fails, or does not know the image token as one token.
        """
        image_token = self.prompt.image_token
        length = len(text) - len("".join(self._place.findall(text))) + sum(map(len, seen))
        if self._longest is not None and length > self._longest:
            raise InputError(
                f"the prompt has {length} characters: expected at most {self._longest}, far more than the "
                "model has positions for; shorten it"
            )
        before, *behind = self._place.split(text)
        text = before + "".join(one + after for one, after in zip(seen, behind, strict=True))
        has_bos = bool(self.prompt.bos_token) and text.startswith(self.prompt.bos_token or "")
        ids = self._tokenizer.encode(text, special_tokens=not has_bos)
        if not ids:
            raise InputError("the prompt is empty: expected at least one token; write a question")
        found = ids.count(self.prompt.image_token_id)
        wanted = sum(one.count(image_token) for one in seen)
        if found != wanted:
            raise BundleError(
                f"the bundle's tokenizer makes {found} image tokens of {_count(len(seen), 'place')}, "
                f"expected {wanted}: {image_token!r} is not one token, {self.prompt.image_token_id}; "
                "export again"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens and without any clean-up of spaces.

        Raises:
            BundleError: the tokenizer fails on them.
        """
        return self._tokenizer.decode(ids)

    def stream(self) -> Stream:
        """A new incremental decoder of this tokenizer."""
        return Stream(self.decode)

    def _wrap(self, text: str, images: int, videos: int) -> str:
        if self.order(text):
            return text
        if self._template is None and not images + videos:
            return text
        return self._apply_template(question(text, images, videos))

    def _apply_template(self, messages: Checked) -> str:
        """Renders messages, their content as it is, or in another form where the template wants that.

        Templates of multimodal models may pass over a plain string without a word; templates of text models
        know no images. What a template takes shows in a trial with a word of our own for every text: each
        word, and as many image tokens as images, must be in the result.
        """
        if self._template is None:
            raise InputError(
                "the bundle has no chat template: expected a prompt that is one string and holds "
                f"{self.prompt.place} where each image goes; write the prompt so"
            )
        problem, without_images = "", None
        places = self._places
        trial, said = marked(messages)
        for form, trial_form in zip(forms(messages, places), forms(trial, places), strict=True):
            try:
                tried = self._render(self._template, trial_form).casefold()
                text = self._render(self._template, form)
            except EdgepruneError:
                raise
            except Exception as error:  # a template is a program: it fails in any way
                problem = problem or f"{type(error).__name__}: {error}"
                continue
            lost = next((one.role for one in said if _is_lost(one, text, tried)), None)
            if lost is not None:
                problem = problem or f"it leaves out what the {lost} says"
            elif all(
                tried.count(place.casefold()) == parts_in(messages, kind) for kind, place in places.items()
            ):
                return text
            elif without_images is None:
                without_images = text
        if without_images is not None:
            return without_images
        raise InputError(
            f"the chat template cannot take these messages ({problem}): change them, or write the prompt as "
            f"one string with {self.prompt.place} where each image goes"
        )

    def _render(self, template: Template, messages: Checked) -> str:
        return template.render({"messages": messages, **self._variables()})

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
        stops: the stop strings; None for none.

    Raises:
        InputError: a stop string is empty, or not Unicode.
    """

    def __init__(self, stops: Sequence[str] | None = ()) -> None:
        if stops is None or isinstance(stops, str):
            stops = () if stops is None else (stops,)
        if not isinstance(stops, Sequence):
            raise InputError(f"the stop strings are {stops!r:.80}: expected a list of strings")
        if not all(isinstance(stop, str) and stop for stop in stops):
            raise InputError(f"of the stop strings {list(stops)}, one is empty or no string: leave it out")
        for stop in stops:
            check_text(stop, "a stop string")
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


def _is_lost(said: Said, text: str, tried: str) -> bool:
    """Whether a template leaves a text out. A user's must be there as it stands, or as JSON writes it."""
    if said.word not in tried:
        return True
    kept = said.text in text or json.dumps(said.text, ensure_ascii=False)[1:-1] in text
    return said.role == "user" and not kept
