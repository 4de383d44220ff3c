"""What a variant may ask of a measured layer: plain numbers from which its closed forms are computed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, final

CLEAR = 2.0
"""Standard errors by which a difference counts as one."""
ADAPTER_RANKS = (8, 16, 32)
"""Adapter ranks that are measured and offered."""


@final
@dataclass(frozen=True)
class LayerStatistics:
    """Numbers of one layer, W (m, n). Shares are of the signal energy ||G||^2, unbiased over folds, no unit.

    A subspace's share is <Pi G_a, G_b> / <G_a, G_b> over folds a != b, and may leave [0, 1] by its noise. Those of scalings,
    rotations, Kronecker products and entries are of the gradient's leading directions, not of all of it.
    """

    out_features: int
    in_features: int
    activation_energy: float
    """E||x||^2 per token."""
    output_energy: float
    """E||W x||^2 per token."""
    weight_energy: float
    """||W||_F^2."""
    weight_values: tuple[float, ...]
    """Leading singular values sigma_k of W."""
    weight_input_energy: tuple[float, ...]
    """E(v_k . x)^2 for the right singular vectors v_k of W."""
    activation_input_energy: tuple[float, ...]
    """E(z_k . x)^2 for the leading activation directions z_k, not centred."""
    row_scale: float
    """Share in the row scalings: sum_i <g_i, w_i>^2 / ||w_i||^2 over ||G||^2, rows g_i of G and w_i of W."""
    activation_subspace: Mapping[int, float]
    """Share of G V V^T by rank r, V the r leading activation directions."""
    weight_left: Mapping[int, float]
    """Share of U U^T G by rank r, U the r leading left singular vectors of W."""
    weight_right: Mapping[int, float]
    """Share of G V V^T by rank r, V the r leading right singular vectors of W."""
    weight_both: Mapping[int, float]
    """Share of U U^T G V V^T by rank r."""
    weight_minor_left: Mapping[int, float] = field(default_factory=dict)
    """As `weight_left`, for the r trailing singular vectors of W."""
    weight_minor_right: Mapping[int, float] = field(default_factory=dict)
    """As `weight_right`, for the r trailing singular vectors of W."""
    weight_minor_both: Mapping[int, float] = field(default_factory=dict)
    """As `weight_both`, for the r trailing singular vectors of W."""
    weight_columns_left: Mapping[int, float] = field(default_factory=dict)
    """As `weight_left`, for the span of the first r columns of W."""
    weight_columns_right: Mapping[int, float] = field(default_factory=dict)
    """As `weight_right`, for the span of the first r rows of R of W = Q R."""
    weight_columns_both: Mapping[int, float] = field(default_factory=dict)
    """As `weight_both`, for these two."""
    gradient_left: Mapping[int, float] = field(default_factory=dict)
    """Share of U U^T G by rank r, U the r leading left singular vectors of G itself, chosen on other microbatches."""
    gradient_right: Mapping[int, float] = field(default_factory=dict)
    """As `gradient_left`, on the right."""
    gradient_both: Mapping[int, float] = field(default_factory=dict)
    """Share of U U^T G V V^T by rank r, chosen on other microbatches."""
    column_scale: float = 0.0
    """Share in the column scalings: sum_j <g_j, w_j>^2 / ||w_j||^2 over ||G||^2, columns g_j of G and w_j of W."""
    hadamard: float = 0.0
    """sum_ij n g_ij^2 w_ij^2 / ||w_i||^2 over ||G||^2: how much larger G is where W is; 1 for a G that does not know W."""
    rotation: Mapping[int, float] = field(default_factory=dict)
    """Share in {W S : S block-diagonal, skew-symmetric} by block size, where it divides n."""
    kronecker: float = 0.0
    """Share of the leading Kronecker product A x B (squarest factors), chosen on other microbatches."""
    sparse: float = 0.0
    """Share of the 8 (m + n) largest entries, chosen on other microbatches."""
    widest: int = 0
    """Inputs of the model's widest measured layer, by which VeRA scales its bank; 0: this layer's own."""


class MeasuredVariant(Protocol):
    """The part of a variant that the spectral pass needs; see `lora_select.variants.base.Variant`."""

    name: ClassVar[str]
    """Key of the variant."""

    @property
    def r(self) -> int:
        """Adapter rank."""
        ...

    def tangent_share(self, view: LayerStatistics) -> float:
        """Share of the signal energy in the tangent space at the start point."""
        ...

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """Standard deviation of that share over random starts, 0 for a start the data or weights fix."""
        ...

    def displacement(self, view: LayerStatistics) -> float:
        """rms(dW x) / rms(W x) after one sign step of unit rate."""
        ...
