"""Each start is the published one: by its defining identity, on real files."""

import math

import pytest
import torch
from initialization_specs import spec
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_select.errors import InputError
from lora_select.initialization import write_initialization
from lora_select.initialization.linalg import minor_factors, oriented_factors, qr_factors

LAYER = "model.layers.1.mlp.down_proj"


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(20, 12), (12, 20)])
def test_minor_factors_leave_the_best_approximation_of_the_other_rank(shape):
    weight = normal(*shape)
    a, b = minor_factors(weight, 4, scale=0.5)
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(weight - 0.5 * (b @ a).double(), u[:, :8] * s[:8] @ vt[:8], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(a @ a.T, torch.diag(s[8:] / 0.5).float(), rtol=1e-4, atol=1e-4)


def test_qr_factors_are_the_projection_on_the_first_columns():
    weight = normal(10, 14)
    a, b = qr_factors(weight, 3)
    columns = torch.linalg.qr(weight[:, :3])[0]
    torch.testing.assert_close((b @ a).double(), columns @ columns.T @ weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(b.T @ b, torch.eye(3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize("shape", [(10, 14), (14, 10)])
def test_corda_is_the_dense_decomposition(shape, smallest):
    """With all eigenpairs: SVD(W C), factors U_r S_r V_r^T C^-1, whose product is U_r U_r^T W."""
    weight, x = normal(*shape), normal(60, shape[1], seed=1) * torch.linspace(0.2, 2, shape[1])
    values, vectors = torch.linalg.eigh(x.T @ x / 60)
    a, b = oriented_factors(weight, vectors.flip(1), values.flip(0), 3, 1.0, smallest=smallest)
    c = x.T @ x / 60 + 0.01 * values.mean() * torch.eye(shape[1])
    u, s, vt = torch.linalg.svd(weight @ c, full_matrices=False)
    pick = slice(-3, None) if smallest else slice(0, 3)
    dense = u[:, pick] * s[pick] @ vt[pick] @ torch.linalg.inv(c)
    torch.testing.assert_close((b @ a).double(), dense, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((b @ a).double(), u[:, pick] @ u[:, pick].T @ weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(b.norm(dim=0).double(), s[pick].sqrt(), rtol=1e-4, atol=1e-5)


@pytest.fixture
def record(tmp_path, tiny_model_folder):
    """A spectral record of made-up directions for every layer of the tiny model."""
    tensors = {}
    for key, weight in load_file(tiny_model_folder / "model.safetensors").items():
        layer = key.removesuffix(".weight")
        if weight.ndim == 2 and layer.endswith("_proj"):
            m, n = weight.shape
            q = min(16, m, n)
            tensors |= {
                f"{layer}.gradient_left": torch.linalg.qr(normal(m, q))[0].float().contiguous(),
                f"{layer}.gradient_right": torch.linalg.qr(normal(n, q, seed=1))[0].float().contiguous(),
                f"{layer}.gradient_values": torch.linspace(4, 1, q),
                f"{layer}.activation_vectors": torch.linalg.qr(normal(n, q, seed=2))[0].float().contiguous(),
                f"{layer}.activation_values": torch.linspace(3, 0.1, q),
            }
    save_file(tensors, tmp_path / "spectra.safetensors")
    return tmp_path / "spectra.safetensors"


def made(name, record, model, r=4):
    told = spec(name, r)
    out = write_initialization(told, model, record, record.parent / f"{name}.safetensors")
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    return load_file(out), metadata["subtract_from_base"] == "true", told


def test_lora_ga_takes_disjoint_directions_scaled_by_the_width_alone(record, tiny_model_folder):
    factors, subtract, told = made("lora_ga", record, tiny_model_folder)
    seen = load_file(record)
    m = seen[f"{LAYER}.gradient_left"].shape[0]
    c = m**0.25 / 16**0.5
    torch.testing.assert_close(factors[f"{LAYER}.lora_A"], c * seen[f"{LAYER}.gradient_right"][:, :4].T)
    torch.testing.assert_close(factors[f"{LAYER}.lora_B"], c * seen[f"{LAYER}.gradient_left"][:, 4:8])
    assert subtract
    assert told.scale == pytest.approx(16 / math.sqrt(4))


def test_lora_one_is_a_step_down_the_gradient(record, tiny_model_folder):
    factors, subtract, _ = made("lora_one", record, tiny_model_folder)
    seen = load_file(record)
    left, values, right = (seen[f"{LAYER}.gradient_{part}"] for part in ("left", "values", "right"))
    gradient = left[:, :4] * values[:4] @ right[:, :4].T
    step = factors[f"{LAYER}.lora_B"] @ factors[f"{LAYER}.lora_A"]
    torch.testing.assert_close(step, -gradient / values[0] / 128, rtol=1e-5, atol=1e-7)
    assert not subtract
    a, b = factors[f"{LAYER}.lora_A"], factors[f"{LAYER}.lora_B"]
    torch.testing.assert_close(a @ a.T, b.T @ b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["milora", "olora", "corda_ipm", "corda_kpm", "lora_ga"])
def test_every_target_is_covered_and_the_base_is_told_to_change(record, tiny_model_folder, name):
    factors, subtract, told = made(name, record, tiny_model_folder)
    weights = load_file(tiny_model_folder / "model.safetensors")
    layers = {
        key.removesuffix(".weight")
        for key in weights
        if key.endswith(tuple(f"{m}.weight" for m in told.target_modules))
    }
    assert {key.rpartition(".")[0] for key in factors} == layers
    assert len(layers) == 4
    assert subtract


@pytest.mark.parametrize(
    ("name", "r", "sentence"),
    [
        (
            "lora_ga",
            12,
            r"lora_ga at r 12 needs 24 singular directions of the gradient of .*, and spectra.safetensors holds 16",
        ),
        ("lora_one", 20, "needs 20 singular directions"),
        ("milora", 99, "r 99 is above the smallest side 64"),
    ],
)
def test_too_few_directions_is_a_sentence(record, tiny_model_folder, name, r, sentence):
    with pytest.raises(InputError, match=sentence):
        made(name, record, tiny_model_folder, r)


def test_an_older_record_is_named(tmp_path, tiny_model_folder):
    save_file({"q_proj.gradient_left": torch.zeros(4, 4)}, tmp_path / "spectra.safetensors")
    with pytest.raises(InputError, match=r"holds no gradient_values, gradient_right of q_proj"):
        made("lora_ga", tmp_path / "spectra.safetensors", tiny_model_folder)


def test_loftq_needs_a_quantised_base(record, tiny_model_folder):
    with pytest.raises(InputError, match=r"base is not quantised; set base_model\.quantize"):
        made("loftq", record, tiny_model_folder)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_loftq_takes_up_what_the_loaded_base_lost(tiny_model_folder, tmp_path, kind):
    """Q(W) is the weight of the base as bitsandbytes loads it, and the start makes up for the most that rank r can."""
    pytest.importorskip("bitsandbytes")
    from peft.utils.integrations import dequantize_module_weight

    from lora_select import models

    told = spec("loftq", 8)
    out = write_initialization(told, tiny_model_folder, tmp_path, tmp_path / "f.safetensors", kind)
    factors = load_file(out)
    base = models.load_model(str(tiny_model_folder), quantize=kind)
    loaded = dequantize_module_weight(base.get_submodule(LAYER)).float()
    lost = load_file(tiny_model_folder / "model.safetensors")[f"{LAYER}.weight"] - loaded
    values = torch.linalg.svdvals(lost)
    left = lost - factors[f"{LAYER}.lora_B"] @ factors[f"{LAYER}.lora_A"]
    torch.testing.assert_close(left.norm(), values[8:].norm(), rtol=1e-3, atol=1e-6)
    assert left.norm() < 0.95 * lost.norm()
