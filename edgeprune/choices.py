"""What a run of a bundle may choose: how many visual tokens are kept, and what is debiased."""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune.errors import InputError
from edgeprune.manifest import Manifest
from edgeprune.plans import Debias, Keep, PruningPlan, read_debias, with_keep


def run_plan(manifest: Manifest, keep: Keep = None, debias: str | Sequence[str] | None = None) -> PruningPlan:
    """The bundle's plan with other keep ratios or another debias.

    Args:
        manifest: of the bundle.
        keep: as for `edgeprune.export`; 1 keeps every visual token, None is what it was exported with.
        debias: "position", "padding", both, or "none"; None is what it was exported with.

    Raises:
        InputError: out of range, or what the bundle cannot do.
    """
    plan = manifest.plan
    if keep is not None:
        plan = with_keep(plan, keep, manifest.model.layers, manifest.image_program.fixed_tokens)
    wanted = read_debias(debias)
    if wanted is None:
        return plan
    if wanted and not plan.prunes:
        raise InputError(
            f"`debias` is {debias!r} and this bundle has no pruning stage that it could act on: leave it "
            "out, or export with a method that prunes"
        )
    if Debias.POSITION in wanted and manifest.curve is None:
        raise InputError(
            "`debias` asks for position, and this bundle has no bias curve: export it with one as "
            "`curve`, or take `debias='padding'`"
        )
    if Debias.PADDING in wanted and manifest.padding_mask.kind == "none":
        raise InputError(
            "`debias` asks for padding, and this model's images are never padded: leave padding out"
        )
    return plan.debiased(wanted)
