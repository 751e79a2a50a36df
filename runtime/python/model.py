"""A bundle, loaded: prompts and images in, text and statistics out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from PIL import Image

from edgeprune.bundle import read_manifest
from edgeprune.choices import run_plan
from edgeprune.errors import InputError
from edgeprune.image_program import ImageProgram
from edgeprune.log import note
from edgeprune.manifest import Manifest
from edgeprune.plans import Keep, PruningPlan
from edgeprune.runtime.backends import Backend, open_backend
from edgeprune.runtime.batching import PromptInputs
from edgeprune.runtime.conversation import Conversation
from edgeprune.runtime.decoding import Held
from edgeprune.runtime.growing import FinishReason
from edgeprune.runtime.images import ImageLike
from edgeprune.runtime.messages import Message, PromptLike
from edgeprune.runtime.preparing import Preparation
from edgeprune.runtime.prompt import PromptEncoder, StopStrings
from edgeprune.runtime.sampling import Sampler, SamplingOptions, chosen_by
from edgeprune.runtime.session import DEFAULT_BATCH, Generated, Session
from edgeprune.runtime.stages import StageResult
from edgeprune.runtime.statistics import Statistics
from edgeprune.runtime.videos import VideoLike

if TYPE_CHECKING:
    from typing_extensions import Unpack

DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True, eq=False)
class Reply:
    """What a model answers to one prompt.

    Attributes:
        text: the reply, without special tokens, cut before a stop string.
        token_ids: every token that was generated, an end-of-sequence token included.
        finish_reason: "stop" at an end-of-sequence token, "stop_string", or "length".
        plan: the stages as they were asked for: the bundle's own, or with the call's `keep` and `debias`.
        stages: what each pruning stage did.
        statistics: tokens, times and memory.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    plan: PruningPlan
    stages: tuple[StageResult, ...]
    statistics: Statistics

    @property
    def kept_visual(self) -> tuple[tuple[int, ...], ...]:
        """Per pruning stage, the numbers of the kept visual tokens, 0..V-1; see `StageResult.kept_visual`."""
        return tuple(tuple(int(index) for index in stage.kept_visual) for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `edgeprune run --json`: text, token ids, kept tokens, every statistic."""
        return {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "plan": self.plan.describe(),
            "kept_visual": [list(stage) for stage in self.kept_visual],
            **self.statistics.to_dict(),
        }


class Model:
    """A loaded bundle. `load` makes one.

    Args:
        folder: the bundle.
        manifest: of the bundle.
        backend: what runs its graphs.
        max_context: the most tokens of a prompt and its reply; None for the model's own range.

    Attributes:
        manifest: what the bundle says of itself.
        backend_name: the back end that runs it.
        engines: the name of the bundle's folder of engines that it runs; None for the bundle's own graphs.
        session: the graphs, for work on arrays instead of prompts.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, backend: Backend, max_context: int | None = None
    ) -> None:
        self.manifest = manifest
        self.backend_name = backend.name
        # The small files first: a damaged one shows before the weights are read.
        self._preparation = Preparation.of(folder, manifest)
        self._encoder = self._preparation.encoder
        self.session = Session(backend, folder, manifest, max_context)
        self.engines = backend.engines

    @overload
    def generate(  # type: ignore[overload-overlap]  # a list of messages is a list too; see _is_conversation
        self,
        prompt: str | Sequence[Message],
        images: Sequence[ImageLike] = (),
        *,
        videos: Sequence[VideoLike] = (),
        frames: int | None = None,
        fps: float | None = None,
        keep: Keep = None,
        debias: str | Sequence[str] | None = None,
        share_by_image: bool = False,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        seed: int | Sequence[int] | None = None,
        stop: Sequence[str] | None = (),
        stream: Callable[[str], object] | None = None,
        batch_size: int = DEFAULT_BATCH,
        **sampling: Unpack[SamplingOptions],
    ) -> Reply: ...

    @overload
    def generate(
        self,
        prompt: Sequence[PromptLike],
        images: Sequence[Sequence[ImageLike]],
        *,
        videos: Sequence[Sequence[VideoLike]] = (),
        frames: int | None = None,
        fps: float | None = None,
        keep: Keep = None,
        debias: str | Sequence[str] | None = None,
        share_by_image: bool = False,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        seed: int | Sequence[int] | None = None,
        stop: Sequence[str] | None = (),
        stream: Callable[[str], object] | None = None,
        batch_size: int = DEFAULT_BATCH,
        **sampling: Unpack[SamplingOptions],
    ) -> list[Reply]: ...

    def generate(
        self,
        prompt: Any,
        images: Any = (),
        *,
        videos: Any = (),
        frames: int | None = None,
        fps: float | None = None,
        keep: Keep = None,
        debias: str | Sequence[str] | None = None,
        share_by_image: bool = False,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        seed: int | Sequence[int] | None = None,
        stop: Sequence[str] | None = (),
        stream: Callable[[str], object] | None = None,
        batch_size: int = DEFAULT_BATCH,
        **sampling: Unpack[SamplingOptions],
    ) -> Reply | list[Reply]:
        """Answers one prompt, or a list of prompts.

        Args:
            prompt: a string, or the messages of a conversation; or a list of strings or of conversations.
            images: the images of the prompt, in the order of its image places; for a list of prompts, a
                list of such lists. Paths, bytes, file objects, PIL images or uint8 arrays.
            videos: likewise, in the order of the video places: files, or frames as uint8 arrays [frames, H,
                W, 3] or as lists of images.
            frames: how many frames of each video are seen.
            fps: how many frames of a second are seen instead; or, of frames that are handed in, how fast they
                follow each other. Without both as the model says.
            keep: the share of visual tokens to keep, 0 < keep <= 1, as for `edgeprune.export`; 1 runs the
                unpruned model. None is what the bundle was exported with.
            debias: what the selection is debiased by: "position" (where the bundle has a bias curve),
                "padding", both, or "none"; None is what the bundle was exported with.
            share_by_image: whether every image keeps at least its part of the visual tokens that stay, which
                a small one beside a large one may lose: for a method that selects once. Where an image would
                not, the language graph reads the prompt twice.
            max_new_tokens: generate at most so many tokens; fewer where the position range ends.
            seed: makes drawing repeatable, whatever else is in the batch; for a list of prompts one for all
                or one for each. None draws anew each time.
            stop: strings that end the reply; they are not part of its text. None for none.
            stream: called with each piece of text as soon as it is sure; for a single prompt only.
            batch_size: of a list of prompts, how many run together at most.
            sampling: how tokens are chosen, see `SamplingOptions`; by default as the bundle says, which is as
                the checkpoint says.

        Returns:
            A Reply for one prompt, a list of them in the same order for a list.

        Raises:
            InputError: an image, a prompt or a number cannot be used.
            PruningError: the graph did not prune as the bundle's plan says.
        """
        single = isinstance(prompt, str) or _is_conversation(prompt)
        prompts, pictures = ([prompt], [images]) if single else _checked_batch(prompt, images, "images")
        clips = [videos] if single else _checked_batch(prompt, videos, "videos")[1]
        if stream is not None and not single:
            raise InputError(
                "stream was given with a list of prompts: expected a single prompt, as the pieces of several "
                "would mix; call generate for each, or leave it out"
            )
        _check_stream(stream)
        plan = self.plan(keep, debias)
        self._note_raw_prompts(prompts)
        how, seeds = chosen_by(self.manifest.generation, sampling), _seeds(seed, len(prompts), single=single)
        writers = [_Writer(self._encoder, stop, stream) for _ in prompts]
        inputs = [
            self.prepare(one, its, videos=own, frames=frames, fps=fps)
            for one, its, own in zip(prompts, pictures, clips, strict=True)
        ]
        pickers = [Sampler(how, one.input_ids, own).pick for one, own in zip(inputs, seeds, strict=True)]
        generated = self.session.generate(
            inputs,
            pickers,
            max_new_tokens,
            lambda number, token: writers[number].take(token),
            batch_size,
            plan,
            share_by_image,
        )
        replies = [writer.reply(result, plan) for writer, result in zip(writers, generated, strict=True)]
        return replies[0] if single else replies

    def conversation(
        self,
        *,
        system: str | None = None,
        keep: Keep = None,
        debias: str | Sequence[str] | None = None,
        share_by_image: bool = False,
        reselect: bool = False,
        frames: int | None = None,
        fps: float | None = None,
    ) -> Conversation:
        """Questions in turn, of which each reads only what is new; see `Conversation`.

        Args:
            system: the text of a system message in front.
            keep, debias, share_by_image, frames, fps: as for `generate`.
            reselect: whether each question selects the visual tokens anew, for which the language graph
                reads the whole prompt over the visual embeddings, which are kept. Without it, questions see
                what the first one has kept, and only their own tokens are read. A question with further
                images reads the whole prompt either way.

        Raises:
            InputError: an option is out of range, or what the bundle cannot do.
        """
        return Conversation(self, system, keep, debias, share_by_image, reselect, frames, fps)

    def answer(
        self,
        prompt: PromptInputs,
        plan: PruningPlan,
        before: Held | None = None,
        *,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        seed: int | None = None,
        stop: Sequence[str] | None = (),
        stream: Callable[[str], object] | None = None,
        share_by_image: bool = False,
        reselect: bool = False,
        **sampling: Unpack[SamplingOptions],
    ) -> tuple[Reply, Held]:
        """The reply to a prepared prompt that may go on with an earlier one, and what the next can go on
        with.

        Args:
            prompt: of `prepare`.
            plan: of `plan`.
            before, share_by_image, reselect: as for `Session.converse`.
            max_new_tokens, seed, stop, stream, sampling: as for `generate`.

        Raises:
            InputError, PruningError: as `generate`.
        """
        _check_stream(stream)
        how = chosen_by(self.manifest.generation, sampling)
        writer = _Writer(self._encoder, stop, stream)
        result, held = self.session.converse(
            prompt,
            Sampler(how, prompt.input_ids, seed).pick,
            max_new_tokens,
            lambda _, token: writer.take(token),
            plan,
            share_by_image,
            before,
            reselect,
        )
        return writer.reply(result, plan), held

    def plan(self, keep: Keep = None, debias: str | Sequence[str] | None = None) -> PruningPlan:
        """The bundle's plan with other keep ratios or another debias; see `generate`.

        Raises:
            InputError: out of range, or what the bundle cannot do.
        """
        return run_plan(self.manifest, keep, debias)

    def _note_raw_prompts(self, prompts: Sequence[PromptLike]) -> None:
        described = self.manifest.prompt
        for token in filter(None, (described.place, described.video_place)):
            raw = any(isinstance(one, str) and token in one for one in prompts)
            if described.chat_template is not None and raw:
                note(f"a prompt that holds {token} is used as it stands, without the chat template")

    def prepare(
        self,
        prompt: PromptLike,
        images: Sequence[ImageLike] = (),
        programs: Sequence[ImageProgram] | None = None,
        videos: Sequence[VideoLike] = (),
        frames: int | None = None,
        fps: float | None = None,
    ) -> PromptInputs:
        """A prompt and its images and videos as the session takes them; `programs` resize each image
        otherwise than the bundle's, see `ImageProgram.shrunken`.

        Raises:
            InputError: an image, a video or the prompt cannot be used.
        """
        return self._preparation.prepare(
            prompt, _checked_list(images, "images"), programs, _checked_list(videos, "videos"), frames, fps
        )


