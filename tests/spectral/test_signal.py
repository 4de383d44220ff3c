import numpy as np
import pytest
import reference
from laws import within_standard_errors

from lora_select.spectral import signal


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


def test_heldout_values_of_noise_are_not_signal():
    rng = np.random.default_rng(4)
    ranks = [signal.signal_rank(*map(list, signal.heldout(rng.normal(size=(16, 8))))) for _ in range(200)]
    assert np.mean(np.array(ranks) > 0) < 0.03


def test_signal_rank_is_a_leading_run():
    assert signal.signal_rank([5.0, 0.1, 9.0], [1.0, 1.0, 1.0]) == 1
    assert signal.signal_rank([0.0], [0.0]) == 0
