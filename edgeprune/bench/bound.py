"""The bound on the gain: the share of a prefill's FLOPs that pruning leaves, by counting matrix products.

Pruning cannot be judged by its speed-up alone: keeping 30 % of the visual tokens promises no more than
what the layers behind the stage cost. Say the measured speed-up beside this bound. Norms, softmax,
embeddings and the vision tower are not counted, and memory traffic shrinks otherwise than FLOPs do, so a
measurement may lie on either side.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune.errors import InputError


def layer_flops(tokens: int, hidden: int, intermediate: int, heads: int, kv_heads: int, head_dim: int) -> int:
    """FLOPs of one decoder layer in a prefill of n tokens, a multiply-add counting as two.

    2 n (2 d (q + kv) + 3 d m) + 4 n^2 q with q = heads * head_dim and kv = kv_heads * head_dim: the four
    projections with grouped-query attention, the three matrices of the gated MLP, and the two products of
    attention over all pairs (a causal mask saves nothing where they are all computed). With q = kv = d it
    is the familiar 2 n (4 d^2 + 3 d m) + 4 n^2 d.

    Args:
        tokens: n >= 0.
        hidden: d, the width of the hidden states.
        intermediate: m, the width of the gated MLP.
        heads, kv_heads, head_dim: of the attention.

    Raises:
        InputError: tokens is negative, or a size is not positive.
    """
    if tokens < 0:
        raise InputError(f"the number of tokens is {tokens}: expected 0 or more; check the prompt's length")
    sizes = {
        "hidden": hidden,
        "intermediate": intermediate,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
    }
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name} is {size}: expected at least 1; take it from the model's config")
    query, key = heads * head_dim, kv_heads * head_dim
    return 2 * tokens * (2 * hidden * (query + key) + 3 * hidden * intermediate) + 4 * tokens**2 * query


def prefill_bound(
    layers: int,
    sequence: int,
    stages: Sequence[tuple[int, int]],
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
) -> float:
    """The pruned prefill's FLOPs as a share of the full one's, decoder layers only.

    With one stage at L that leaves S' of S tokens: (L f(S) + (N - L) f(S')) / (N f(S)), f being
    `layer_flops`. LLaVA-1.5-7B with S = 660, pruned at 2 to 30 % of its 576 visual tokens, is at 0.42.

    Args:
        layers: N, decoder layers.
        sequence: S >= 1, tokens of the prompt, visual ones included.
        stages: (layer, tokens after it) of each pruning stage, in order; tokens are dropped before that
            layer. None: nothing is pruned, and the share is 1.
        hidden, intermediate, heads, kv_heads, head_dim: as for `layer_flops`.

    Returns:
        A share above 0, at most 1.

    Raises:
        InputError: layers do not ascend within 1..N-1, a stage leaves no token or more than it got, or a
            size is not positive.
    """
    if sequence < 1 or layers < 1:
        raise InputError(
            f"{sequence} tokens in {layers} layers: expected at least 1 of each; check the model"
        )

    def flops(tokens: int) -> int:
        return layer_flops(tokens, hidden, intermediate, heads, kv_heads, head_dim)

    pruned, done, tokens = 0, 0, sequence
    for layer, after in stages:
        if not done < layer < layers:
            raise InputError(
                f"a stage at layer {layer} follows layer {done} of {layers}: expected layers that ascend "
                f"from 1 to {layers - 1}; put the stages in order"
            )
        if not 1 <= after <= tokens:
            raise InputError(
                f"the stage at layer {layer} leaves {after} of {tokens} tokens: expected from 1 to {tokens}; "
                "count all tokens that stay, text included"
            )
        pruned += (layer - done) * flops(tokens)
        done, tokens = layer, after
    pruned += (layers - done) * flops(tokens)
    return pruned / (layers * flops(sequence))


def speed_up(share: float) -> float:
    """The speed-up that a share of the FLOPs allows: 1 / share.

    Raises:
        InputError: the share is not above 0.
    """
    if not share > 0:
        raise InputError(f"the share is {share}: expected a number above 0, as prefill_bound() gives")
    return 1 / share
