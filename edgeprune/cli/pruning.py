"""The options that say how a model is pruned, in the same words for every command that exports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgeprune.plans import Keep as KeepRatios

Keep = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE[,...]",
        help="Share of visual tokens that the layers behind the first stage see on average, above 0 "
        "and at most 1; 1 drops nothing. Several: the share that each stage keeps, of all visual "
        "tokens. Fractions such as 192/576 are read exactly. By default the method's published setting.",
    ),
]
RunKeep = Annotated[
    str | None,
    typer.Option(
        "--keep",
        metavar="SHARE[,...]",
        help="Share of visual tokens to keep in this run, as for `export`; 1 runs the unpruned model. By "
        "default what the bundle was exported with.",
    ),
]
Method = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        # Written out, because the methods' module would load too much for --help.
        help="Pruning method: `fastv`, `himap`, `illava`, `illava-decoder`, `pyramiddrop`, "
        "`sparsevlm`, `tokencarve`, `random`; `none` is the unpruned graph.",
    ),
]
Layer = Annotated[
    str | None,
    typer.Option(
        metavar="N[,...]",
        help="Prune before this decoder layer, or these where the method selects several times; by "
        "default the method's own.",
    ),
]
Debias = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="What the scores are debiased by: `position` (the bias curve), `padding` (the "
        "padding mask), both with a comma between, or `none`; by default padding, and position where a "
        "curve belongs to the model or is given.",
    ),
]
RunDebias = Annotated[
    str | None,
    typer.Option(
        "--debias",
        metavar="NAMES",
        help="What the scores are debiased by in this run: `position`, `padding`, both with a comma "
        "between, or `none`; by default what the bundle was exported with.",
    ),
]
Curve = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|PRESET",
        help="Bias curve: a JSON file or a preset's name; by default the published one, in LLaVA-1.5 7B "
        "and 13B alone.",
    ),
]


def read_shares(text: str | None) -> KeepRatios:
    """One keep ratio, or several; checked as text, so that a message shows what was typed.

    Raises:
        InputError: a share is no number above 0 and at most 1, and no fraction.
    """
    from edgeprune.debias.selection import read_share

    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        read_share(part)
    shares = [part if "/" in part else float(part) for part in parts]
    return shares[0] if len(shares) == 1 else tuple(shares)


def read_layers(text: str | None) -> int | tuple[int, ...] | None:
    """One layer, or several.

    Raises:
        typer.BadParameter: not whole numbers.
    """
    if text is None:
        return None
    try:
        layers = tuple(map(int, text.split(",")))
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is not a whole number, nor several separated by commas", param_hint="'--layer'"
        ) from error
    return layers[0] if len(layers) == 1 else layers
