"""What quantising a layer costs at its own inputs, and how much of that a low-rank start could take back."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lora_select.errors import InputError
from lora_select.records import QuantisationError, finite
from lora_select.spectral.statistics import ADAPTER_RANKS
from lora_select.spectral.weight import WeightSystem, weight_system

Kind = Literal["nf4", "int8"]
BLOCK = 64
CELLS = 64
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The 16 values of NormalFloat4 (Dettmers et al. 2023, appendix E): quantiles of a normal, scaled to [-1, 1], with an exact 0."""


def nf4(weight: Tensor) -> Tensor:
    """NF4 and back, (m, n) float32: blocks of 64 in row-major order by their largest absolute value, nearest of 16 values.

    Without double quantisation of the block scales, which adds an error of about 1/256 of a scale. A last block may be short.

    References:
        Dettmers, Pagnoni, Holtzman, Zettlemoyer (2023), *QLoRA*, section 3, arXiv 2305.14314.
    """
    flat = weight.detach().float().flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True)
    unit = blocks / scale.clamp(min=torch.finfo(torch.float32).tiny)
    return (_nearest(unit) * scale).flatten()[: len(flat)].view_as(weight)


def _nearest(unit: Tensor) -> Tensor:
    """The nearest of the 16 values to each number in [-1, 1], by a table: five times as fast as a binary search.

    The interval is cut into cells narrower than the distance of two decision points, so a cell holds at most one: below it the
    lower value is nearest, above it the upper one.
    """
    codes = torch.tensor(NF4, dtype=torch.float64)
    middles = (codes[1:] + codes[:-1]) / 2
    edges = torch.arange(CELLS + 1, dtype=torch.float64) * (2 / CELLS) - 1
    low = torch.bucketize(edges, middles)
    high = torch.bucketize(edges + 2 / CELLS, middles)
    middle = torch.where(high > low, middles[low.clamp(max=len(middles) - 1)], torch.inf)
    cell = ((unit + 1) * (CELLS / 2)).to(torch.int32).flatten()
    lower, upper, between = (
        table.to(unit).index_select(0, cell).view_as(unit) for table in (codes[low], codes[high], middle)
    )
    return torch.where(unit > between, upper, lower)


def int8(weight: Tensor) -> Tensor:
    """Eight bits and back, (m, n) float32: each row (output) by its largest absolute value, 127 steps to either side.

    The weight side of LLM.int8 without its outlier columns, which depend on the inputs at run time.

    References:
        Dettmers, Lewis, Belkada, Zettlemoyer (2022), *LLM.int8()*, section 2.1, arXiv 2208.07339.
    """
    w = weight.detach().float()
    scale = (w.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.round(w / scale) * scale


QUANTISERS = {"nf4": nf4, "int8": int8}


def quantisation_error(
    weight: Tensor,
    vectors: Tensor,
    values: Tensor,
    remainder: float,
    kind: Kind,
    ranks: Sequence[int] = ADAPTER_RANKS,
    seed: int = 0,
) -> QuantisationError:
    """Size and leading directions of E Z^{1/2}, E = W - Q(W): the mean squared error of the layer's outputs is its energy.

    Z = V diag(values) V^T + remainder (I - V V^T) is the uncentred second moment of the inputs, so that
    ||E Z^{1/2}||_F^2 = E||E x||^2 and Z^{1/2} = remainder^{1/2} I + V (diag(values)^{1/2} - remainder^{1/2} I) V^T.

    Args:
        weight: W, (m, n).
        vectors: V, (n, q) orthonormal, q >= 0.
        values: (q,) eigenvalues of Z, at least 0.
        remainder: eigenvalue of Z in every other direction, at least 0: what is left of the trace over n - q.
        kind: `nf4` or `int8`.
        ranks: r of the shares; above min(m, n) the share is 1.
        seed: of the randomised range finder.

    Returns:
        Shares in [0, 1], exact where a side is at most 128; else from below, with the residuals of the singular triplets
        sum_{i<=r} sigma_i ||M v_i - sigma_i u_i|| over ||M||_F^2, M = E Z^{1/2}, as error (a matching of r eigenvalues of
        M M^T to the sigma_i^2 lies within it).

    Raises:
        InputError: an unknown kind, shapes that do not fit, a negative moment, or a weight that is not finite.

    References:
        Li, Yu, Liang, He, Karampatziakis, Chen, Zhao (2023), *LoftQ*, arXiv 2310.08659: the start that takes the error back;
        Kahan (1967), in Parlett (1998), theorem 11.5.1: the bound.
    """
    _check(weight, vectors, values, remainder, kind)
    w = weight.detach().float()
    wide, least = vectors.to(w), math.sqrt(remainder)
    gain = values.to(w).sqrt() - least
    error = w - QUANTISERS[kind](w)
    error = least * error + (error @ wide * gain) @ wide.T
    whole = remainder * float(w.square().sum()) + float((values.to(w) - remainder) @ (w @ wide).square().sum(0))
    system = weight_system(error, max(ranks), seed)
    residuals = torch.linalg.vector_norm(error @ system.right - system.left * system.values, dim=0)
    return QuantisationError(
        kind=kind,
        relative_error=finite(math.sqrt(system.energy / whole), "relative quantisation error") if whole > 0 else 0.0,
        shares={r: _share(system, r) for r in ranks},
        share_errors={r: _share_error(system, residuals, r) for r in ranks},
    )


def _share(system: WeightSystem, r: int) -> float:
    if system.energy == 0:
        return 0.0
    return min(1.0, float(system.values[:r].double().square().sum()) / system.energy)


def _share_error(system: WeightSystem, residuals: Tensor, r: int) -> float:
    if system.energy == 0:
        return 0.0
    return min(1.0, float((system.values[:r] * residuals[:r]).double().sum()) / system.energy)


def _check(weight: Tensor, vectors: Tensor, values: Tensor, remainder: float, kind: str) -> None:
    if kind not in QUANTISERS:
        raise InputError(f"there is no quantiser {kind!r}; quantisers: {', '.join(QUANTISERS)}")
    if weight.ndim != 2 or vectors.shape != (weight.shape[1], len(values)):
        raise InputError(
            f"W (m, n) needs input directions of shape (n, q) and q values, got {tuple(weight.shape)}, "
            f"{tuple(vectors.shape)} and {len(values)}; take the activation record of the same layer"
        )
    if remainder < 0 or bool((values < 0).any()):
        raise InputError("a second moment has no negative eigenvalue; clamp rounding errors to 0 first")
    if not bool(torch.isfinite(weight).all()):
        raise InputError("a weight that holds NaN or infinity cannot be quantised; check the model's files")
