import contract

from lora_select.variants.psoft import PSOFT


def test_contract(tmp_path):
    contract.check_all(PSOFT(4), tmp_path)
    contract.check_rank_sentence(PSOFT(4))
