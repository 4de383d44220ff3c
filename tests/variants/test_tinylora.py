import contract

from lora_select.variants.tinylora import TinyLoRA


def test_contract(tmp_path):
    contract.check_all(TinyLoRA(4, u=5), tmp_path)
    contract.check_rank_sentence(TinyLoRA(4, u=5))
