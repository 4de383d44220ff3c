import contract

from lora_select.variants.waveft import WaveFT


def test_contract(tmp_path):
    contract.check_all(WaveFT(20), tmp_path)
