import contract

from lora_select.variants.gralora import GraLoRA


def test_contract(tmp_path):
    contract.check_all(GraLoRA(6, blocks=3), tmp_path)
    contract.check_rank_sentence(GraLoRA(6, blocks=3))
    contract.check_indivisible(GraLoRA(6, blocks=3))
