from dataclasses import replace

import contract

from lora_select.variants.dora import DoRA


def test_contract(tmp_path):
    contract.check_all(DoRA(4), tmp_path)


def test_refused_where_it_fails():
    vllm = DoRA(4).violations(replace(contract.FREE, serve="vllm"))
    assert any("vLLM" in s and "use_dora" in s for s in vllm)
    assert any("int8" in s for s in DoRA(4).violations(replace(contract.FREE, quantized_base="int8")))
    assert DoRA(4).violations(replace(contract.FREE, quantized_base="nf4")) == ()
