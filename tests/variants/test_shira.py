import contract

from lora_select.variants.shira import SHiRA


def test_contract(tmp_path):
    contract.check_all(SHiRA(2), tmp_path)