def _note_starved(found: Statistics) -> None:
    for image in found.starved:
        note(
            f"of image {image + 1} of {len(found.image_tokens)}, {found.image_kept[-1][image]} of "
            f"{found.image_tokens[image]} visual tokens are left: the model hardly sees it; give every image "
            "its part with `share_by_image`, or keep more"
        )


def _check_stream(stream: object) -> None:
    if stream is not None and not callable(stream):
        raise InputError(f"stream is {stream!r:.80}: expected a function that is called with each piece")


class _Writer:
    """The text of one reply, as its tokens come."""

    def __init__(
        self, encoder: PromptEncoder, stop: Sequence[str] | None, stream: Callable[[str], object] | None
    ) -> None:
        self._decoder = encoder.stream()
        self._stop = StopStrings(stop)
        self._stream = stream
        self._text = ""

    @property
    def stopped(self) -> bool:
        return self._stop.hit is not None

    def take(self, token: int) -> bool:
        """Reads a token; True once a stop string was met."""
        self._write(self._stop.push(self._decoder.push(token)))
        return self.stopped

    def reply(self, result: Generated, plan: PruningPlan) -> Reply:
        """The whole text, and what else there is to say."""
        self._write(self._stop.push(self._decoder.finish()))
        self._write(self._stop.finish())
        _note_starved(result.statistics)
        reason = "stop_string" if self.stopped else result.finish_reason
        return Reply(self._text, result.token_ids, reason, plan, result.stages, result.statistics)

    def _write(self, piece: str) -> None:
        self._text += piece
        if piece and self._stream is not None:
            self._stream(piece)


