import contract

from lora_select.variants.adalora import AdaLoRA


def test_contract(tmp_path):
    contract.check_all(AdaLoRA(4), tmp_path)
    contract.check_rank_sentence(AdaLoRA(4))
