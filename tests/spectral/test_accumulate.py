"""One layer fed with planted problems: known signal, white and correlated noise."""

from functools import cache

import numpy as np
import pytest
import torch
from laws import within_standard_errors
from one_layer import run_layer
from torch import nn

M, N, TOKENS, K = 72, 96, 24, 16


def measure(rank: int, strength: float, seed: int, *, correlated: bool = False, columns: int = 16):
    """A pass over K microbatches whose mean gradient is a planted matrix of this rank and energy strength^2."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    layer = nn.Linear(N, M, bias=False)
    with torch.no_grad():
        layer.weight.copy_(normal(M, N) / N**0.5)
    planted = torch.linalg.qr(normal(M, max(rank, 1)))[0] @ torch.linalg.qr(normal(N, max(rank, 1)))[0].T
    planted *= strength / max(rank, 1) ** 0.5 * (rank > 0)
    decay = (torch.arange(1, M + 1).float() ** -0.7) if correlated else torch.ones(M)
    mixing = torch.linalg.qr(normal(M, M))[0] * decay
    microbatches = []
    for _ in range(K):
        x = normal(TOKENS, N)
        microbatches.append((x, x @ planted.T / TOKENS + normal(TOKENS, M) @ mixing.T / TOKENS))
    return run_layer(layer, microbatches, columns, seed)


@cache
def many(rank: int, strength: float, correlated: bool, seeds: int = 40):
    return [measure(rank, strength, seed, correlated=correlated)[0] for seed in range(seeds)]


@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize(("rank", "strength"), [(0, 0.0), (2, 4.0)])
def test_signal_energy_is_unbiased_and_its_error_covers(rank, strength, correlated):
    records = many(rank, strength, correlated)
    truth = strength**2
    within_standard_errors([r.signal_energy for r in records], truth)
    inside = [abs(r.signal_energy - truth) <= 2 * r.signal_energy_se for r in records]
    assert np.mean(inside) >= 0.9


@pytest.mark.parametrize("correlated", [False, True])
def test_pure_noise_has_signal_rank_zero(correlated):
    ranks = [r.signal_rank for r in many(0, 0.0, correlated)]
    assert np.mean(np.array(ranks) == 0) >= 0.95
    assert max(ranks) <= 2


def test_planted_rank_is_recovered():
    ranks = [r.signal_rank for r in many(2, 8.0, True, 12)]
    assert np.median(ranks) == 2
    assert max(ranks) <= 3


def test_planted_directions_are_recovered():
    record, tensors = measure(1, 8.0, 3)
    left, right = tensors["layer.gradient_left"][:, 0], tensors["layer.gradient_right"][:, 0]
    generator = torch.Generator().manual_seed(3)
    torch.randn(M, N, generator=generator)
    u = torch.linalg.qr(torch.randn(M, 1, generator=generator))[0][:, 0]
    v = torch.linalg.qr(torch.randn(N, 1, generator=generator))[0][:, 0]
    assert abs(left @ u) > 0.9
    assert abs(right @ v) > 0.8
    assert record.heldout_values[0] == pytest.approx(8.0, rel=0.25)


def test_noise_energy_is_that_of_the_planted_noise():
    records = many(0, 0.0, False)
    within_standard_errors([r.noise_energy for r in records], M * N / TOKENS, count=5)


def test_share_of_an_unclear_signal_is_the_null_with_an_honest_error():
    record = next(r for r in many(0, 0.0, False) if r.signal_energy <= 2 * r.signal_energy_se)
    assert record.tangent_shares["eva@8"] == pytest.approx(8 / N)
    assert record.tangent_shares_se["eva@8"] == 1.0
    assert record.tangent_shares["lora@8"] == pytest.approx(8 / N)
    assert record.tangent_shares_se["lora@8"] < 0.05