def load(
    bundle: str | os.PathLike[str],
    backend: str | Backend = "auto",
    *,
    check: Literal["sizes", "hashes"] = "sizes",
    max_context: int | None = None,
    **options: Any,
) -> Model:
    """Loads a bundle.

    Args:
        bundle: the folder that `edgeprune export` wrote.
        backend: a name of `edgeprune.runtime.backends.NAMES`, "auto" for the best one available here, or an
            opened back end.
        check: "sizes" compares every file's size with the manifest, and the sum of each smaller one; "hashes"
            reads every file for its sum.
        max_context: the most tokens of a prompt and its reply, counted before anything is pruned; longer
            prompts are refused, and replies end there. None for the model's own range.
        options: of the back end. ONNX Runtime knows `threads` (CPU threads, None for what the bundle's
            engines were found to be fastest with, or its own choice), `spinning` (whether they wait busily),
            `engines` (False runs the bundle's own graphs), `device` (the GPU's number) and `caches`
            ("in-place", "copied", or "auto" for the first where it can be done).

    Raises:
        BundleError: not a bundle, or a damaged one.
        BackendError: the back end is unknown or cannot run here.
        MissingDependencyError: the back end's package is not installed.
        InputError: an option is unknown or has no sensible value.
    """
    if check not in ("sizes", "hashes"):
        raise InputError(f"check is {check!r}: expected 'sizes' or 'hashes'")
    manifest = read_manifest(bundle, check)
    if isinstance(backend, str):
        backend = open_backend(backend, bundle=Path(bundle), **options)
    elif options:
        raise InputError(f"options ({', '.join(options)}) go with a back end's name, not with an opened one")
    return Model(Path(bundle), manifest, backend, max_context)


