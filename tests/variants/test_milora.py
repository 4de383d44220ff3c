import contract
import starts_contract

from lora_select.initialization.linalg import minor_factors
from lora_select.variants.milora import MiLoRA

VARIANT = MiLoRA(3)


def test_contract():
    starts_contract.check_trained(VARIANT)
    starts_contract.check_changed_base(VARIANT, *minor_factors(contract.Base().projection.weight.detach(), 3, 1.0))
