from dataclasses import replace

import contract

from lora_select.variants.lora import LoRA


def test_contract(tmp_path):
    contract.check_all(LoRA(4), tmp_path)


def test_vllm_serves_up_to_rank_512():
    high = replace(contract.FREE, serve="vllm", narrowest=4096)
    assert LoRA(512).violations(high) == ()
    assert any("512" in s and "520" in s for s in LoRA(520).violations(high))
