import contract

from lora_select.variants.osf import OSF


def test_contract(tmp_path):
    contract.check_all(OSF(), tmp_path)
