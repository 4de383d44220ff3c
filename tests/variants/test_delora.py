import contract

from lora_select.variants.delora import DeLoRA


def test_contract(tmp_path):
    contract.check_all(DeLoRA(4), tmp_path)
    contract.check_rank_sentence(DeLoRA(4))
