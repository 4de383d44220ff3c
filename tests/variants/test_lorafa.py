import contract

from lora_select.variants.lorafa import LoRAFA


def test_contract(tmp_path):
    contract.check_all(LoRAFA(4), tmp_path)
    contract.check_rank_sentence(LoRAFA(4))
