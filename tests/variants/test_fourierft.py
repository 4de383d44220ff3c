import contract

from lora_select.variants.fourierft import FourierFT


def test_contract(tmp_path):
    contract.check_all(FourierFT(20), tmp_path, rtol=1e-5)
