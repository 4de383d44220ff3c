"""Sparse high-rank adaptation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import ClosedForm, Context, Cost, Support, common_violations, mean_square_output

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class SHiRA(ClosedForm):
    """W(theta) = W + S, S zero but at r (m + n) fixed random entries of W, trained from 0.

    Tangent everywhere: the entries, r (m + n) dimensions, so the mean share over random masks is r (m + n) / (m n), whatever the
    gradient. As published (Bhardwaj et al., section 3) with the random mask; a mask chosen from gradients would take a second
    pass. The mask is drawn from `random_seed`, which the adapter's config keeps.
    """

    r: int
    name = "shira"
    references = ("Bhardwaj et al. (2024), SHiRA, arXiv 2406.13175",)
    peft_class = "ShiraConfig"
    trained = ("shira_weight",)
    frozen = ("shira_indices",)
    cost = Cost(1.07, -0.6)
    support = Support(int8="starts at another function")

    def peft_arguments(self) -> dict[str, Any]:
        """The seed makes the mask the same on every rank and after a reload."""
        return {"r": self.r, "mask_type": "random", "random_seed": 0}

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`r (m + n)`."""
        return self.r * sum(shape)

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W + S`."""
        rows, columns = theta["shira_indices"].long()
        return weight.index_put((rows, columns), theta["shira_weight"], accumulate=True)

    def violations(self, context: Context) -> tuple[str, ...]:
        """More entries than the weight has cannot be chosen."""
        crowded = [name for name, m, n in context.layers if self.r * (m + n) > m * n]
        found = [f"r {self.r} asks shira for more entries than {name} has; lower r" for name in crowded[:1]]
        return (*found, *common_violations(self, context))

    def tangent_share(self, view: LayerStatistics) -> float:
        """`r (m + n) / (m n)`."""
        return self.r * (view.out_features + view.in_features) / (view.out_features * view.in_features)

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """At most that of a gradient with a single entry: it is chosen or not."""
        share = self.tangent_share(view)
        return (share * max(0.0, 1 - share)) ** 0.5

    def displacement(self, view: LayerStatistics) -> float:
        """Entries move by +-1: mean square share E||x||^2."""
        return (self.tangent_share(view) * view.activation_energy / mean_square_output(view)) ** 0.5
