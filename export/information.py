"""The operator `com.edgeprune::PrincipalMagnitude`: how much of each token lies along the principal axes.

TokenCarve (arXiv 2503.10501) ranks tokens by sum_j |(U diag(S))_ij|, with U S V^T the singular value
decomposition of the tokens' hidden states X. No ONNX operator decomposes a matrix, so the graph does it in
two loops: Gram-Schmidt with pivoting gives X = L Q with orthogonal rows in Q, so that L has the same U and
S in min(V, D) columns; then one-sided Jacobi rotations turn pairs of L's columns until all are orthogonal,
which makes them the columns of U diag(S). Half as many pairs as there are columns turn at once, and a sweep
lets every pair meet once. Eight sweeps leave no more than rounding; the tests measure the ranking against a
decomposition in float64.

Like the pruning node it is a custom operator in torch and a node with a function body in ONNX.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnxscript
import torch
from onnx import defs, parser

NAME = "PrincipalMagnitude"
SWEEPS = 8

_TINY = 1e-30


@torch.library.custom_op("edgeprune::principal_magnitude", mutates_args=())
def principal_magnitude(states: torch.Tensor, sweeps: int) -> torch.Tensor:
    """sum_j |(U diag(S))_ij| of each row i, by as many Jacobi sweeps as the graph makes.

    Args:
        states: float32 [B, V, D], each scaled to a Frobenius norm of 1 first: only the ranking matters.
        sweeps: over all pairs.

    Returns:
        float32 [B, V].
    """
    batch, count, width = states.shape
    total = (states * states).sum((1, 2), keepdim=True).clamp_min(_TINY)
    states = states / total.sqrt()
    rank = min(count, width)
    lower = states.new_zeros(batch, count, rank + max(4 - rank, rank % 2))
    for number in range(rank):
        largest, pivot = (states * states).sum(2).max(1)
        row = states[torch.arange(batch), pivot] / largest.clamp_min(_TINY).sqrt().unsqueeze(1)
        along = states @ row.unsqueeze(2)
        states = states - along * row.unsqueeze(1)
        lower[..., number : number + 1] = along
    half = lower.shape[2] // 2
    left, right = lower[..., :half], lower[..., half:]
    for _ in range(sweeps * (2 * half - 1) * min(count, 1)):
        cross = (left * right).sum(1, keepdim=True)
        difference = (right * right).sum(1, keepdim=True) - (left * left).sum(1, keepdim=True)
        ratio = difference / (2 * torch.where(cross == 0, 1.0, cross))
        tangent = torch.where(ratio < 0, -1.0, 1.0) / (ratio.abs() + (ratio * ratio + 1).sqrt())
        tangent = torch.where(cross == 0, 0.0, tangent)
        cosine = 1 / (tangent * tangent + 1).sqrt()
        sine = cosine * tangent
        left, right = cosine * left - sine * right, sine * left + cosine * right
        # The first column stays, the others move one place round: every two meet once a sweep.
        left, right = (
            torch.cat([left[..., :1], right[..., :1], left[..., 1 : half - 1]], dim=2),
            torch.cat([right[..., 1:], left[..., half - 1 :]], dim=2),
        )
    return left.abs().sum(2) + right.abs().sum(2)


@principal_magnitude.register_fake
def _(states: torch.Tensor, sweeps: int) -> torch.Tensor:
    return states.new_empty(states.shape[0], states.shape[1])


def register_schema(domain: str, version: int) -> None:
    """Makes the operator's ONNX schema known to onnx, once per process."""
    if defs.has(NAME, domain=domain):
        return
    parameter = defs.OpSchema.FormalParameter
    defs.register_schema(
        defs.OpSchema(
            NAME,
            domain,
            version,
            doc="Sum of each row's absolute coordinates along the principal axes, as the function body says.",
            inputs=[parameter("states", "tensor(float)", "[B, V, D]")],
            outputs=[parameter("magnitude", "tensor(float)", "[B, V]")],
            attributes=[defs.OpSchema.Attribute("sweeps", defs.OpSchema.AttrType.INT, required=True)],
        )
    )


