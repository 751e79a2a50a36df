"""`edgeprune run`: ask a bundle about images, once, about each of a folder, or in a conversation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeprune.checks import given
from edgeprune.cli.images import check_drawable, draw_reply, images_of
from edgeprune.cli.output import (
    Backend,
    Bundle,
    Caches,
    Json,
    Threads,
    bytes_text,
    digits,
    print_fields,
    print_json,
    print_reason,
    seconds_text,
)
from edgeprune.cli.pruning import RunDebias, RunKeep, read_shares
from edgeprune.cli.text import from_stdin, typed
from edgeprune.errors import InputError, printable

if TYPE_CHECKING:
    from edgeprune.runtime import Model, Reply


def run(
    bundle: Bundle,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The question; `-` reads it from stdin."),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="An image; once for each, in the order of the prompt."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Ask about every image of a folder, one after the other."),
    ] = None,
    video: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="A video, for models that take them; may be repeated."),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(metavar="N", help="How many frames of each video are seen.")
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(metavar="X", help="How many frames of a second are seen; by default as the model says."),
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The system message in front of the question.")
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Go on asking, a question a line, until the input ends."),
    ] = False,
    reselect: Annotated[
        bool,
        typer.Option(
            "--reselect",
            help="With --chat: each question selects the visual tokens anew, and is read whole.",
        ),
    ] = False,
    keep: RunKeep = None,
    debias: RunDebias = None,
    share_by_image: Annotated[
        bool,
        typer.Option("--share-by-image", help="Every image keeps at least its part of the visual tokens."),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", help="End the answer after so many tokens.")
    ] = 128,
    do_sample: Annotated[
        bool | None,
        typer.Option(help="Draw tokens, or take the likeliest; by default as the bundle says."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="T", help="0 takes the likeliest token each time; above 0 draws.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(metavar="N", help="Draw among so many likeliest tokens; 0 for all.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(metavar="P", help="Draw among the likeliest tokens that hold this much probability."),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(metavar="P", help="Draw among tokens of at least this share of the likeliest one's."),
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(metavar="X", help="Above 1 makes tokens that came before less likely.")
    ] = None,
    no_repeat_ngram_size: Annotated[
        int | None, typer.Option(metavar="N", help="No sequence of so many tokens comes twice.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Makes drawing repeatable.")] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End the answer before this text; may be repeated."),
    ] = None,
    backend: Backend = "auto",
    threads: Threads = None,
    caches: Caches = None,
    max_context: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The most tokens of prompt and answer, before pruning; by default the model's range.",
        ),
    ] = None,
    draw: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the kept and dropped tokens into this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Answer questions about images and videos.

    The answer comes out on stdout as it is generated, the statistics follow on stderr.

    `edgeprune run out --image street.jpg --prompt "What is in the image?"`
    """
    from edgeprune.bundle import read_manifest
    from edgeprune.runtime import load

    shown, clips = image or [], video or []
    _check_ways(prompt, [*shown, *clips], images, chat, draw, as_json)
    if reselect and not chat:
        raise typer.BadParameter("it is of conversations: give --chat, too", param_hint="'--reselect'")
    if draw is not None and clips:
        raise typer.BadParameter("it draws images, and no videos", param_hint="'--draw'")
    if not clips and (frames is not None or fps is not None):
        raise typer.BadParameter("they are of videos: give one", param_hint="'--frames', '--fps'")
    folder = None if images is None else images_of(images)
    if draw is not None:
        check_drawable(read_manifest(bundle), shown, draw)
    question = None if prompt is None else _question(prompt, chat)
    asking = _Asking(
        None if system is None else typed(system, "--system"),
        {
            "frames": frames,
            "fps": fps,
            "keep": read_shares(keep),
            "debias": debias,
            "share_by_image": share_by_image,
        },
        {
            "max_new_tokens": max_new_tokens,
            "seed": seed,
            "stop": [typed(one, "--stop") for one in stop or ()],
            "do_sample": do_sample,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "no_repeat_ngram_size": no_repeat_ngram_size,
        },
        stream=not as_json,
    )
    model = load(bundle, backend, max_context=max_context, **given(threads=threads, caches=caches))
    if chat:
        _converse(model, asking, question, shown, clips, reselect)
        return
    assert question is not None
    if folder is not None:
        _ask_each(model, asking, question, folder, as_json)
        return
    reply = asking.ask(model, question, shown, clips)
    if as_json:
        print_json("run", {**_ran_by(model), **reply.to_dict()})
    else:
        print(flush=True)
        _print_statistics(reply, model)
    if draw is not None:
        draw_reply(model.manifest, shown, reply, draw)
        if not as_json:
            print(f"kept tokens drawn in {draw}", file=sys.stderr)


def _check_ways(
    prompt: str | None,
    image: list[str],
    images: Path | None,
    chat: bool,
    draw: Path | None,
    as_json: bool,
) -> None:
    """Refuses options that do not go together."""
    if prompt is None and not chat:
        raise typer.BadParameter("expected a question, or --chat for several", param_hint="'--prompt'")
    if images is not None and (image or chat or draw is not None):
        raise typer.BadParameter(
            "it asks about one image at a time, so --image, --chat and --draw do not go with it",
            param_hint="'--images'",
        )
    if chat and (draw is not None or as_json):
        raise typer.BadParameter("--draw and --json do not go with a conversation", param_hint="'--chat'")


