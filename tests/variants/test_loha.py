import contract

from lora_select.variants.loha import LoHa


def test_contract(tmp_path):
    contract.check_all(LoHa(4), tmp_path)
    contract.check_rank_sentence(LoHa(4))