def translation(domain: str, version: int) -> dict[Callable[..., Any], Callable[..., Any]]:
    register_schema(domain, version)
    opset: Any = onnxscript.values.Opset(domain, version)

    def to_onnx(states, sweeps: int):  # type: ignore[no-untyped-def]
        return getattr(opset, NAME)(states, sweeps=sweeps)

    return {torch.ops.edgeprune.principal_magnitude.default: to_onnx}


_BODY = """
<opset_import: ["" : %(opset)d], domain: "%(domain)s">
PrincipalMagnitude <sweeps> (states) => (magnitude)
{
    sweep_count = Constant <value_int: int = @sweeps> ()
    zero = Constant <value_ints: ints = [0]> ()
    one = Constant <value_ints: ints = [1]> ()
    two = Constant <value_ints: ints = [2]> ()
    four = Constant <value_ints: ints = [4]> ()
    rows_and_columns = Constant <value_ints: ints = [1, 2]> ()
    tiny = Constant <value_float: float = 1e-30> ()
    nothing = Constant <value_float: float = 0.0> ()

    state_squares = Mul (states, states)
    total = ReduceSum <keepdims: int = 1> (state_squares, rows_and_columns)
    total_safe = Max (total, tiny)
    scale = Sqrt (total_safe)
    scaled = Div (states, scale)

    batch = Shape <start: int = 0, end: int = 1> (states)
    count = Shape <start: int = 1, end: int = 2> (states)
    depth = Shape <start: int = 2, end: int = 3> (states)
    rank = Min (count, depth)
    odd = Mod (rank, two)
    lacking = Sub (four, rank)
    extra = Max (lacking, odd)
    width = Add (rank, extra)
    half = Div (width, two)
    lower_shape = Concat <axis: int = 0> (batch, count, width)
    lower_0 = Expand (nothing, lower_shape)
    steps = Squeeze (rank)
    go_on = Constant <value = bool {1}> ()

    rest_n, lower = Loop (steps, go_on, scaled, lower_0) <body = project
        (int64 step, bool asked, float[b, v, d] rest, float[b, v, h] found)
        => (bool answered, float[b, v, d] rest_next, float[b, v, h] found_next)
    {
        answered = Identity (asked)
        p_0 = Constant <value_ints: ints = [0]> ()
        p_1 = Constant <value_ints: ints = [1]> ()
        p_2 = Constant <value_ints: ints = [2]> ()
        p_minus = Constant <value_float: float = -1.0> ()
        p_tiny = Constant <value_float: float = 1e-30> ()
        rest_squares = Mul (rest, rest)
        norms = ReduceSum <keepdims: int = 1> (rest_squares, p_2)
        rows = Shape <start: int = 0, end: int = 1> (rest)
        spare_shape = Concat <axis: int = 0> (rows, p_1, p_1)
        spare = Expand (p_minus, spare_shape)
        norms_and_spare = Concat <axis: int = 1> (norms, spare)
        largest = ReduceMax <keepdims: int = 1> (norms_and_spare, p_1)
        is_largest = Equal (norms, largest)
        is_largest_int = Cast <to: int = 7> (is_largest)
        axis_1 = Squeeze (p_1)
        occurrence = CumSum (is_largest_int, axis_1)
        is_first = Equal (occurrence, p_1)
        is_pivot = And (is_largest, is_first)
        pivot_column = Cast <to: int = 1> (is_pivot)
        pivot = Transpose <perm: ints = [0, 2, 1]> (pivot_column)
        pivot_row = MatMul (pivot, rest)
        largest_safe = Max (largest, p_tiny)
        length = Sqrt (largest_safe)
        row = Div (pivot_row, length)
        row_column = Transpose <perm: ints = [0, 2, 1]> (row)
        along = MatMul (rest, row_column)
        taken = Mul (along, row)
        rest_next = Sub (rest, taken)
        places_shape = Shape <start: int = 2, end: int = 3> (found)
        places_ones = Expand (p_1, places_shape)
        axis_0 = Squeeze (p_0)
        places = CumSum <exclusive: int = 1> (places_ones, axis_0)
        here = Equal (places, step)
        here_float = Cast <to: int = 1> (here)
        added = Mul (along, here_float)
        found_next = Add (found, added)
    }>

    left_0 = Slice (lower, zero, half, two)
    right_0 = Slice (lower, half, width, two)
    pairs = Sub (width, one)
    any = Min (count, one)
    rounds_each = Mul (pairs, any)
    rounds_all = Mul (rounds_each, sweep_count)
    rounds = Squeeze (rounds_all)

    left_n, right_n = Loop (rounds, go_on, left_0, right_0) <body = turn
        (int64 number, bool going, float[b, v, h] left, float[b, v, h] right)
        => (bool going_on, float[b, v, h] left_next, float[b, v, h] right_next)
    {
        going_on = Identity (going)
        i_0 = Constant <value_ints: ints = [0]> ()
        i_1 = Constant <value_ints: ints = [1]> ()
        i_2 = Constant <value_ints: ints = [2]> ()
        f_0 = Constant <value_float: float = 0.0> ()
        f_1 = Constant <value_float: float = 1.0> ()
        f_2 = Constant <value_float: float = 2.0> ()
        f_minus = Constant <value_float: float = -1.0> ()
        cross_all = Mul (left, right)
        cross = ReduceSum <keepdims: int = 1> (cross_all, i_1)
        left_squares = Mul (left, left)
        left_norm = ReduceSum <keepdims: int = 1> (left_squares, i_1)
        right_squares = Mul (right, right)
        right_norm = ReduceSum <keepdims: int = 1> (right_squares, i_1)
        difference = Sub (right_norm, left_norm)
        orthogonal = Equal (cross, f_0)
        cross_safe = Where (orthogonal, f_1, cross)
        cross_twice = Mul (cross_safe, f_2)
        ratio = Div (difference, cross_twice)
        ratio_negative = Less (ratio, f_0)
        sign = Where (ratio_negative, f_minus, f_1)
        ratio_square = Mul (ratio, ratio)
        ratio_square_1 = Add (ratio_square, f_1)
        ratio_root = Sqrt (ratio_square_1)
        ratio_abs = Abs (ratio)
        divisor = Add (ratio_abs, ratio_root)
        tangent_any = Div (sign, divisor)
        tangent = Where (orthogonal, f_0, tangent_any)
        tangent_square = Mul (tangent, tangent)
        tangent_square_1 = Add (tangent_square, f_1)
        secant = Sqrt (tangent_square_1)
        cosine = Div (f_1, secant)
        sine = Mul (cosine, tangent)
        left_cos = Mul (left, cosine)
        right_sin = Mul (right, sine)
        turned_left = Sub (left_cos, right_sin)
        left_sin = Mul (left, sine)
        right_cos = Mul (right, cosine)
        turned_right = Add (left_sin, right_cos)
        columns = Shape <start: int = 2, end: int = 3> (left)
        last = Sub (columns, i_1)
        left_first = Slice (turned_left, i_0, i_1, i_2)
        right_first = Slice (turned_right, i_0, i_1, i_2)
        left_middle = Slice (turned_left, i_1, last, i_2)
        left_next = Concat <axis: int = 2> (left_first, right_first, left_middle)
        right_rest = Slice (turned_right, i_1, columns, i_2)
        left_last = Slice (turned_left, last, columns, i_2)
        right_next = Concat <axis: int = 2> (right_rest, left_last)
    }>

    turned = Concat <axis: int = 2> (left_n, right_n)
    sizes = Abs (turned)
    magnitude = ReduceSum <keepdims: int = 0> (sizes, two)
}
"""


def function_body(opset: int, domain: str) -> onnx.FunctionProto:
    """The operator as a function of standard ONNX operators (opset 18 or later)."""
    function = parser.parse_function(_BODY % {"opset": opset, "domain": domain})
    function.doc_string = "Information of tokens by Jacobi rotations; arXiv 2503.10501."
    return function
