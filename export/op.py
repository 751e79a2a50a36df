"""The operator `com.edgeprune::DebiasedTokenPrune`: its torch form, ONNX schema and function body.

In torch it is a custom op, so that `torch.export` keeps it as one node with a symbolic output length. In
ONNX it is one node per pruning stage, and a model-local function of standard operators makes every
runtime able to execute it; a runtime with a faster kernel replaces the node by that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnxscript
import torch
from onnx import defs, helper, parser

from edgeprune.exporter import cache_forms, indexing, information
from edgeprune.interface import OP_DOMAIN as DOMAIN
from edgeprune.interface import OP_NAME, OP_VERSION

_FINITE = torch.finfo(torch.float32)


def effective_score(score: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The debiased score as `edgeprune.debias.selection.effective_score` defines it, float32 [B, V]."""
    product = score * weight
    product = torch.where(product.isnan(), _FINITE.min, product).clamp(_FINITE.min, _FINITE.max)
    return torch.where(weight == 0, -torch.inf, product)


@torch.library.custom_op("edgeprune::debiased_token_prune", mutates_args=())
def debiased_token_prune(
    hidden_states: torch.Tensor,
    score: torch.Tensor,
    visual_index: torch.Tensor,
    weight: torch.Tensor,
    kept_slots: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keeps all text tokens, the best visual tokens, and a visual token at the last position.

    Args:
        hidden_states: [B, S, D], any float dtype.
        score: float32 [B, S], the attention that the scoring rows pay each position.
        visual_index: int64 [B, V], ascending positions of the visual tokens.
        weight: float32 [B, V], what each visual token's score is multiplied by; 0 stands behind all others.
        kept_slots: int64 [1, K] or [B, K], whose length is how many visual tokens are kept.

    Returns:
        hidden_states [B, S', D] and kept_index int64 [B, S'] (ascending), S' = S - V + K.
    """
    batch, sequence, _ = hidden_states.shape
    visual = visual_index.shape[1]
    kept = kept_slots.shape[1]
    product = effective_score(score.gather(1, visual_index), weight)
    product = torch.where(visual_index == sequence - 1, torch.inf, product)
    best = product.sort(dim=1, descending=True, stable=True).indices[:, :kept]
    keep_mask = torch.ones(batch, sequence, dtype=torch.bool, device=score.device)
    keep_mask.scatter_(1, visual_index, False)
    keep_mask.scatter_(1, visual_index.gather(1, best), True)
    # A copy: a custom op must not hand out a view into something larger, as its fake promises.
    kept_index = keep_mask.nonzero()[:, 1].reshape(batch, sequence - visual + kept).clone()
    gathered = hidden_states.gather(1, kept_index.unsqueeze(-1).expand(-1, -1, hidden_states.shape[2]))
    return gathered, kept_index


@debiased_token_prune.register_fake
def _(
    hidden_states: torch.Tensor,
    score: torch.Tensor,
    visual_index: torch.Tensor,
    weight: torch.Tensor,
    kept_slots: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, _, width = hidden_states.shape
    # A size of its own, not arithmetic on S, V and K: so later shapes in the graph are read off the node's
    # output, and hold for V = 0 too.
    # At least 1, because the scoring token is always kept; known, it spares the tracer data-dependent guards.
    length = torch.library.get_ctx().new_dynamic_size(min=1)
    return hidden_states.new_empty(batch, length, width), visual_index.new_empty(batch, length)


def register_schema() -> None:
    """Makes the operator's ONNX schema known to onnx, once per process."""
    if defs.has(OP_NAME, domain=DOMAIN):
        return
    text = [f"tensor({t})" for t in ("float16", "bfloat16", "float")]
    parameter = defs.OpSchema.FormalParameter
    defs.register_schema(
        defs.OpSchema(
            OP_NAME,
            DOMAIN,
            OP_VERSION,
            doc="Drops the visual tokens of least debiased attention; the function body defines it.",
            type_constraints=[("T", text, "hidden states")],
            inputs=[
                parameter("hidden_states", "T", "[B, S, D]"),
                parameter("score", "tensor(float)", "[B, S]"),
                parameter("visual_index", "tensor(int64)", "[B, V]"),
                parameter("weight", "tensor(float)", "[B, V]"),
                parameter("kept_slots", "tensor(int64)", "[1 or B, K]"),
            ],
            outputs=[
                parameter("pruned_states", "T", "[B, S', D]"),
                parameter("kept_index", "tensor(int64)", "[B, S']"),
            ],
        )
    )


def translation() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The custom translation table for `torch.onnx.export`: one node, never inlined; the rest inlined."""
    register_schema()
    domain = onnxscript.values.Opset(DOMAIN, OP_VERSION)

    def to_onnx(hidden_states, score, visual_index, weight, kept_slots):  # type: ignore[no-untyped-def]
        return getattr(domain, OP_NAME)(hidden_states, score, visual_index, weight, kept_slots)

    return {
        torch.ops.edgeprune.debiased_token_prune.default: to_onnx,
        **indexing.translation(),
        **information.translation(DOMAIN, OP_VERSION),
        **cache_forms.translation(),
    }


# The K-th best score comes from a TopK whose own order among equals does not matter: tokens above that
# threshold are kept, and of those equal to it the first ones by index. Tokens of weight 0 count as the lowest
# finite score there, not as -inf, which ONNX Runtime's CUDA kernel takes for less than what it fills up with;
# among those equal to the threshold they stand behind the others. A sentinel of +inf in front keeps
# TopK and the threshold defined for V = 0, where nothing is selected and the node is the identity. The
# kept positions come from scattering 0..S-1 by a permutation (kept first, dropped after) and cutting it
# to S': every index stays inside its tensor, which some runtimes insist on.
_BODY = """
<opset_import: ["" : %(opset)d], domain: "com.edgeprune">
DebiasedTokenPrune (hidden_states, score, visual_index, weight, kept_slots)
    => (pruned_states, kept_index)
{
    zero = Constant <value_ints: ints = [0]> ()
    one = Constant <value_ints: ints = [1]> ()
    two = Constant <value_ints: ints = [2]> ()
    lowest = Constant <value_float: float = -3.4028234663852886e+38> ()
    largest = Constant <value_float: float = 3.4028234663852886e+38> ()
    zero_f = Constant <value_float: float = 0.0> ()
    one_f = Constant <value_float: float = 1.0> ()
    infinity = Div (one_f, zero_f)

    batch = Shape <start: int = 0, end: int = 1> (score)
    sequence = Shape <start: int = 1, end: int = 2> (score)
    visual = Shape <start: int = 1, end: int = 2> (visual_index)
    kept = Shape <start: int = 1, end: int = 2> (kept_slots)
    kept_and_sentinel = Add (kept, one)
    dropped = Sub (visual, kept)
    length = Sub (sequence, dropped)

    visual_score = GatherElements <axis: int = 1> (score, visual_index)
    product = Mul (visual_score, weight)
    is_nan = IsNaN (product)
    numbers = Where (is_nan, lowest, product)
    from_below = Max (numbers, lowest)
    clamped = Min (from_below, largest)
    weightless = Equal (weight, zero_f)
    weighted = Where (weightless, lowest, clamped)
    last = Sub (sequence, one)
    is_last = Equal (visual_index, last)
    effective = Where (is_last, infinity, weighted)
    not_last = Not (is_last)
    behind = And (weightless, not_last)
    ahead = Not (behind)

    sentinel_shape = Concat <axis: int = 0> (batch, one)
    sentinel = Expand (infinity, sentinel_shape)
    with_sentinel = Concat <axis: int = 1> (sentinel, effective)
    best, _best_index = TopK <axis: int = 1, largest: int = 1, sorted: int = 1>
        (with_sentinel, kept_and_sentinel)
    threshold = Slice (best, kept, kept_and_sentinel, one)
    above = Greater (effective, threshold)
    above_count_in = Cast <to: int = 7> (above)
    above_count = ReduceSum <keepdims: int = 1> (above_count_in, one)
    places_left = Sub (kept, above_count)
    equal = Equal (effective, threshold)
    axis_one = Squeeze (one)
    first = And (equal, ahead)
    first_int = Cast <to: int = 7> (first)
    first_rank = CumSum (first_int, axis_one)
    first_count = ReduceSum <keepdims: int = 1> (first_int, one)
    later = And (equal, behind)
    later_int = Cast <to: int = 7> (later)
    later_rank_in = CumSum (later_int, axis_one)
    later_rank = Add (later_rank_in, first_count)
    equal_rank = Where (behind, later_rank, first_rank)
    in_time = LessOrEqual (equal_rank, places_left)
    equal_kept = And (equal, in_time)
    visual_kept = Or (above, equal_kept)
    visual_kept_int = Cast <to: int = 7> (visual_kept)

    row_shape = Concat <axis: int = 0> (batch, sequence)
    all_ones = Expand (one, row_shape)
    keep_mask = ScatterElements <axis: int = 1> (all_ones, visual_index, visual_kept_int)
    drop_mask = Sub (all_ones, keep_mask)
    kept_so_far = CumSum (keep_mask, axis_one)
    dropped_so_far = CumSum (drop_mask, axis_one)
    kept_place = Sub (kept_so_far, one)
    dropped_place_in = Add (dropped_so_far, length)
    dropped_place = Sub (dropped_place_in, one)
    keep_bool = Cast <to: int = 9> (keep_mask)
    place = Where (keep_bool, kept_place, dropped_place)
    counted = CumSum (all_ones, axis_one)
    position = Sub (counted, one)
    order = ScatterElements <axis: int = 1> (position, place, position)
    kept_index = Slice (order, zero, length, one)
    gather_index = Unsqueeze (kept_index, two)
    pruned_states = GatherND <batch_dims: int = 1> (hidden_states, gather_index)
}
"""


def function_body(opset: int) -> onnx.FunctionProto:
    """The operator as a function of standard ONNX operators (opset 18 or later)."""
    function = parser.parse_function(_BODY % {"opset": opset})
    function.doc_string = "Debiased visual-token pruning; arXiv 2508.17807."
    return function


def has_node(model: onnx.ModelProto) -> int:
    """The number of DebiasedTokenPrune nodes in the main graph."""
    return sum(node.op_type == OP_NAME and node.domain == DOMAIN for node in model.graph.node)


def append_function(model: onnx.ModelProto) -> None:
    """Adds the function bodies and the domain's opset to a model that has the node."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    model.functions.append(function_body(opset))
    if any(node.op_type == information.NAME and node.domain == DOMAIN for node in model.graph.node):
        model.functions.append(information.function_body(opset, DOMAIN))
    if not any(entry.domain == DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, OP_VERSION))