def _is_conversation(prompt: object) -> bool:
    return isinstance(prompt, Sequence) and bool(prompt) and all(isinstance(m, Mapping) for m in prompt)


def _checked_batch(prompts: Any, seen: Any, kind: str) -> tuple[list[PromptLike], list[Any]]:
    if not isinstance(prompts, Sequence) or isinstance(prompts, (bytes, bytearray)) or not prompts:
        raise InputError(
            f"the prompt is {prompts!r:.80}: expected a string, the messages of a conversation, or a list of "
            "at least one of either"
        )
    found = _checked_list(seen, kind) or [()] * len(prompts)
    if len(found) != len(prompts):
        raise InputError(
            f"{len(prompts)} prompts come with {len(found)} lists of {kind}: expected one list each; "
            f"give an empty one to a prompt without {kind}"
        )
    return list(prompts), found


def _checked_list(seen: Any, kind: str) -> list[Any]:
    single = isinstance(seen, (str, bytes, bytearray, os.PathLike, np.ndarray, Image.Image))
    if single or not isinstance(seen, Sequence):
        raise InputError(
            f"the {kind} are one {type(seen).__name__}: expected a list, for a list of prompts one for "
            f"each prompt; put a single one in brackets"
        )
    return list(seen)


def _seeds(seed: Any, prompts: int, *, single: bool) -> list[Any]:
    if not isinstance(seed, Sequence) or isinstance(seed, str):
        return [seed] * prompts
    if single or len(seed) != prompts:
        raise InputError(f"{len(seed)} seeds for {prompts} prompts: expected one for all, or one for each")
    return list(seed)
