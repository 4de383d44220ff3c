import contract

from lora_select.variants.ia3 import IA3


def test_contract(tmp_path):
    contract.check_all(IA3(), tmp_path)
