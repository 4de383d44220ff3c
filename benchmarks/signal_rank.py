"""Which rule finds the rank and the energy of a mean gradient under white and under correlated noise?

`python benchmarks/signal_rank.py` writes `benchmarks/results/signal_rank.json`: K = 32 microbatch gradients G + N_k of shape 80 x 120,
true ranks 0, 2, 8 and 32, the singular values of G between `strength` and 1.5 `strength` times the spectral norm of the mean noise.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from lora_select.spectral import signal

RESULTS = Path(__file__).parent / "results" / "signal_rank.json"
SHAPE, MICROBATCHES, DIRECTIONS = (80, 120), 32, 38
NOISES = {"white": 0.0, "correlated": 0.5}
"""Exponent a of the noise's row and column scales i^-a, in random bases."""
RANKS, STRENGTHS = (0, 2, 8, 32), (0.5, 1.0, 2.0, 4.0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=40)
    seeds = parser.parse_args().seeds
    rows = [cell(noise, rank, strength, seeds) for noise, rank, strength in cells()]
    result = {"shape": SHAPE, "microbatches": MICROBATCHES, "directions": DIRECTIONS, "seeds": seeds, "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


def cells() -> list[tuple[str, int, float]]:
    """Every setting once; strength has no meaning at rank 0."""
    return [(n, r, s) for n, r, s in itertools.product(NOISES, RANKS, STRENGTHS) if r or s == STRENGTHS[0]]


def cell(noise: str, rank: int, strength: float, seeds: int, rules: Iterable[str] | None = None) -> dict:
    """Ranks by every rule and the energy's ratio to the truth, over seeds."""
    found: dict[str, list[float]] = {name: [] for name in rules or RULES}
    ratios, scaled = [], []
    for seed in range(seeds):
        truth, gradients = draw(noise, rank, strength, seed)
        for name, ranks in found.items():
            ranks.append(RULES[name](gradients))
        energy, size = fold_energy(gradients), float((truth**2).sum())
        noise_of_mean = float(gradients.var(0, ddof=1).sum()) / MICROBATCHES
        ratios.append(energy / size if rank else float("nan"))
        scaled.append((energy - size) / noise_of_mean)
    summary = {
        name: {"mean": float(np.mean(x)), "min": min(x), "max": max(x), "exact": float(np.mean(np.equal(x, rank)))}
        for name, x in found.items()
    }
    row = {"noise": noise, "rank": rank, "strength": strength if rank else None, "ranks": summary}
    if rank:
        row |= {"energy_ratio": float(np.mean(ratios)), "energy_spread": float(np.std(ratios, ddof=1))}
    return row | {"energy_bias_over_noise_of_the_mean": float(np.mean(scaled))}


def draw(noise: str, rank: int, strength: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """G (m, n) and K microbatch gradients (K, m, n)."""
    rng = np.random.default_rng((seed, rank, int(100 * strength), len(noise)))
    (m, n), exponent = SHAPE, NOISES[noise]
    left, right = (correlation(rng, width, exponent) for width in SHAPE)
    noises = left @ rng.normal(size=(MICROBATCHES, m, n)) @ right.T
    edge = float(np.linalg.norm(left @ rng.normal(size=(m, n)) @ right.T, 2)) / MICROBATCHES**0.5
    u, v = (np.linalg.qr(rng.normal(size=(width, max(rank, 1))))[0] for width in SHAPE)
    values = strength * edge * np.linspace(1.5, 1.0, rank) if rank else np.zeros(1)
    mean = u * values @ v.T
    return mean, mean + noises


def correlation(rng, width: int, exponent: float) -> np.ndarray:
    """A random basis times i^-exponent, with the energy of the identity."""
    scales = np.arange(1, width + 1) ** -exponent
    return np.linalg.qr(rng.normal(size=(width, width)))[0] * (scales * (width / (scales**2).sum()) ** 0.5)


def fold_energy(gradients: np.ndarray) -> float:
    """The U-statistic of the spectral pass, over four folds."""
    folds = [gradients[[*range(start, MICROBATCHES, 4)]].sum(0).ravel() for start in range(4)]
    flat = np.stack(folds)
    return signal.signal_energy(flat @ flat.T, [MICROBATCHES // 4] * 4)


def heldout(gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directions from the first half, values from the second, as in the spectral pass."""
    half = MICROBATCHES // 2
    u, _, vt = np.linalg.svd(gradients[:half].mean(0), full_matrices=False)
    return signal.heldout(np.einsum("mi,kmn,in->ki", u[:, :DIRECTIONS], gradients[half:], vt[:DIRECTIONS]))


def ours(gradients: np.ndarray) -> int:
    values, errors = heldout(gradients)
    return signal.signal_rank(values.tolist(), errors.tolist(), MICROBATCHES // 2)


def leading_run(gradients: np.ndarray) -> int:
    """Held-out values above three standard errors up to the first that is not."""
    values, errors = heldout(gradients)
    return int(np.argmin(np.append(values > 3 * errors, False)))


def count_above_three(gradients: np.ndarray) -> int:
    """Held-out values above three standard errors, wherever they stand."""
    values, errors = heldout(gradients)
    return int((values > 3 * errors).sum())


def gavish_donoho(gradients: np.ndarray) -> int:
    """Gavish and Donoho (2014), *The optimal hard threshold for singular values is 4/sqrt(3)*, noise unknown, equation (5)."""
    values = np.linalg.svd(gradients.mean(0), compute_uv=False)
    beta = SHAPE[0] / SHAPE[1]
    known = np.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + np.sqrt(beta**2 + 14 * beta + 1)))
    return int((values > known / np.sqrt(marchenko_pastur_median(beta)) * np.median(values)).sum())


def marchenko_pastur_median(beta: float) -> float:
    """Median of the Marchenko-Pastur law with ratio beta <= 1 and unit variance, on a grid of its density."""
    low, high = (1 - beta**0.5) ** 2, (1 + beta**0.5) ** 2
    x = low + (high - low) * (np.arange(200_000) + 0.5) / 200_000
    mass = np.cumsum(np.sqrt((high - x) * (x - low)) / x)
    return float(x[np.searchsorted(mass, mass[-1] / 2)])


def marchenko_pastur_edge(gradients: np.ndarray) -> int:
    """Singular values above sigma (sqrt m + sqrt n), sigma from the microbatches' deviations."""
    sigma = np.sqrt(gradients.var(0, ddof=1).mean() / MICROBATCHES)
    values = np.linalg.svd(gradients.mean(0), compute_uv=False)
    return int((values > sigma * (SHAPE[0] ** 0.5 + SHAPE[1] ** 0.5)).sum())


def screenot(gradients: np.ndarray) -> int:
    """Donoho, Gavish, Romanov (2020), *ScreeNOT*, algorithm 1 with imputed bulk; rank at most `DIRECTIONS`.

    The threshold T solves Psi(T) = -4, Psi(y) = y D'(y) / D(y), D(y) = phi(y) (beta phi(y) + (1 - beta) / y), with phi the
    mean of y / (y^2 - z^2) over the noise's singular values z: the observed ones with the k largest replaced.
    """
    values = np.sort(np.linalg.svd(gradients.mean(0), compute_uv=False))
    p, k, beta = len(values), DIRECTIONS, SHAPE[0] / SHAPE[1]
    bulk = values.copy()
    spacing = values[p - k - 1] - values[p - 2 * k - 1]
    steps = np.arange(1, k + 1)
    bulk[p - steps] = values[p - k - 1] + spacing * (1 - ((steps - 1) / k) ** (2 / 3)) / (2 ** (2 / 3) - 1)

    def psi(y: float) -> float:
        phi, slope = np.mean(y / (y**2 - bulk**2)), -np.mean((y**2 + bulk**2) / (y**2 - bulk**2) ** 2)
        other, other_slope = beta * phi + (1 - beta) / y, beta * slope - (1 - beta) / y**2
        return y * (slope / phi + other_slope / other)

    low, high = bulk.max() * (1 + 1e-9), 2 * bulk.max()
    while psi(high) < -4:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if psi(middle) < -4 else (low, middle)
    return int((values > low).sum())


RULES: dict[str, Callable[[np.ndarray], int]] = {
    "ours": ours,
    "leading run": leading_run,
    "count above three": count_above_three,
    "screenot": screenot,
    "gavish-donoho": gavish_donoho,
    "mp edge": marchenko_pastur_edge,
}


def table(rows: list[dict]) -> str:
    lines = [f"{'noise':<11}{'rank':>5}{'strength':>9}{'energy':>14}" + "".join(f"{name:>19}" for name in RULES)]
    for row in rows:
        energy = f"{row['energy_ratio']:.3f} ± {row['energy_spread']:.3f}" if row["rank"] else "-"
        line = f"{row['noise']:<11}{row['rank']:>5}{row['strength'] or '-':>9}{energy:>14}"
        for name in RULES:
            rank = row["ranks"][name]
            line += f"{rank['mean']:>9.1f} [{rank['min']:>2}, {rank['max']:>2}]"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
