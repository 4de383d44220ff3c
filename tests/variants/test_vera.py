from dataclasses import replace

import closed_forms
import contract
import pytest

from lora_select.variants.vera import VeRA


def test_contract(tmp_path):
    contract.check_all(VeRA(4), tmp_path)


def test_the_bank_of_a_wider_layer_makes_a_shorter_step():
    view = closed_forms.dense_shares("vera")[0]
    wide = replace(view, widest=4 * view.in_features)
    assert VeRA(4).displacement(wide) == pytest.approx(VeRA(4).displacement(view) / 2)
