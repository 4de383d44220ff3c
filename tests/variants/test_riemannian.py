import contract

from lora_select.variants.riemannian import Riemannian


def test_contract(tmp_path):
    contract.check_all(Riemannian(4), tmp_path)
    contract.check_rank_sentence(Riemannian(4))
