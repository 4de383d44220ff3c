"""Streamed second moments equal those of all tokens at once; ranks add up; shared inputs are summed once."""

import pytest
import torch

from lora_select import models
from lora_select.data.labels.tokens import TokenRow
from lora_select.errors import InputError
from lora_select.retention import moments as module
from lora_select.retention.forms import linear_modules
from lora_select.retention.moments import load, save, stream

NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def token_rows(count=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 30, (count,), generator=generator).tolist()
    ids = [tuple(torch.randint(4, 250, (length,), generator=generator).tolist()) for length in lengths]
    return [TokenRow(f"r{index}", row, (False, *[True] * (len(row) - 1))) for index, row in enumerate(ids)]


@pytest.fixture
def model(tiny_model_folder):
    return models.load_model(str(tiny_model_folder))


def adapted(model):
    return {name: layer for name, layer in linear_modules(model).items() if name.endswith(NAMES)}


def direct(model, layers, rows):
    """x x^T of every layer from each row alone, without padding."""
    found = dict.fromkeys(layers, 0.0)
    hooks = []
    for name, layer in layers.items():

        def look(_module, inputs, name=name):
            x = inputs[0][0].double()
            found[name] = found[name] + x.T @ x

        hooks.append(layer.register_forward_pre_hook(look))
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([row.input_ids]))
    for hook in hooks:
        hook.remove()
    return found


def test_streaming_equals_one_row_at_a_time_in_float64_with_first_tokens_and_without_padding(model):
    layers, rows = adapted(model), token_rows()
    made, expected = stream(model, layers, rows, 3), direct(model, layers, rows)
    assert made.tokens == sum(len(row.input_ids) for row in rows)
    for name in layers:
        torch.testing.assert_close(made.of(name).products.double(), expected[name], rtol=1e-4, atol=1e-4)
        assert made.of(name).energy == pytest.approx(float(expected[name].trace()), rel=1e-5)


def test_inputs_that_layers_share_are_summed_once(model):
    made = stream(model, adapted(model), token_rows(), 3)
    owners = {name.rpartition(".")[2]: owner.rpartition(".")[2] for name, owner in made.owner.items() if ".0." in name}
    first = {owner: [name for name, whose in owners.items() if whose == owner] for owner in set(owners.values())}
    assert sorted(map(sorted, first.values())) == [
        ["down_proj"],
        ["gate_proj", "up_proj"],
        ["k_proj", "q_proj", "v_proj"],
        ["o_proj"],
    ]
    assert len(made.sums) == 8


@pytest.mark.parametrize("width", [2048, 32])
def test_two_ranks_add_up_to_the_whole(model, width):
    rows = token_rows(seed=4)
    made = [
        stream(model, adapted(model), part, 3, exact_width=width, columns=24) for part in (rows, rows[:4], rows[4:])
    ]
    both = made[1].merged(made[2])
    for name, whole in made[0].sums.items():
        assert whole.omega is None or whole.products.shape[1] == 24
        torch.testing.assert_close(both.sums[name].products, whole.products, rtol=1e-4, atol=1e-4)
        assert (both.sums[name].tokens, both.sums[name].energy) == (whole.tokens, pytest.approx(whole.energy, rel=1e-5))
    assert any(one.omega is not None for one in both.sums.values()) == (width == 32)


def test_under_bf16_the_sums_are_exact(model):
    layers, rows = adapted(model), token_rows()
    exact = stream(model, layers, rows, 3)
    made = stream(model.bfloat16(), layers, rows, 3)
    for name, sums in made.sums.items():
        assert sums.products.dtype == torch.float64
        assert (sums.products - exact.sums[name].products).norm() < 0.03 * exact.sums[name].products.norm()


def test_a_base_in_nf4_is_read_through_its_inputs(tiny_model_folder):
    model = models.load_model(str(tiny_model_folder), quantize="nf4")
    made = stream(model, adapted(model), token_rows(), 3)
    assert len(made.sums) == 8
    assert all(bool(one.products.isfinite().all()) and one.energy > 0 for one in made.sums.values())


def test_what_is_not_finite_is_named_and_no_rows_are_refused(model):
    with torch.no_grad():
        model.get_submodule("model.layers.1.mlp.gate_proj").weight[0, 0] = float("inf")
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.down_proj holds NaN or infinity"):
        stream(model, adapted(model), token_rows(), 3)
    with pytest.raises(InputError, match="no rows"):
        stream(model, adapted(model), [], 3)


def test_the_output_layer_sees_all_positions_when_it_is_adapted(model):
    rows = token_rows()
    made = stream(model, {"lm_head": linear_modules(model)["lm_head"]}, rows, 3)
    assert made.tokens == sum(len(row.input_ids) for row in rows)


def test_sums_are_kept_and_read_again_and_other_files_are_refused(model, tmp_path):
    made = stream(model, adapted(model), token_rows(), 3, exact_width=32, columns=24)
    save(made, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert again.owner == made.owner
    for name, sums in made.sums.items():
        assert torch.equal(again.sums[name].products, sums.products)
        assert (again.sums[name].omega is None) == (sums.omega is None)
        assert again.sums[name].tokens == sums.tokens
    (tmp_path / "other.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="holds no second moments"):
        load(tmp_path / "other.safetensors")


def test_batches_of_any_size_give_the_same(model, monkeypatch):
    layers, rows = adapted(model), token_rows()
    whole = stream(model, layers, rows, 3)
    monkeypatch.setattr(module, "BATCH_ROWS", 1)
    alone = stream(model, layers, rows, 3)
    for name, sums in whole.sums.items():
        torch.testing.assert_close(alone.sums[name].products, sums.products, rtol=1e-4, atol=1e-4)


def test_a_loud_first_token_leaves_the_small_eigenvalues_right():
    generator = torch.Generator().manual_seed(5)
    first = 3e3 * torch.randn(1, 48, generator=generator)
    made = module.InputSums(torch.zeros(48, 48, dtype=torch.float64), 0.0, 0)
    batches = []
    for _ in range(20):
        quiet = torch.randn(90, 48, generator=generator) * torch.logspace(0, -2, 48)
        batches.append(torch.cat([first.expand(8, -1), quiet]))
        made.add(batches[-1])
    every = torch.cat(batches).double()
    expected = torch.linalg.eigvalsh(every.T @ every)
    torch.testing.assert_close(torch.linalg.eigvalsh(made.products)[:40], expected[:40], rtol=1e-3, atol=0)
    assert made.energy == pytest.approx(float(every.square().sum()), rel=1e-6)
