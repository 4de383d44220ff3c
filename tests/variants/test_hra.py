import contract

from lora_select.variants.hra import HRA


def test_contract(tmp_path):
    contract.check_all(HRA(4), tmp_path)
    contract.check_rank_sentence(HRA(4))
