import contract

from lora_select.variants.mica import MiCA


def test_contract(tmp_path):
    contract.check_all(MiCA(4), tmp_path)
    contract.check_rank_sentence(MiCA(4))
