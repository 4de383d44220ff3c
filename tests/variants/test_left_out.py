"""Reasons for leaving something out that can be shown are shown."""

import contract
import peft
import torch

from lora_select.variants import LEFT_OUT


def output_of_first_row(model, beside: float):
    x = torch.ones(2, 9, dtype=torch.float64)
    x[1] = beside * torch.arange(9)
    return model.eval()(x)[0]


def test_lily_s_output_depends_on_the_rows_beside_it():
    config = peft.LilyConfig(r=4, num_B=2, target_modules=["projection"])
    model = peft.get_peft_model(contract.Base().float(), config).double()
    contract.scramble(model)
    assert (output_of_first_row(model, 1.0) - output_of_first_row(model, -1.0)).abs().max() > 1e-3
    assert "depends on the rows beside it" in LEFT_OUT["lily"]


def test_pvera_has_another_weight_in_every_training_step():
    config = peft.PveraConfig(r=4, target_modules=["projection"])
    model = peft.get_peft_model(contract.Base().float(), config).double().train()
    contract.scramble(model)
    x = torch.ones(1, 9, dtype=torch.float64)
    assert (model(x) - model(x)).abs().max() > 1e-6
    assert "noise" in LEFT_OUT["pvera"]
