from dataclasses import replace

import contract
import starts_contract
import torch

from lora_select.variants.lora_one import LoRAOne

VARIANT = LoRAOne(3)


def test_contract(tmp_path):
    starts_contract.check_trained(VARIANT)
    factors = {"lora_A": torch.randn(3, contract.N), "lora_B": torch.randn(contract.M, 3)}
    contract.check_reload(VARIANT, tmp_path, factors)
    contract.check_sentences(VARIANT)
    assert (
        VARIANT.violations(replace(contract.FREE, zero_stage=3, quantized_base="nf4", allow_modified_base=False)) == ()
    )


def test_needs_directions_of_the_gradient():
    assert any(
        "needs 65 singular directions" in s for s in LoRAOne(65).violations(replace(contract.FREE, narrowest=4096))
    )
