import contract

from lora_select.variants.vera import VeRA


def test_contract(tmp_path):
    contract.check_all(VeRA(4), tmp_path)
