from dataclasses import replace

import contract
import starts_contract
import torch

from lora_select.initialization.linalg import oriented_factors
from lora_select.variants.corda_ipm import CorDAInstruction

VARIANT = CorDAInstruction(3)


def test_contract():
    starts_contract.check_trained(VARIANT)
    directions, values = torch.eye(contract.N)[:, :5], torch.linspace(2, 1, 5)
    factors = oriented_factors(contract.Base().projection.weight.detach(), directions, values, 3, 1.0, smallest=False)
    starts_contract.check_changed_base(VARIANT, *factors)


def test_needs_measured_inputs():
    assert any("activation directions" in s for s in VARIANT.violations(replace(contract.FREE, directions=0)))
