"""GPTQ: a linear layer's weight in few bits, rounded with an eye on the inputs that it meets.

Method: Frantar et al., arXiv 2210.17323, in the form that Chee et al. show to be equal (arXiv 2307.13304,
LDLQ), which needs no inverse: with H = U D U^T, U unit upper triangular, the error tr(E H E^T) of a layer is
the sum over k of D[k] |E[:, k] + sum over j < k of E[:, j] U[j, k]|^2, so every column is rounded to the
nearest of what it and the errors in front of it add up to.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from edgeprune.errors import NumericsError

# Of the mean of the Hessian's diagonal, as the method's authors have it.
_DAMPING = 0.01
# Rows that are rounded one by one before their errors reach the others in one product.
_PANEL = 128

ChooseScale = Callable[[torch.Tensor], torch.Tensor]


def quantise_gptq(
    weight: torch.Tensor, hessian: torch.Tensor, block: int, bits: int, choose_scale: ChooseScale
) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers and scales of a weight, for inputs like those that were seen.

    Takes three times the memory of `hessian`, and three times that of `weight` as float32, for a while.

    Args:
        weight: [N, K], N output and K input features.
        hessian: [K, K], float32 or float64, the sum of x x^T over inputs x [K], up to a factor. An input
            feature that was always 0 is rounded to the nearest.
        block: input features that share a scale; divides K.
        bits: 4 or 8.
        choose_scale: the scale [N] of values [N, block], called when a block's first column is reached, with
            the values that are to be rounded. Errors are measured with what it returns: it rounds to the
            dtype that will be stored. A scale of 0 makes its values 0.

    Returns:
        The integers, int8 [K, N], of -2^(bits - 1) to 2^(bits - 1) - 1, and the scales, float32
        [K / block, N].

    Raises:
        NumericsError: the Hessian is not finite.
    """
    n, k = weight.shape
    if k % block:
        raise ValueError(f"{k} input features are no multiple of {block}")
    feedback = _feedback(hessian).float()
    wanted = weight.detach().float().T.contiguous()
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    values = torch.empty(k, n, dtype=torch.int8)
    scales = torch.empty(k // block, n)
    errors = torch.empty_like(wanted)
    for number, start in enumerate(range(0, k, block)):
        end = start + block
        moved = feedback[:start, start:end].T @ errors[:start]
        # Where the block's values were best if none of them were rounded: each gives way to the others, too.
        within = feedback[start:end, start:end].T
        free = torch.linalg.solve_triangular(within, moved, upper=False, unitriangular=True)
        scale = choose_scale((wanted[start:end] + free).T).float()
        target = moved.add_(wanted[start:end])
        scales[number] = scale
        divisor = torch.where(scale == 0, 1, scale)
        for first in range(start, end, _PANEL):
            last = min(first + _PANEL, end)
            panel = target[first - start : last - start]
            panel += feedback[start:first, first:last].T @ errors[start:first]
            for row in range(first, last):
                value = panel[row - first] + feedback[first:row, row] @ errors[first:row]
                whole = (value / divisor).round_().clamp_(low, high)
                values[row] = whole
                # Against the weight itself: what was added is the errors' own share of the sum.
                errors[row] = wanted[row] - whole * scale
    return values, scales


def _feedback(hessian: torch.Tensor) -> torch.Tensor:
    """U of the Hessian's U D U^T, [K, K], damped as far as it has to be."""
    if not bool(torch.isfinite(hessian).all()):
        raise NumericsError(
            "the inputs of a layer have no finite second moments: expected finite activations; try another "
            "dtype of the model"
        )
    diagonal = hessian.diagonal()
    mean = float(diagonal.mean()) or 1.0
    # Cholesky makes L L^T; with rows and columns the other way round this is upper times lower.
    turned = hessian.flip(0, 1)
    damping = 0.0
    for factor in (1, 9, 90, 900):
        damping += factor * _DAMPING * mean
        turned.diagonal().add_(factor * _DAMPING * mean)
        lower, failed = torch.linalg.cholesky_ex(turned)
        if not bool(failed):
            break
    else:
        raise NumericsError(
            f"the second moments of a layer's inputs are not positive even when damped by {damping:.3g}: "
            "expected a sum of x x^T; calibrate again with other inputs"
        )
    lower /= lower.diagonal().clone()
    return lower.flip(0, 1)
