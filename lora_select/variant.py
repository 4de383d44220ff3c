"""The contract of a variant: what a candidate adapter is, as a value. One final class per file in `variants/`."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from lora_select.spectral.view import LayerView

if TYPE_CHECKING:
    from torch import Tensor

    from lora_select.operators import TangentOperator

REFERENCE_ALPHA = 32
"""alpha = 2 r at the reference rank 16, and the same at every rank: under alpha / r at constant alpha the best learning rate
hardly depends on the rank (Thinking Machines, *LoRA Without Regret*, 2025), so one rate holds for all of them."""

VLLM_MAX_RANK = 512
"""The largest `--max-lora-rank` that vLLM takes."""


@final
@dataclass(frozen=True)
class Context:
    """What a candidate must live with. `narrowest` is the smallest side of a targeted layer, `narrowest_layer` its name.

    `directions` is the number of activation directions that the spectral pass kept in every targeted layer.
    """

    serve: str | None
    must_merge: bool
    quantized_base: str | None
    allow_modified_base: bool
    zero_stage: int
    narrowest: int
    narrowest_layer: str
    directions: int


class Variant(abc.ABC):
    """An adapter of rank `r` for a layer W (m, n), at its start point. Subclasses are final, frozen and hold only `r`.

    The update is W(theta) - W; `scale` is the factor s before B A. Words and symbols: docs/theory.md.
    """

    name: ClassVar[str]
    references: ClassVar[tuple[str, ...]]
    peft_class: ClassVar[str] = "LoraConfig"
    init: ClassVar[str] = "default"
    """`default`, or the name of factors that :mod:`lora_select.variants.initialise` writes."""
    export_rank_factor: ClassVar[int] = 1
    """Rank of the exported adapter over `r`: 2 where the start changes the base."""
    r: int

    @property
    @abc.abstractmethod
    def lora_alpha(self) -> int:
        """PEFT's `lora_alpha`."""

    @property
    @abc.abstractmethod
    def scale(self) -> float:
        """s, the factor before B A, no unit."""

    @abc.abstractmethod
    def peft_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `peft_class`, but for `target_modules` and `task_type`: plain data."""

    @abc.abstractmethod
    def num_parameters(self, shape: tuple[int, int]) -> int:
        """Trained parameters on a layer of shape (m, n)."""

    @abc.abstractmethod
    def tangent(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "TangentOperator":
        """The tangent map at `theta` (PEFT's parameter names), for the frozen weight (m, n) that PEFT sees."""

    @abc.abstractmethod
    def violations(self, context: Context) -> tuple[str, ...]:
        """Why the variant cannot be used in `context`, one sentence a rule; empty when it can."""

    @abc.abstractmethod
    def tangent_share(self, view: LayerView) -> float:
        """Share of the signal energy ||G||^2 in the tangent space at the start, the mean over random starts; no unit."""

    @abc.abstractmethod
    def tangent_share_spread(self, view: LayerView) -> float:
        """An upper bound on the standard deviation of that share over random starts; 0 where the start is fixed."""

    @abc.abstractmethod
    def displacement(self, view: LayerView) -> float:
        """rms(dW x) / rms(W x) after one sign step (Adam's first) of unit rate in every parameter; no unit.

        Signs of different coordinates are taken as uncorrelated; what they share is common to the LoRA family.
        """


def lora_arguments(variant: Variant, **changes: Any) -> dict[str, Any]:
    """Arguments of `LoraConfig` that every variant here shares: factors on both sides, no dropout, no bias."""
    plain = {"r": variant.r, "lora_alpha": variant.lora_alpha, "lora_dropout": 0.0, "bias": "none"}
    return plain | {"init_lora_weights": True} | changes


def rank_violations(variant: Variant, context: Context) -> tuple[str, ...]:
    """The rules that hold for every low-rank update: it fits the layer, merges exactly, and can be served."""
    found = []
    if variant.r > context.narrowest:
        found.append(
            f"r {variant.r} is above the smallest side {context.narrowest} of {context.narrowest_layer}; "
            f"lower r to {context.narrowest} or drop the layer from the targets"
        )
    served = variant.r * variant.export_rank_factor
    if context.serve == "vllm" and served > VLLM_MAX_RANK:
        found.append(
            f"vLLM serves adapters up to rank {VLLM_MAX_RANK}; {variant.name} at r {variant.r} exports {served}"
        )
    if context.must_merge and context.quantized_base:
        found.append(
            f"merging into a {context.quantized_base} base re-quantises the sum and changes the function; "
            "serve the adapter unmerged or train on an unquantised base"
        )
    return tuple(found)


def random_rows_spread(r: int, n: int) -> float:
    """Largest standard deviation of ||G P||^2 / ||G||^2 over random projections P of rank r in R^n.

    For G of rank one the share is Beta(r/2, (n-r)/2), of variance 2 r (n - r) / (n^2 (n + 2)); a G of higher rank averages
    it down. No unit.

    Example:
        >>> random_rows_spread(4, 4)
        0.0
    """
    return (2 * r * max(0, n - r) / (n * n * (n + 2))) ** 0.5


def random_start_displacement(scale: float, r: int, view: LayerView) -> float:
    """Displacement of W + s B A from B = 0 and PEFT's random A (uniform, variance 1 / (3 n)).

    One sign step moves B by +-1 (A has no gradient at B = 0): an output changes by s sum_k +-(a_k . x), of mean square
    s^2 r E||x||^2 / (3 n), against E||W x||^2 / m.
    """
    moved = scale**2 * r * view.activation_energy / (3 * view.in_features)
    return (moved / mean_square_output(view)) ** 0.5


def mean_square_output(view: LayerView) -> float:
    """E||W x||^2 / m, kept above zero so that a dead layer gives a large but finite ratio."""
    return max(view.output_energy / view.out_features, 1e-12)
