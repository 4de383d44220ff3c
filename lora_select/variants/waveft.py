"""Wavelet finetuning."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import ClosedForm, Context, Cost, Support, common_violations

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class WaveFT(ClosedForm):
    """W(theta) = W + s H^-1(E), H^-1 one level of the inverse 2-D Haar transform, E zero but at fixed random places, from 0.

    Tangent everywhere: {H^-1(dE)} on the chosen places, `n_frequency` dimensions; Haar's atoms are orthonormal on even sides, so
    the mean share over places is n_frequency / (m n). Each atom is a 2 x 2 block of +-1/2: local where FourierFT's waves are
    global. The published form (Bilican et al., section 3) with Haar wavelets, PEFT's db1.
    """

    n_frequency: int = 2592
    r: int = field(default=0, init=False)
    name = "waveft"
    references = ("Bilican et al. (2025), WaveFT, arXiv 2505.12532",)
    peft_class = "WaveFTConfig"
    trained = ("waveft_spectrum",)
    frozen = ("waveft_indices",)
    cost = Cost(2.2, 2.6)
    support = Support()
    reference_rate = 1e-4

    @property
    def size(self) -> str:
        """By coefficients a layer."""
        return f"f{self.n_frequency}"

    @property
    def scale(self) -> float:
        """PEFT's default, no unit."""
        return 25.0

    def peft_arguments(self) -> dict[str, Any]:
        """Haar, the same number of places in every layer."""
        return {"n_frequency": self.n_frequency, "scaling": self.scale, "wavelet_family": "db1", "bias": "none"}

    def num_parameters(self, shape: tuple[int, int]) -> int:  # noqa: ARG002
        """`n_frequency`."""
        return self.n_frequency

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W + s H^-1(E)`; odd sides are padded by one and cut again."""
        import torch

        m, n = weight.shape
        half_m, half_n = (m + 1) // 2, (n + 1) // 2
        rows, columns = theta["waveft_indices"]
        whole = weight.new_zeros(2 * half_m, 2 * half_n).index_put((rows, columns), theta["waveft_spectrum"])
        (mean, right), (below, cross) = (h.split(half_n, 1) for h in whole.split(half_m, 0))
        upper = torch.stack([mean + right + below + cross, mean + right - below - cross], -1).flatten(1)
        lower = torch.stack([mean - right + below - cross, mean - right - below + cross], -1).flatten(1)
        return weight + self.scale * 0.5 * torch.stack([upper, lower], 1).flatten(0, 1)[:m, :n]

    def violations(self, context: Context) -> tuple[str, ...]:
        """More places than entries cannot be chosen."""
        small = [name for name, m, n in context.layers if m * n < self.n_frequency]
        found = [f"waveft's n_frequency {self.n_frequency} is above the entries of {name}" for name in small[:1]]
        return (*found, *common_violations(self, context))

    def tangent_share(self, view: LayerStatistics) -> float:
        """`n_frequency / (m n)`; a padded odd side has a little less."""
        return min(1.0, self.n_frequency / (view.out_features * view.in_features))

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """At most that of a gradient that is one atom: it is chosen or not."""
        share = self.tangent_share(view)
        return (share * (1 - share)) ** 0.5
