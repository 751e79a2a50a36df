"""GPTQ against its written algorithm, against rounding to the nearest, and on inputs that are no inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from edgeprune.errors import NumericsError
from edgeprune.exporter.precision import gptq
from edgeprune.exporter.precision.gptq import quantise_gptq

SEEDS = st.integers(0, 2**32)


def widest(bits: int) -> gptq.ChooseScale:
    """The scale with which no value is clipped."""
    return lambda values: values.abs().amax(dim=1) / (2 ** (bits - 1) - 1)


def nearest(weight: torch.Tensor, block: int, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values [K, N] and scales [K / block, N] without regard to inputs."""
    scales = torch.stack([widest(bits)(part) for part in weight.split(block, dim=1)])
    whole = weight.T / scales.repeat_interleave(block, dim=0)
    return whole.round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).to(torch.int8), scales


def by_elimination(weight: torch.Tensor, hessian: torch.Tensor, block: int, bits: int) -> torch.Tensor:
    """The algorithm as it is written: the rounded column's error is spread over the columns behind it by the
    inverse Hessian, from which the column is then eliminated. float64 [K, N], before rounding.
    """
    left = weight.double().clone()
    inverse = torch.linalg.inv(hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian)))
    values = []
    for column in range(weight.shape[1]):
        if column % block == 0:
            scale = widest(bits)(left[:, column : column + block])
        values.append(left[:, column] / scale)
        whole = values[-1].round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        error = (left[:, column] - whole * scale) / inverse[column, column]
        left -= error[:, None] * inverse[column]
        inverse -= torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
        inverse[column, column] = 1  # never read again
    return torch.stack(values)


