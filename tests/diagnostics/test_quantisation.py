import numpy as np
import pytest
import torch

from lora_select.diagnostics.quantisation import NF4, QUANTISERS, int8, nf4, quantisation_error
from lora_select.errors import InputError
from lora_select.records import QuantisationError, from_json, to_json

RANKS = (8, 16, 32)


def draw(seed: int, *shape: int, kind=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=kind)


def moment(seed: int, n: int, q: int, decay: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, float]:
    values = 50.0 * torch.arange(1, q + 1) ** -decay
    return torch.linalg.qr(draw(seed, n, q))[0], values, float(values[-1]) / 2


def dense(weight, vectors, values, remainder, kind):
    """E Z^{1/2} and W Z^{1/2} by an eigendecomposition of the whole Z in float64."""
    v = vectors.double()
    z = v * values.double() @ v.T + remainder * (torch.eye(len(v), dtype=torch.float64) - v @ v.T)
    eigenvalues, basis = torch.linalg.eigh(z)
    root = basis * eigenvalues.clamp(min=0).sqrt() @ basis.T
    return (weight - QUANTISERS[kind](weight)).double() @ root, weight.double() @ root


def nearest(value: float) -> float:
    return min(NF4, key=lambda code: abs(code - value))


def test_nf4_is_the_nearest_code_of_each_block():
    weight = draw(0, 5, 48)
    flat, result = weight.flatten(), nf4(weight).flatten()
    for start in range(0, 240, 64):
        block = flat[start : start + 64]
        scale = float(block.abs().max())
        expected = [scale * nearest(float(value) / scale) for value in block]
        assert result[start : start + 64].tolist() == pytest.approx(expected, rel=1e-6)


def test_int8_is_off_by_at_most_half_a_step_of_its_row():
    weight = draw(1, 7, 30) * torch.logspace(-3, 3, 7)[:, None]
    step = weight.abs().amax(1, keepdim=True) / 127
    assert bool(((int8(weight) - weight).abs() <= step / 2 * (1 + 1e-5)).all())
    assert torch.equal((int8(weight) / step).round().unique().abs().max(), torch.tensor(127.0))


@pytest.mark.parametrize("kind", QUANTISERS)
def test_what_is_quantised_stays_and_zero_is_zero(kind):
    once = QUANTISERS[kind](draw(2, 16, 64))
    torch.testing.assert_close(QUANTISERS[kind](once), once, rtol=1e-6, atol=0)
    assert not QUANTISERS[kind](torch.zeros(3, 5)).any()


@pytest.mark.parametrize("kind", QUANTISERS)
@pytest.mark.parametrize("shape", [(96, 200), (200, 96), (128, 128)])
def test_narrow_layers_are_exact(kind, shape):
    weight, z = draw(3, *shape), moment(4, shape[1], 12)
    error, whole = dense(weight, *z, kind)
    energies = np.linalg.svd(error.numpy(), compute_uv=False) ** 2
    found = quantisation_error(weight, *z, kind, RANKS)
    assert found.relative_error == pytest.approx(float(error.norm() / whole.norm()), rel=1e-5)
    for r in RANKS:
        assert found.shares[r] == pytest.approx(energies[:r].sum() / energies.sum(), rel=1e-5)
        assert found.share_errors[r] < 1e-4


@pytest.mark.parametrize("kind", QUANTISERS)
def test_the_energy_is_the_mean_squared_error_of_the_outputs(kind):
    """||E Z^{1/2}||^2 = E||E x||^2 for inputs with that second moment: here 400 of them, so Z is exact and of full rank."""
    weight, x = draw(5, 40, 32), draw(6, 400, 32) + 2.0
    values, vectors = torch.linalg.eigh(x.T @ x / 400)
    found = quantisation_error(weight, vectors, values, 0.0, kind)
    lost, whole = (x @ (weight - QUANTISERS[kind](weight)).T).norm(), (x @ weight.T).norm()
    assert found.relative_error == pytest.approx(float(lost / whole), rel=1e-4)


def test_wide_layers_stay_within_the_stated_error():
    inside, loose = [], []
    for seed in range(12):
        weight, z = draw(seed, 192, 256) * 0.02, moment(seed, 256, 24, decay=(0.0, 0.5, 1.5)[seed % 3])
        kind = ("nf4", "int8")[seed % 2]
        energies = np.linalg.svd(dense(weight, *z, kind)[0].numpy(), compute_uv=False) ** 2
        found = quantisation_error(weight, *z, kind, RANKS, seed=seed)
        for r in RANKS:
            truth = energies[:r].sum() / energies.sum()
            assert found.shares[r] <= truth + 1e-6
            inside.append(truth - found.shares[r] <= found.share_errors[r] + 1e-6)
            loose.append(found.share_errors[r])
    assert np.mean(inside) >= 0.95
    assert max(loose) < 0.1


def test_strong_input_directions_make_the_error_low_rank():
    """With Z of rank 4 the weighted error has rank 4, so r = 8 takes all of it back; with Z = I next to nothing."""
    weight = draw(7, 160, 256)
    vectors, values, _ = moment(8, 256, 4)
    assert quantisation_error(weight, vectors, values, 0.0, "nf4").shares[8] == pytest.approx(1.0, abs=1e-5)
    flat = quantisation_error(weight, vectors[:, :0], values[:0], 1.0, "nf4")
    assert flat.shares[8] < 0.15
    assert flat.relative_error == pytest.approx(float((weight - nf4(weight)).norm() / weight.norm()), rel=1e-5)


def test_a_weight_of_zeros_costs_nothing():
    found = quantisation_error(torch.zeros(140, 130), *moment(0, 130, 3), "int8")
    assert (found.relative_error, found.shares[8], found.share_errors[8]) == (0.0, 0.0, 0.0)


def test_ranks_above_the_layers_own():
    assert quantisation_error(draw(0, 6, 40), *moment(0, 40, 3), "nf4", (4, 32)).shares[32] == pytest.approx(1.0)


def test_the_record_is_json():
    found = quantisation_error(draw(0, 20, 40), *moment(0, 40, 3), "nf4")
    assert from_json(QuantisationError, to_json(found)) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "int3"}, "quantisers: nf4, int8"),
        ({"values": torch.ones(2)}, r"got \(6, 40\), \(40, 3\) and 2"),
        ({"remainder": -1.0}, "no negative eigenvalue"),
        ({"weight": torch.full((6, 40), torch.nan)}, "NaN or infinity cannot be quantised"),
    ],
)
def test_bad_input(change, message):
    vectors, values, remainder = moment(0, 40, 3)
    given = {"weight": draw(0, 6, 40), "vectors": vectors, "values": values, "remainder": remainder, "kind": "nf4"}
    with pytest.raises(InputError, match=message):
        quantisation_error(**(given | change))


def test_both_equal_bitsandbytes():
    from bitsandbytes import functional

    weight = draw(9, 48, 192)
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
    torch.testing.assert_close(nf4(weight), functional.dequantize_4bit(packed, state), rtol=1e-6, atol=1e-7)
    codes, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
    theirs = codes.float() * scales[:, None] / 127
    step = weight.half().float().abs().amax(1, keepdim=True) / 127
    assert float(((int8(weight.half()) - theirs) / step).abs().max()) <= 1.01  # ties round otherwise in half precision
    assert float(((int8(weight.half()) - theirs).abs() > 0.5 * step).float().mean()) < 1e-3
