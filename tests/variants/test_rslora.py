import contract

from lora_select.variants.rslora import RsLoRA


def test_contract(tmp_path):
    contract.check_all(RsLoRA(4), tmp_path)


def test_equals_lora_at_the_reference_rank():
    assert RsLoRA(16).scale == 2.0
    assert RsLoRA(64).scale == 1.0
