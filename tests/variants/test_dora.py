from dataclasses import replace

import contract
import pytest

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.dora import DoRA


def test_contract(tmp_path):
    contract.check_all(DoRA(4), tmp_path)


def test_refused_where_it_fails():
    vllm = DoRA(4).violations(replace(contract.FREE, serve="vllm"))
    assert any("vLLM" in s and "dora" in s for s in vllm)
    assert any("int8" in s for s in DoRA(4).violations(replace(contract.FREE, quantized_base="int8")))
    assert DoRA(4).violations(replace(contract.FREE, quantized_base="nf4")) == ()


def test_a_step_of_the_magnitudes_alone_moves_by_the_inverse_row_norm():
    still = {
        "out_features": 6,
        "in_features": 9,
        "activation_energy": 0.0,
        "output_energy": 12.0,
        "weight_energy": 24.0,
    }
    empty = {name: {} for name in ("activation_subspace", "weight_left", "weight_right", "weight_both")}
    spectra = dict.fromkeys(("weight_values", "weight_input_energy", "activation_input_energy"), ())
    view = LayerStatistics(**still, **empty, **spectra, row_scale=0.0)
    assert DoRA(4).displacement(view) == pytest.approx((6 / 24) ** 0.5)
