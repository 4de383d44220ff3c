from dataclasses import replace

import contract
import starts_contract

from lora_select.variants.loftq import LoftQ

VARIANT = LoftQ(3)
ON_NF4 = replace(contract.FREE, quantized_base="nf4")


def test_contract(tmp_path):
    starts_contract.check_trained(VARIANT)
    contract.check_reload(VARIANT, tmp_path)


def test_only_on_a_quantised_base():
    assert VARIANT.violations(ON_NF4) == ()
    assert any("not quantised" in s for s in VARIANT.violations(contract.FREE))
    assert any("re-quantises" in s for s in VARIANT.violations(replace(ON_NF4, must_merge=True)))
