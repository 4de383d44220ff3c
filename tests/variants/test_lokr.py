import contract

from lora_select.variants.lokr import LoKr


def test_contract(tmp_path):
    contract.check_all(LoKr(1), tmp_path, shapes=((6, 9), (7, 8)))
    contract.check_all(LoKr(2), tmp_path / "both", shapes=((6, 9), (7, 8)))
    contract.check_all(LoKr(4), tmp_path / "dense")


def test_the_factors_are_peft_s():
    assert LoKr(8).num_parameters((576, 1536)) == 24 * 32 + 8 * (24 + 48)
    assert LoKr(8).num_parameters((7, 6)) == 1 * 2 + 7 * 3
