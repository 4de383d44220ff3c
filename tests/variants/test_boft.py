import contract

from lora_select.variants.boft import BOFT


def test_contract(tmp_path):
    contract.check_all(BOFT(3), tmp_path)
    contract.check_indivisible(BOFT(3))
