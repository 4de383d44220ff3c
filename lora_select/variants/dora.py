"""Weight-decomposed low-rank adaptation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from lora_select.spectral.view import LayerView
from lora_select.variant import (
    REFERENCE_ALPHA,
    Context,
    Variant,
    lora_arguments,
    mean_square_output,
    random_rows_spread,
    random_start_displacement,
    rank_violations,
)

if TYPE_CHECKING:
    from torch import Tensor

    from lora_select.operators import TangentOperator


@final
@dataclass(frozen=True)
class DoRA(Variant):
    """W(theta) = diag(mu / c) (W + s B A), c the row norms of W + s B A, from B = 0, random A and mu = c.

    c is a constant in the gradient (Liu et al., section 4.3; PEFT's form). Tangent at the start: rows in
    span{a_1..a_r, w_i}, (r + 1) m dimensions. With rho the share of the gradient in the row scalings, the mean share over
    random A is r/n + (1 - r/n) rho + (1 - rho) r / (n (n - 1)); for white noise rho = 1/n and it is (r + 1) / n.
    """

    r: int
    name: ClassVar[str] = "dora"
    references: ClassVar[tuple[str, ...]] = ("Liu et al. (2024), DoRA, arXiv 2402.09353",)

    @property
    def lora_alpha(self) -> int:
        """As LoRA."""
        return REFERENCE_ALPHA

    @property
    def scale(self) -> float:
        """`alpha / r`, no unit."""
        return self.lora_alpha / self.r

    def peft_arguments(self) -> dict[str, Any]:
        """LoRA with `use_dora`."""
        return lora_arguments(self, use_dora=True)

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`r (m + n) + m`, the magnitudes mu included."""
        return self.r * sum(shape) + shape[0]

    def tangent(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "TangentOperator":
        """diag(mu/c) s (dB A + B dA) + diag(dmu / c) (W + s B A)."""
        from lora_select.operators import TangentOperator, bilinear

        low_rank = bilinear(theta["lora_A"], theta["lora_B"], self.scale)
        merged = weight + self.scale * theta["lora_B"] @ theta["lora_A"]
        norms = merged.norm(dim=1)
        gain = (theta["lora_magnitude_vector"] / norms)[:, None]
        directions = merged / norms[:, None]
        return TangentOperator(
            weight_shape=low_rank.weight_shape,
            parameter_shapes={**low_rank.parameter_shapes, "lora_magnitude_vector": tuple(norms.shape)},
            apply=lambda d: gain * low_rank.matvec(d) + d["lora_magnitude_vector"][:, None] * directions,
            apply_adjoint=lambda g: low_rank.rmatvec(gain * g) | {"lora_magnitude_vector": (g * directions).sum(1)},
        )

    def violations(self, context: Context) -> tuple[str, ...]:
        """VLLM has no DoRA; PEFT's DoRA fails on int8 layers."""
        found = list(rank_violations(self, context))
        if context.serve == "vllm":
            found.append("vLLM serves plain LoRA only and refuses adapters with use_dora; merge it or choose LoRA")
        if context.quantized_base == "int8":
            found.append("PEFT's DoRA fails in the forward pass on int8 layers; use an nf4 or an unquantised base")
        return tuple(found)

    def tangent_share(self, view: LayerView) -> float:
        """r/n + (1 - r/n) rho + (1 - rho) r / (n (n - 1))."""
        n, rho = view.in_features, view.row_scale
        share = self.r / n
        return share + (1 - share) * rho + (1 - rho) * share / max(1, n - 1)

    def tangent_share_spread(self, view: LayerView) -> float:
        """Of LoRA's part; w_i is fixed."""
        return random_rows_spread(self.r, view.in_features)

    def displacement(self, view: LayerView) -> float:
        """LoRA's, joined with a unit step of every magnitude: outputs change by +-(w_i . x) / ||w_i||."""
        low_rank = random_start_displacement(self.scale, self.r, view)
        magnitudes = view.output_energy / max(view.weight_energy, 1e-12)
        return (low_rank**2 + magnitudes / mean_square_output(view)) ** 0.5
