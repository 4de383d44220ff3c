"""Tangent shares of a noiseless gradient through sketches against dense projections."""

import pytest
import reference
import torch
from one_layer import run_layer
from torch import nn

from lora_select.variants import named

M, N, TOKENS, K = 24, 32, 40, 8


def problem(columns: int):
    """Eight equal microbatches: no sampling noise, so shares are those of one gradient. W and activations decay."""
    generator = torch.Generator().manual_seed(5)
    decay = torch.arange(1, N + 1).float() ** -0.8
    x = torch.randn(TOKENS, N, generator=generator) * decay
    layer = nn.Linear(N, M, bias=True)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(M, N, generator=generator) * decay)
    d = torch.randn(TOKENS, 6, generator=generator) @ torch.randn(6, M, generator=generator) / TOKENS
    record, tensors = run_layer(layer, [(x, d)] * K, columns)
    return record, tensors, layer.weight.detach().double(), (d.T @ x).double(), x.double()


def dense_share(name: str, weight, gradient, x) -> float:
    """||P_T G||^2 / ||G||^2 with the variant's own tangent operator as a dense matrix, at its real start."""
    variant = named(name, 8)
    if name == "pissa":
        u, s, vt = torch.linalg.svd(weight)
        root = s[:8].sqrt()
        theta = {"lora_A": root[:, None] * vt[:8], "lora_B": u[:, :8] * root}
    elif name == "olora":
        q, triangular = torch.linalg.qr(weight)
        theta = {"lora_A": triangular[:8], "lora_B": q[:, :8]}
    elif name == "oft":
        theta = {"oft_R": torch.zeros(N // variant.block, variant.block * (variant.block - 1) // 2).double()}
    else:
        centred = x - x.mean(0)
        vectors = torch.linalg.eigh(centred.T @ centred)[1][:, -8:]
        theta = {"lora_A": vectors.T.contiguous(), "lora_B": torch.zeros(M, 8, dtype=torch.float64)}
    return reference.projected_share(variant.tangent(weight, theta).dense(weight), gradient)


def measured(record, name: str) -> tuple[float, float]:
    """The variant's share in a record, and its error."""
    key = f"{name}@{named(name, 8).r}"
    return record.tangent_shares[key], record.tangent_shares_se[key]


@pytest.mark.parametrize("name", ["pissa", "eva", "olora", "oft"])
def test_shares_equal_dense_projections_when_the_sketch_is_complete(name):
    record, _, weight, gradient, x = problem(columns=N)
    share, error = measured(record, name)
    assert share == pytest.approx(dense_share(name, weight, gradient, x), abs=1e-4)
    assert error < 1e-4


@pytest.mark.parametrize("name", ["pissa", "eva", "olora", "oft"])
def test_shares_are_near_with_a_small_sketch(name):
    record, _, weight, gradient, x = problem(columns=12)
    assert measured(record, name)[0] == pytest.approx(dense_share(name, weight, gradient, x), abs=0.15)


def test_row_scaling_share_enters_dora():
    record, _, weight, gradient, _ = problem(columns=N)
    rows = weight / weight.norm(dim=1, keepdim=True)
    rho = float((gradient * rows).sum(1).square().sum() / gradient.square().sum())
    expected = 8 / N + (1 - 8 / N) * rho + (1 - rho) * (8 / N) / (N - 1)
    assert record.tangent_shares["dora@8"] == pytest.approx(expected, abs=1e-5)


def test_exact_statistics_of_weight_and_activations():
    record, tensors, weight, gradient, x = problem(columns=N)
    assert record.signal_energy == pytest.approx(float(gradient.square().sum()), rel=1e-5)
    assert record.noise_energy == pytest.approx(0.0, abs=1e-6 * record.signal_energy)
    assert record.activation_energy == pytest.approx(float(x.square().sum(1).mean()), rel=1e-5)
    assert record.output_energy == pytest.approx(float((x @ weight.T).square().sum(1).mean()), rel=1e-5)
    values = torch.linalg.svdvals(weight)
    assert record.weight_values == pytest.approx(values.tolist(), rel=1e-5)
    assert record.weight_stable_rank == pytest.approx(float(values.square().sum() / values[0] ** 2), rel=1e-5)
    moment = reference.second_moment(x.numpy())
    top = torch.linalg.eigvalsh(torch.as_tensor(moment)).flip(0)
    assert record.activation_values[:8] == pytest.approx(top[:8].tolist(), rel=1e-4)
    left, singular, right = (tensors[f"layer.gradient_{part}"] for part in ("left", "values", "right"))
    best = torch.linalg.svdvals(gradient)
    assert singular[:4].tolist() == pytest.approx(best[:4].tolist(), rel=1e-4)
    assert float(left[:, 0].double() @ gradient @ right[:, 0].double()) == pytest.approx(float(best[0]), rel=1e-4)
