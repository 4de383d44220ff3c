import importlib.util
from pathlib import Path

import numpy as np
import pytest
import reference
from laws import within_standard_errors

from lora_select.spectral import signal

FILE = Path(__file__).parents[2] / "benchmarks" / "signal_rank.py"
SPEC = importlib.util.spec_from_file_location("signal_rank_benchmark", FILE)
signal_rank = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(signal_rank)


def draws(rng, count: int, mean: np.ndarray, noise: float = 1.0) -> np.ndarray:
    return mean + noise * rng.normal(size=(count, *mean.shape))


def fold_inner(gradients: np.ndarray, folds: list[int]) -> np.ndarray:
    sums = np.stack([gradients[[k for k, f in enumerate(folds) if f == fold]].sum(0) for fold in sorted(set(folds))])
    flat = sums.reshape(len(sums), -1)
    return flat @ flat.T


def test_signal_energy_is_the_textbook_u_statistic():
    gradients = draws(np.random.default_rng(0), 6, np.ones((3, 4)))
    one_each = signal.signal_energy(fold_inner(gradients, list(range(6))), [1] * 6)
    assert one_each == pytest.approx(reference.u_statistic(gradients))
    folds = [0, 1, 0, 1, 2, 2]
    in_folds = signal.signal_energy(fold_inner(gradients, folds), [2, 2, 2])
    assert in_folds == pytest.approx(reference.cross_half_u_statistic(gradients, folds))


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_signal_energy_is_unbiased(scale):
    rng, mean = np.random.default_rng(1), scale * np.ones((5, 6))
    values = [
        signal.signal_energy(fold_inner(draws(rng, 8, mean), [0, 1] * 2 + [2, 3] * 2), [2] * 4) for _ in range(400)
    ]
    within_standard_errors(values, float((mean**2).sum()))


def test_noise_energy_is_the_textbook_one():
    gradients = draws(np.random.default_rng(2), 7, np.ones((3, 4)))
    energy = signal.signal_energy(fold_inner(gradients, list(range(7))), [1] * 7)
    norms = (gradients**2).sum((1, 2))
    assert signal.noise_energy(float(norms.mean()), energy) == pytest.approx(reference.noise_energy(gradients))


def test_a_sample_corrects_the_common_error_of_the_sketched_norms():
    exact = np.array([4.0, 8.0, 2.0, 6.0, 5.0, 3.0, 7.0, 9.0])
    assert signal.mean_norm((1.3 * exact).tolist(), 2.0, 2.6) == pytest.approx(exact.mean())


def test_standard_error_covers_the_truth_and_does_not_explode():
    rng, mean, inside, ratio = np.random.default_rng(3), 0.4 * np.eye(6), [], []
    for _ in range(300):
        gradients = draws(rng, 12, mean)
        flat = gradients.reshape(12, -1)
        value = signal.signal_energy(flat @ flat.T, [1] * 12)
        error = signal.sampling_error(flat)
        inside.append(abs(value - (mean**2).sum()) <= 2 * error)
        ratio.append(value)
    assert np.mean(inside) >= 0.93
    assert error < 4 * np.std(ratio)


@pytest.mark.parametrize("microbatches", [4, 16])
def test_heldout_values_of_noise_are_not_signal(microbatches):
    rng = np.random.default_rng(4)
    ranks = [
        signal.signal_rank(*map(list, signal.heldout(rng.normal(size=(microbatches, 8)))), microbatches)
        for _ in range(600)
    ]
    assert np.mean(np.array(ranks) > 0) < 0.02
    assert max(ranks) <= 2


def test_signal_rank_counts_wherever_the_signal_stands():
    assert signal.signal_rank([0.1, 9.0, -9.0, 5.0], [1.0] * 4, 16) == 2
    assert signal.signal_rank([0.0], [0.0], 16) == 0
    assert signal.signal_rank([], [], 16) == 0


def test_few_microbatches_need_clearer_values():
    assert signal.signal_rank([4.0], [1.0], 16) == 1
    assert signal.signal_rank([4.0], [1.0], 4) == 0


def test_the_tail_of_students_t():
    """Table values: upper 2.5 % and 0.1 % points; 1 and 2 degrees in closed form."""
    assert signal.t_tail(2.571, 5) == pytest.approx(0.025, rel=1e-3)
    assert signal.t_tail(3.686, 16) == pytest.approx(0.001, rel=1e-3)
    assert signal.t_tail(-2.0, 1) == pytest.approx(0.5 + np.arctan(2) / np.pi)
    assert signal.t_tail(2.0, 2) == pytest.approx(0.5 - 1 / np.sqrt(6))


RULES = ("ours", "screenot", "gavish-donoho", "mp edge")


@pytest.mark.parametrize("noise", signal_rank.NOISES)
@pytest.mark.parametrize("rank", [0, 2, 8])
def test_rank_and_energy_under_white_and_correlated_noise(noise, rank):
    """The light version of benchmarks/signal_rank.py, at twice the spectral norm of the mean noise."""
    row = signal_rank.cell(noise, rank, 2.0, seeds=6, rules=RULES)
    ours = row["ranks"]["ours"]
    assert ours["max"] <= (2 if rank == 0 else rank + 2)
    assert ours["min"] >= rank
    if rank:
        assert row["energy_ratio"] == pytest.approx(1.0, abs=0.1)
    if noise == "correlated":
        assert all(row["ranks"][rule]["min"] >= rank + 3 for rule in RULES[1:])
