import contract

from lora_select.variants.road import RoAd


def test_contract(tmp_path):
    contract.check_all(RoAd(2), tmp_path, shapes=((6, 9), (8, 6)))
    contract.check_count(RoAd(6))
    contract.check_function(RoAd(6))
    contract.check_gradient(RoAd(6), at_start=False)
    contract.check_indivisible(RoAd(2))
