from dataclasses import replace

import contract
import pytest
import starts_contract
import torch

from lora_select.initialization.linalg import oriented_factors
from lora_select.variants.corda import CorDAInstruction, CorDAKnowledge


def check_start(variant, *, smallest: bool) -> None:
    directions, values = torch.eye(contract.N)[:, :5], torch.linspace(2, 1, 5)
    weight = contract.Base().projection.weight.detach()
    factors = oriented_factors(weight, directions, values, 3, 1.0, smallest=smallest)
    starts_contract.check_changed_base(variant, *factors)


def test_contract_of_the_instruction_previewed():
    starts_contract.check_trained(CorDAInstruction(3))
    check_start(CorDAInstruction(3), smallest=False)


def test_contract_of_the_knowledge_preserved():
    starts_contract.check_trained(CorDAKnowledge(3))
    check_start(CorDAKnowledge(3), smallest=True)


@pytest.mark.parametrize("variant", [CorDAInstruction(3), CorDAKnowledge(3)], ids=["corda_ipm", "corda_kpm"])
def test_needs_measured_inputs(variant):
    assert any("activation directions" in s for s in variant.violations(replace(contract.FREE, directions=0)))
