import contract

from lora_select.variants.miss import MiSS


def test_contract(tmp_path):
    contract.check_all(MiSS(4), tmp_path)
    contract.check_rank_sentence(MiSS(4))
