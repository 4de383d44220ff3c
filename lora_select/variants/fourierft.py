"""Fourier finetuning."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from lora_select.variants.base import Context, Cost, Support, Variant, common_violations

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class FourierFT(Variant):
    """W(theta) = W + s Re F^-1(E), F^-1 the inverse 2-D transform, E zero but at `n_frequency` fixed random places, from 0.

    Tangent everywhere: real parts of those plane waves. A wave and its mirror have the same real part and one that is its own
    mirror counts once, so the dimension can be lower than the count, and the share of white noise is at most n_frequency / (m n).
    PEFT starts at random coefficients unless told (s = 150: far from the base); here they start at 0. The published form (Gao et
    al., equation 3); PEFT computes it in float32.
    """

    n_frequency: int = 1000
    r: int = field(default=0, init=False)
    name = "fourierft"
    references = ("Gao et al. (2024), FourierFT, arXiv 2405.03003",)
    peft_class = "FourierFTConfig"
    trained = ("fourierft_spectrum",)
    frozen = ("indices",)
    cost = Cost(1.8, 1.4)
    support = Support()
    reference_rate = 1e-4

    @property
    def size(self) -> str:
        """By coefficients a layer."""
        return f"f{self.n_frequency}"

    @property
    def scale(self) -> float:
        """PEFT's default, no unit."""
        return 150.0

    def peft_arguments(self) -> dict[str, Any]:
        """`init_weights` means zeros here."""
        return {"n_frequency": self.n_frequency, "scaling": self.scale, "init_weights": True, "bias": "none"}

    def num_parameters(self, shape: tuple[int, int]) -> int:  # noqa: ARG002
        """`n_frequency`."""
        return self.n_frequency

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W + s Re F^-1(E)`."""
        import torch

        rows, columns = theta["indices"]
        spectrum = weight.new_zeros(weight.shape).index_put((rows, columns), theta["fourierft_spectrum"])
        return weight + self.scale * torch.fft.ifft2(spectrum).real

    def violations(self, context: Context) -> tuple[str, ...]:
        """More waves than entries cannot be chosen."""
        small = [name for name, m, n in context.layers if m * n < self.n_frequency]
        found = [f"fourierft's n_frequency {self.n_frequency} is above the entries of {name}" for name in small[:1]]
        return (*found, *common_violations(self, context))
