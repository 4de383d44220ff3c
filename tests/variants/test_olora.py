import contract
import starts_contract

from lora_select.initialization.linalg import qr_factors
from lora_select.variants.olora import OLoRA

VARIANT = OLoRA(3)


def test_contract():
    starts_contract.check_trained(VARIANT)
    starts_contract.check_changed_base(VARIANT, *qr_factors(contract.Base().projection.weight.detach(), 3))