def _question(prompt: str, chat: bool) -> str:
    if prompt != "-":
        return typed(prompt, "--prompt")
    if chat:
        raise typer.BadParameter("with --chat every line of stdin is a question", param_hint="'--prompt'")
    return from_stdin("the prompt")


class _Asking:
    """How questions are asked: with which system message, and by which options of `Model.generate`: of what
    is seen, and of the answer.
    """

    def __init__(
        self, system: str | None, seeing: dict[str, Any], answering: dict[str, Any], stream: bool
    ) -> None:
        self.system, self.seeing, self.answering = system, seeing, answering
        self._stream = stream

    def ask(self, model: Model, prompt: Any, images: list[str], videos: Sequence[str] = ()) -> Reply:
        """Asks one question."""
        if self.system is not None:
            turn = user_message(prompt, len(images), len(videos))
            prompt = [{"role": "system", "content": self.system}, turn]
        stream = _write if self._stream else None
        reply: Reply = model.generate(
            prompt, images, videos=videos, stream=stream, **self.seeing, **self.answering
        )
        return reply


def user_message(text: str, images: int, videos: int = 0) -> dict[str, Any]:
    """A user's message with its images, and then its videos, in front."""
    seen = [{"type": "image"}] * images + [{"type": "video"}] * videos
    return {"role": "user", "content": [*seen, {"type": "text", "text": text}]}


def _converse(
    model: Model,
    asking: _Asking,
    question: str | None,
    images: list[str],
    videos: list[str],
    reselect: bool,
) -> None:
    """Questions and answers in turn; images and videos belong to the first question."""
    talk = model.conversation(system=asking.system, reselect=reselect, **asking.seeing)
    typing = sys.stdin.isatty()
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8")  # whatever the locale, as everywhere
    while True:
        if question is None:
            question = _next_line(typing)
            if question is None:
                return
        reply = talk.ask(question, images, videos=videos, stream=_write, **asking.answering)
        print(flush=True)
        _print_statistics(reply, model, brief=True)
        question, images, videos = None, [], []


def _next_line(typing: bool) -> str | None:
    """The next question, or None at the end of the input; empty lines are passed over."""
    while True:
        if typing:
            print("> ", end="", file=sys.stderr, flush=True)
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise InputError(f"the question on stdin is not text ({error}): expected UTF-8") from error
        if not line:
            return None
        if line.strip():
            return typed(line.strip(), "the question on stdin")


def _ask_each(model: Model, asking: _Asking, question: str, images: list[Path], as_json: bool) -> None:
    """One question about each image; one that cannot be read does not keep the others from being asked."""
    replies: list[dict[str, Any]] = []
    failed = 0
    for image in images:
        if not as_json:
            print(f"{printable(image.name)}: ", end="", flush=True)
        try:
            reply = asking.ask(model, question, [str(image)])
        except InputError as error:
            failed += 1
            replies.append({"image": str(image), "error": str(error)})
            if not as_json:
                print(flush=True)
                print_reason("left out", str(error))
            continue
        replies.append({"image": str(image), **reply.to_dict()})
        if not as_json:
            print(flush=True)
    if as_json:
        print_json("run", {**_ran_by(model), "replies": replies})
    if failed:
        raise InputError(
            f"{failed} of {len(images)} images could not be asked about: the lines above say why; the others "
            "are answered"
        )


def _write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _ran_by(model: Model) -> dict[str, object]:
    return {"backend": model.backend_name, "engines": model.engines}


def _print_statistics(reply: Reply, model: Model, brief: bool = False) -> None:
    found = reply.statistics
    visual = f"{found.visual_tokens}"
    if found.tower_tokens < found.visual_tokens:
        visual += f", {found.tower_tokens} left by the vision tower"
    if found.kept:
        kept = ", ".join(map(str, found.kept))
        visual += f", kept {kept} (padding among them: {', '.join(map(str, found.padded_kept))})"
    if len(found.image_tokens) > 1 and found.image_kept:
        each = zip(found.image_kept[-1], found.image_tokens, strict=True)
        visual += f"; by image {', '.join(f'{kept} of {tokens}' for kept, tokens in each)}"
    speed = "" if found.tokens_per_second is None else f", {digits(found.tokens_per_second)} tokens/s"
    first = seconds_text(found.time_to_first_token_seconds)
    parts = f"vision {seconds_text(found.vision_seconds)}, prefill {seconds_text(found.prefill_seconds)}"
    asked = f"{found.prompt_tokens} in the prompt"
    if found.reused_tokens:
        asked += f", {found.reused_tokens} of them read before"
    fields = [
        ("visual tokens", visual),
        (
            "tokens",
            f"{asked}, {found.new_tokens} generated ({reply.finish_reason})",
        ),
        ("first token", f"after {first} ({parts})"),
        ("decoding", f"{seconds_text(found.decode_seconds)}{speed}"),
        ("caches", bytes_text(found.cache_bytes)),
        ("peak memory", f"{bytes_text(found.peak_memory_bytes)} ({found.peak_memory_metric})"),
        ("back end", ", engines ".join(filter(None, (model.backend_name, model.engines)))),
    ]
    print_fields(fields[1:3] if brief else fields, stderr=True)
