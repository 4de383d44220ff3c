import contract

from lora_select.variants.unilora import UniLoRA


def test_contract(tmp_path):
    contract.check_all(UniLoRA(4, length=50), tmp_path)
    contract.check_rank_sentence(UniLoRA(4, length=50))
