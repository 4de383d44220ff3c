from dataclasses import replace

import contract
import torch

from lora_select.variants.eva import EVA


def test_contract(tmp_path):
    contract.check_all(EVA(4), tmp_path)


def test_reload_with_measured_factors(tmp_path):
    rows = torch.linalg.qr(torch.randn(contract.N, 4, dtype=torch.float64))[0].T
    factors = {"lora_A": rows, "lora_B": torch.zeros(contract.M, 4, dtype=torch.float64)}
    contract.check_reload(EVA(4), tmp_path, factors)


def test_refused_without_enough_directions_or_sharded():
    assert any("r 4" in s and "kept 3" in s for s in EVA(4).violations(replace(contract.FREE, directions=3)))
    assert EVA(4).violations(replace(contract.FREE, zero_stage=3)) == ()
