from dataclasses import replace

import contract
import pytest
import reference
import starts_contract
import torch

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.lora_ga import LoRAGA

VARIANT = LoRAGA(3)


def test_contract():
    starts_contract.check_trained(VARIANT)
    a, b = torch.linalg.qr(torch.randn(contract.N, 3))[0].T, torch.linalg.qr(torch.randn(contract.M, 3))[0]
    starts_contract.check_changed_base(VARIANT, a, b)


def test_needs_twice_the_rank():
    narrow = VARIANT.violations(replace(contract.FREE, narrowest=5))
    assert any("needs 6 singular directions" in s and "has 5" in s for s in narrow)
    wide = LoRAGA(40).violations(replace(contract.FREE, narrowest=4096))
    assert any("keeps 64" in s for s in wide)


def test_share_and_displacement_of_planted_numbers():
    """Dense: tangent projection of a gradient on its own start, and a sign step that the bound covers."""
    m, n, r = 20, 24, 3
    variant = LoRAGA(r)
    gradient, weight, x = (torch.randn(*shape, dtype=torch.float64) for shape in ((m, n), (m, n), (50, n)))
    u, s, vt = torch.linalg.svd(gradient, full_matrices=False)
    c = m**0.25 / 4
    theta = {"lora_A": c * vt[:r], "lora_B": c * u[:, r : 2 * r]}
    whole = float(s.square().sum())
    energy = {k: float(s[:k].square().sum()) / whole for k in (r, 2 * r)}
    z = torch.linalg.eigh(x.T @ x / 50)[1].flip(1)
    view = LayerStatistics(
        out_features=m,
        in_features=n,
        activation_energy=float(x.square().sum(1).mean()),
        output_energy=float((x @ weight.T).square().sum(1).mean()),
        weight_energy=1.0,
        weight_values=(),
        weight_input_energy=(),
        activation_input_energy=tuple((x @ z).square().mean(0).tolist()),
        row_scale=0.0,
        activation_subspace={},
        weight_left={},
        weight_right={},
        weight_both={},
        gradient_left=energy,
        gradient_right=energy,
    )
    operator = variant.tangent(weight, theta)
    assert variant.tangent_share(view) == pytest.approx(energy[2 * r])
    assert reference.projected_share(operator.dense(weight), gradient) == pytest.approx(energy[2 * r])
    moved = []
    for _ in range(100):
        step = {
            name: torch.randn(shape, dtype=torch.float64).sign() for name, shape in operator.parameter_shapes.items()
        }
        moved.append((x @ operator.matvec(step).T).square().mean())
    rms = float((sum(moved) / len(moved) / (x @ weight.T).square().mean()).sqrt())
    assert rms <= variant.displacement(view) <= 3 * rms
    unmeasured = replace(view, gradient_right={})
    assert variant.tangent_share_spread(unmeasured) == 1.0
