"""`edgeprune run`: ask a bundle about pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeprune.cli.output import (
    Backend,
    Bundle,
    Json,
    Threads,
    bytes_text,
    digits,
    print_fields,
    print_json,
    seconds_text,
)
from edgeprune.cli.pictures import check_drawable, draw_reply
from edgeprune.errors import InputError

if TYPE_CHECKING:
    from edgeprune.runtime import Reply


def run(
    bundle: Bundle,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="The question; `-` reads it from stdin.")],
    image: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="A picture; once for each, in the order of the prompt."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", help="End the answer after so many tokens.")
    ] = 128,
    temperature: Annotated[
        float, typer.Option(metavar="T", help="0 takes the likeliest token each time; above 0 draws.")
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(metavar="P", help="Draw among the likeliest tokens that hold this much probability."),
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Makes drawing repeatable.")] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End the answer before this text; may be repeated."),
    ] = None,
    backend: Backend = "auto",
    threads: Threads = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the kept and dropped tokens into this picture.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Answer a question about pictures.

    The answer comes out on stdout as it is generated, the statistics follow on stderr.

    `edgeprune run out --image street.jpg --prompt "What is in the picture?"`
    """
    from edgeprune.bundle import read_manifest
    from edgeprune.runtime import load

    images = image or []
    if picture is not None:
        check_drawable(read_manifest(bundle), images, picture)
    question = _read_prompt(prompt)
    options = {} if threads is None else {"threads": threads}
    model = load(bundle, backend, **options)
    reply = model.generate(
        question,
        images,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=stop or (),
        stream=None if as_json else _write,
    )
    if as_json:
        print_json({"backend": model.backend_name, **reply.to_dict()})
    else:
        print(flush=True)
        _print_statistics(reply, model.backend_name)
    if picture is not None:
        draw_reply(model.manifest, images, reply, picture)
        if not as_json:
            print(f"kept tokens drawn in {picture}", file=sys.stderr)


def _read_prompt(prompt: str) -> str:
    if prompt != "-":
        return prompt
    try:
        text = sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt on stdin is not text ({error}): expected UTF-8") from error
    if not text:
        raise InputError(
            "the prompt on stdin is empty: expected a question; write it there, or after --prompt"
        )
    return text


def _write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _print_statistics(reply: Reply, backend: str) -> None:
    found = reply.statistics
    visual = f"{found.visual_tokens}"
    if found.tower_tokens < found.visual_tokens:
        visual += f", {found.tower_tokens} left by the vision tower"
    if found.kept:
        kept = ", ".join(map(str, found.kept))
        visual += f", kept {kept} (padding among them: {', '.join(map(str, found.padded_kept))})"
    speed = "" if found.tokens_per_second is None else f", {digits(found.tokens_per_second)} tokens/s"
    first = seconds_text(found.time_to_first_token_seconds)
    parts = f"vision {seconds_text(found.vision_seconds)}, prefill {seconds_text(found.prefill_seconds)}"
    fields = [
        ("visual tokens", visual),
        (
            "tokens",
            f"{found.prompt_tokens} in the prompt, {found.new_tokens} generated ({reply.finish_reason})",
        ),
        ("first token", f"after {first} ({parts})"),
        ("decoding", f"{seconds_text(found.decode_seconds)}{speed}"),
        ("caches", bytes_text(found.cache_bytes)),
        ("peak memory", f"{bytes_text(found.peak_memory_bytes)} ({found.peak_memory_metric})"),
        ("back end", backend),
    ]
    print_fields(fields, stderr=True)
