import contract

from lora_select.variants.c3a import C3A


def test_contract(tmp_path):
    contract.check_all(C3A(3), tmp_path, rtol=1e-5)
    contract.check_indivisible(C3A(3))
