import contract

from lora_select.variants.oft import OFT


def test_contract(tmp_path):
    contract.check_all(OFT(3), tmp_path)
    contract.check_indivisible(OFT(3))
