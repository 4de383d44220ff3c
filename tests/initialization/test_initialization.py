from pathlib import Path

import pytest
import torch
from initialization_specs import spec
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_select.errors import InputError
from lora_select.initialization import write_initialization
from lora_select.initialization.linalg import principal_factors


@pytest.mark.parametrize("shape", [(20, 12), (12, 20)])
def test_principal_factors_are_the_best_approximation_of_that_rank(shape):
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    a, b = principal_factors(weight, 4, scale=2.0)
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    torch.testing.assert_close(2.0 * (b @ a).double(), u[:, :4] * s[:4] @ vt[:4], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(a @ a.T, torch.diag(s[:4] / 2).float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(b.T @ b, torch.diag(s[:4] / 2).float(), rtol=1e-4, atol=1e-4)


def test_default_start_writes_nothing(tmp_path):
    assert write_initialization(spec("lora", 8), tmp_path, tmp_path / "none", tmp_path / "out") is None
    assert list(tmp_path.iterdir()) == []


def test_pissa_factors_cover_every_target_and_say_that_the_base_changes(tiny_model_folder, tmp_path):
    out = write_initialization(spec("pissa", 8), tiny_model_folder, tmp_path / "none", tmp_path / "factors.safetensors")
    weights = load_file(tiny_model_folder / "model.safetensors")
    factors = load_file(out)
    layers = {name.removesuffix(".weight") for name in weights if name.endswith(("q_proj.weight", "down_proj.weight"))}
    assert set(factors) == {f"{layer}.{side}" for layer in layers for side in ("lora_A", "lora_B")}
    assert len(layers) == 4
    layer = "model.layers.1.mlp.down_proj"
    residual = weights[f"{layer}.weight"] - factors[f"{layer}.lora_B"] @ factors[f"{layer}.lora_A"]
    values = torch.linalg.svdvals(weights[f"{layer}.weight"])
    torch.testing.assert_close(torch.linalg.matrix_norm(residual, 2), values[8], rtol=1e-3, atol=1e-5)
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"subtract_from_base": "true"}


def test_eva_factors_are_the_leading_directions_and_b_is_zero(tmp_path):
    vectors = torch.linalg.qr(torch.randn(16, 10))[0].contiguous()
    tensors = {
        "h.0.q_proj.activation_vectors": vectors,
        "h.0.q_proj.gradient_left": torch.zeros(5, 3),
        "h.0.k_proj.activation_vectors": vectors.clone(),
        "h.0.k_proj.gradient_left": torch.zeros(5, 3),
    }
    save_file(tensors, tmp_path / "spectra.safetensors")
    out = write_initialization(spec("eva", 4), tmp_path, tmp_path / "spectra.safetensors", tmp_path / "f.safetensors")
    factors = load_file(out)
    assert set(factors) == {"h.0.q_proj.lora_A", "h.0.q_proj.lora_B"}
    torch.testing.assert_close(factors["h.0.q_proj.lora_A"], vectors[:, :4].T)
    assert torch.equal(factors["h.0.q_proj.lora_B"], torch.zeros(5, 4))
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"subtract_from_base": "false"}


@pytest.mark.parametrize(
    ("name", "r", "modules", "sentence"),
    [
        ("pissa", 99, ("q_proj",), r"r 99 is above the smallest side 64 of model\.layers\.0\.self_attn\.q_proj"),
        ("pissa", 8, ("c_attn",), "no layer .* c_attn"),
    ],
)
def test_bad_input_is_a_sentence(tiny_model_folder, tmp_path, name, r, modules, sentence):
    with pytest.raises(InputError, match=sentence):
        write_initialization(spec(name, r, modules), tiny_model_folder, tmp_path / "none", tmp_path / "out")


def test_eva_with_too_few_directions(tmp_path):
    save_file(
        {"q_proj.activation_vectors": torch.zeros(6, 3), "q_proj.gradient_left": torch.zeros(4, 2)}, tmp_path / "s"
    )
    with pytest.raises(InputError, match="needs 4 activation directions of q_proj, and s holds 3"):
        write_initialization(spec("eva", 4), tmp_path, tmp_path / "s", tmp_path / "out")


def test_a_folder_without_safetensors(tmp_path):
    with pytest.raises(InputError, match="holds no safetensors"):
        write_initialization(spec("pissa", 4), Path(tmp_path), tmp_path / "none", tmp_path / "out")