def correlated(k: int, seed: int) -> torch.Tensor:
    """The Hessian [K, K], float64, of inputs that a few directions explain."""
    chance = torch.Generator().manual_seed(seed)
    few = torch.randn(4 * k, max(1, k // 4), generator=chance, dtype=torch.float64)
    mixed = few @ torch.randn(few.shape[1], k, generator=chance, dtype=torch.float64)
    x = mixed + 0.1 * torch.randn(4 * k, k, generator=chance, dtype=torch.float64)
    return x.T @ x


def random(n: int, k: int, seed: int) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def error(weight: torch.Tensor, found: tuple[torch.Tensor, torch.Tensor], hessian: torch.Tensor) -> float:
    values, scales = found
    block = len(values) // len(scales)
    whole = (values * scales.repeat_interleave(block, dim=0)).T
    lost = (weight - whole).double()
    return float((lost @ hessian * lost).sum())


@given(st.integers(1, 6), st.integers(1, 5), st.sampled_from([16, 32, 160]), st.sampled_from([4, 8]), SEEDS)
def test_without_correlation_it_rounds_to_the_nearest(
    n: int, blocks: int, block: int, bits: int, seed: int
) -> None:
    weight = random(n, blocks * block, seed)
    values, scales = quantise_gptq(weight, torch.eye(blocks * block), block, bits, widest(bits))
    wanted = nearest(weight, block, bits)
    assert torch.equal(scales, wanted[1])
    assert torch.equal(values, wanted[0])


@given(st.integers(1, 6), st.integers(1, 4), st.sampled_from([8, 16]), st.sampled_from([4, 8]), SEEDS)
def test_it_is_the_written_algorithm(n: int, blocks: int, block: int, bits: int, seed: int) -> None:
    weight, hessian = random(n, blocks * block, seed), correlated(blocks * block, seed)
    values, _ = quantise_gptq(weight, hessian, block, bits, widest(bits))
    wanted = by_elimination(weight, hessian, block, bits)
    # In the middle between two integers, float32 may go the other way.
    assume(float((wanted % 1 - 0.5).abs().min()) > 1e-4)
    assert torch.equal(values, wanted.round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).to(torch.int8))


@given(st.sampled_from([32, 64]), st.sampled_from([16, 32]), st.sampled_from([4, 8]), SEEDS)
def test_its_error_is_less_than_that_of_the_nearest(k: int, block: int, bits: int, seed: int) -> None:
    weight, hessian = random(24, k, seed), correlated(k, seed)
    found = quantise_gptq(weight, hessian, block, bits, widest(bits))
    assert error(weight, found, hessian) < error(weight, nearest(weight, block, bits), hessian)


@pytest.mark.parametrize("block", [32, 512])
def test_errors_reach_columns_of_other_panels(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = random(5, 512, 0), correlated(512, 0)
    found = quantise_gptq(weight, hessian, block, 4, widest(4))
    for panel in (1, 512):
        monkeypatch.setattr(gptq, "_PANEL", panel)
        other = quantise_gptq(weight, hessian, block, 4, widest(4))
        assert (found[0] != other[0]).float().mean() < 0.01
    assert error(weight, found, hessian) < 0.5 * error(weight, nearest(weight, block, 4), hessian)


def test_inputs_that_never_came_are_rounded_to_the_nearest() -> None:
    weight, hessian = random(3, 32, 0), correlated(32, 0)
    dead = [0, 7, 31]
    hessian[dead] = 0
    hessian[:, dead] = 0
    values, scales = quantise_gptq(weight, hessian, 32, 4, lambda _: torch.full((3,), 0.25))
    assert torch.equal(scales, torch.full((1, 3), 0.25))
    assert torch.equal(values[dead], (weight.T[dead] / 0.25).round().clamp(-8, 7).to(torch.int8))


def test_a_layer_that_saw_nothing_is_rounded_to_the_nearest() -> None:
    weight = random(3, 32, 0)
    values, _ = quantise_gptq(weight, torch.zeros(32, 32), 16, 4, widest(4))
    assert torch.equal(values, nearest(weight, 16, 4)[0])


def test_one_direction_of_inputs_is_damped_until_it_factors() -> None:
    x = torch.full((64,), 1e4) + random(1, 64, 0)[0]
    values, scales = quantise_gptq(random(3, 64, 1), 1e9 * torch.outer(x, x), 32, 4, widest(4))
    assert bool(scales.isfinite().all())
    assert len(values.unique()) > 8


def test_a_block_of_zeros_stays_zero() -> None:
    weight = random(3, 32, 0)
    weight[1, :16] = 0
    values, scales = quantise_gptq(weight, torch.eye(32), 16, 4, widest(4))
    assert scales[0, 1] == 0
    assert not bool(values[:16, 1].any())
    assert torch.equal(values[16:], nearest(weight, 16, 4)[0][16:])


def test_the_scale_is_used_as_it_will_be_stored() -> None:
    weight, hessian = random(8, 64, 0), correlated(64, 0)
    seen = []

    def coarse(values: torch.Tensor) -> torch.Tensor:
        seen.append(values.clone())
        return widest(4)(values).to(torch.float8_e4m3fn).float()

    found = quantise_gptq(weight, hessian, 32, 4, coarse)
    assert [values.shape for values in seen] == [(8, 32), (8, 32)]
    assert torch.equal(seen[0], weight[:, :32])
    assert not torch.equal(seen[1], weight[:, 32:]), (
        "the second block is chosen behind the first one's errors"
    )
    assert torch.equal(found[1], torch.stack([coarse(values) for values in seen[:2]]))


@pytest.mark.parametrize(
    ("hessian", "message"),
    [
        (torch.full((16, 16), torch.nan), r"no finite second moments: expected finite activations"),
        (100 - 99 * torch.eye(16), r"not positive even when damped by 10: expected a sum of x x\^T"),
    ],
)
def test_what_is_no_hessian_is_named(hessian: torch.Tensor, message: str) -> None:
    with pytest.raises(NumericsError, match=message):
        quantise_gptq(random(3, 16, 0), hessian, 16, 4, widest(4))


def test_blocks_have_to_fill_the_rows() -> None:
    with pytest.raises(ValueError, match="48 input features are no multiple of 32"):
        quantise_gptq(random(3, 48, 0), torch.eye(48), 32, 4, widest(4))
