import contract

from lora_select.variants.road import RoAd


def test_contract(tmp_path):
    contract.check_all(RoAd(2), tmp_path, shapes=((6, 9), (8, 6)))
    contract.check_all(RoAd(6), tmp_path / "wide", shapes=((6, 9), (12, 9)))
    contract.check_indivisible(RoAd(2))
