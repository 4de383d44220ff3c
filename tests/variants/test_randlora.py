import contract

from lora_select.variants.randlora import RandLoRA


def test_contract(tmp_path):
    contract.check_all(RandLoRA(4), tmp_path)
    contract.check_rank_sentence(RandLoRA(4))
