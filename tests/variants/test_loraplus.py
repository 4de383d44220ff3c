import contract

from lora_select.variants.loraplus import LoRAPlus


def test_contract(tmp_path):
    contract.check_all(LoRAPlus(4), tmp_path)
    contract.check_rank_sentence(LoRAPlus(4))
