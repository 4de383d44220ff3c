import contract

from lora_select.variants.hira import HiRA


def test_contract(tmp_path):
    contract.check_all(HiRA(4), tmp_path)
    contract.check_rank_sentence(HiRA(4))
