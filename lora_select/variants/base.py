"""The contract of a variant: what a candidate adapter is, as a value. One final class per file in `variants/`."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, final

from lora_select import serving
from lora_select.records import AdapterSpec, Constraints
from lora_select.spectral.statistics import LayerStatistics

if TYPE_CHECKING:
    from torch import Tensor

    from lora_select.variants.tangent import TangentOperator

REFERENCE_ALPHA = 32
"""alpha = 2 r at the reference rank 16, and the same at every rank: under alpha / r at constant alpha the best learning rate
hardly depends on the rank (Thinking Machines, *LoRA Without Regret*, 2025), so one rate holds for all of them."""


@final
@dataclass(frozen=True, kw_only=True)
class Context(Constraints):
    """What a candidate must live with: the constraints and its layers.

    `narrowest` is the smallest side of a targeted layer, `narrowest_layer` its name. `directions` is the number of activation
    directions that the spectral pass kept in every targeted layer; `layers` are the targeted layers as (name, m, n), for rules of
    divisibility.
    """

    narrowest: int
    narrowest_layer: str
    directions: int
    layers: tuple[tuple[str, int, int], ...] = ()

    @classmethod
    def of(cls, constraints: Constraints, layers: tuple[tuple[str, int, int], ...], directions: int) -> "Context":
        """The constraints on these layers."""
        name, m, n = min(layers, key=lambda layer: (min(layer[1:]), layer[0]))
        return cls(**vars(constraints), narrowest=min(m, n), narrowest_layer=name, directions=directions, layers=layers)


@final
@dataclass(frozen=True)
class Cost:
    """Step time and peak memory next to LoRA r 32 in the PEFT project's MetaMathQA runs; None where nobody measured it.

    `time` is a ratio, `memory_gb` a difference. Llama-3.2-3B, q_proj and v_proj, one L40S, one seed: a guide, not a promise.
    """

    time: float | None
    memory_gb: float | None
    source: str = "PEFT method_comparison/MetaMathQA, July 2026, next to LoRA r 32 (942 s, 22.3 GB)"


@final
@dataclass(frozen=True)
class Support:
    """Where PEFT's implementation works: flags, or the reason why not (empty when it does)."""

    merge: bool = True
    """`merge_and_unload` gives the adapter's function."""
    plain_lora: bool = False
    """It is saved as plain LoRA of rank r, or converts exactly to one of `export_rank_factor` r."""
    low_rank: bool = False
    """Its update has rank r in another form than LoRA's, so its export as plain LoRA is exact at r."""
    nf4: str = ""
    int8: str = ""


UNMEASURED = Cost(None, None, "not in PEFT's MetaMathQA table")


class Variant(abc.ABC):
    """An adapter for a layer W (m, n) at its start point. Subclasses are final, frozen and hold their hyperparameters.

    `scale` is the factor s before B A. Words and symbols: docs/theory.md.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    """As a person writes it, where the class cannot be called so."""
    references: ClassVar[tuple[str, ...]]
    peft_class: ClassVar[str] = "LoraConfig"
    trained: ClassVar[tuple[str, ...]] = ("lora_A", "lora_B")
    """PEFT's names of the trained parameters of a layer; one that a shape does not need may be absent."""
    frozen: ClassVar[tuple[str, ...]] = ()
    """PEFT's names of what W(theta) also needs and training leaves alone: shared banks, masks, norms."""
    initialization: ClassVar[str] = "default"
    """`default`, or the name of factors that :mod:`lora_select.initialization` writes."""
    export_rank_factor: ClassVar[int] = 1
    """Rank of the exported adapter over `r`: 2 where the start changes the base."""
    starts_at_base: ClassVar[bool] = True
    """W(theta) = W at PEFT's start with `peft_arguments`; False where the start moves the function, which the docstring says."""
    cost: ClassVar[Cost] = UNMEASURED
    support: ClassVar[Support] = Support()
    adapts_experts: ClassVar[bool] = False
    """Whether PEFT's `target_parameters` takes it to expert weights in one tensor (experts, m, n): its form and start are plain LoRA's."""
    reference_rate: ClassVar[float | None] = None
    """Published rate, taken where no displacement was measured; None: LoRA's reference."""
    rate_source: ClassVar[str] = "of the PEFT project's own MetaMathQA run"
    r: int
    """Rank; 0 where the variant has none."""

    @property
    def size(self) -> str:
        """The hyperparameter that sets the parameters, for keys: `r16`."""
        return f"r{self.r}"

    @property
    def lora_alpha(self) -> int:
        """PEFT's `lora_alpha`; 0 where the variant has none."""
        return 0

    @property
    def scale(self) -> float:
        """s, the factor before B A, no unit; 0 where the variant has none."""
        return 0.0

    @property
    def shared_parameters(self) -> int:
        """Trained parameters that all layers share, counted once for the model."""
        return 0

    @property
    def optimizer(self) -> dict[str, Any]:
        """What :func:`lora_select.training.worker.optimizer.make_optimizer` builds: empty for AdamW at one rate."""
        return {}

    def spec(
        self,
        *,
        targets: str = "",
        target_modules: tuple[str, ...] = (),
        learning_rate: float = 0.0,
        num_parameters: int = 0,
        placed: Mapping[str, Any] | None = None,
    ) -> AdapterSpec:
        """The adapter that training builds of this variant.

        Args:
            targets: the name of the targets, such as `all-linear`.
            target_modules: ends of the targeted layers' names.
            learning_rate: of an optimizer step.
            num_parameters: trained ones, of all layers together.
            placed: PEFT's arguments that say where it is placed, beside the variant's own.
        """
        return AdapterSpec(
            variant=self.name,
            targets=targets,
            target_modules=target_modules,
            r=self.r,
            lora_alpha=self.lora_alpha,
            scale=self.scale,
            init=self.initialization,
            learning_rate=learning_rate,
            peft_class=self.peft_class,
            peft_arguments={**self.peft_arguments(), **(placed or {})},
            optimizer=self.optimizer,
            num_parameters=num_parameters,
        )

    @abc.abstractmethod
    def peft_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `peft_class`, but for `target_modules` and `task_type`: plain data."""

    @abc.abstractmethod
    def num_parameters(self, shape: tuple[int, int]) -> int:
        """Trained parameters on a layer of shape (m, n)."""

    @abc.abstractmethod
    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """W(theta), (m, n), for the frozen weight (m, n) that PEFT sees; theta by the names in `trained` and `frozen`."""

    def tangent(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "TangentOperator":
        """The tangent map of `weight_of` at `theta` in the trained parameters, by automatic differentiation."""
        from lora_select.variants.tangent import linearised

        present = tuple(name for name in self.trained if name in theta)
        return linearised(lambda point: self.weight_of(weight, point), theta, present)

    @abc.abstractmethod
    def violations(self, context: Context) -> tuple[str, ...]:
        """Why the variant cannot be used in `context`, one sentence a rule; empty when it can."""


class ClosedForm(Variant):
    """A variant whose share follows from a layer's numbers, and mostly its displacement, so that the spectral pass measures it."""

    @abc.abstractmethod
    def tangent_share(self, view: LayerStatistics) -> float:
        """Share of the signal energy ||G||^2 in the tangent space at the start, the mean over random starts; no unit."""

    @abc.abstractmethod
    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """An upper bound on the standard deviation of that share over random starts; 0 where the start is fixed."""

    def displacement(self, view: LayerStatistics) -> float:  # noqa: ARG002
        """rms(dW x) / rms(W x) after one sign step (Adam's first) of unit rate in every parameter; no unit.

        Signs of different coordinates are taken as uncorrelated; what they share is common to the LoRA family. 0 where no
        closed form is known: it is then not recorded, and the published rate is taken.
        """
        return 0.0


def has_rank(variant: type[Variant]) -> bool:
    """Whether `variant(r)` makes one of rank r; the others are offered at their one default."""
    return any(field.name == "r" and field.init for field in fields(variant))  # pyright: ignore[reportArgumentType]


def rank_violations(variant: Variant, context: Context) -> tuple[str, ...]:
    """The rules that hold for every update of rank r: it fits the layer, and what holds for every variant."""
    found = []
    if variant.r > context.narrowest:
        found.append(
            f"r {variant.r} is above the smallest side {context.narrowest} of {context.narrowest_layer}; "
            f"lower r to {context.narrowest} or drop the layer from the targets"
        )
    return (*found, *common_violations(variant, context))


def common_violations(variant: Variant, context: Context) -> tuple[str, ...]:
    """Serving, merging and quantised base, by what `support` says."""
    support, adapter = variant.support, served(variant, context.quantized_base)
    found = [*serving.unsupported(context.serve, adapter)]
    if context.must_merge:
        found += [fault for fault in serving.unmergeable(adapter) if fault not in found]
    fault = {"nf4": support.nf4, "int8": support.int8}.get(context.quantized_base or "", "")
    if fault:
        found.append(
            f"PEFT's {variant.name} {fault} on {context.quantized_base} layers; use an unquantised base or LoRA"
        )
    return tuple(found)


def served(variant: Variant, quantized_base: str | None = None) -> serving.ServedAdapter:
    """The variant as a serving engine sees it: the rank of its exact plain LoRA, if it has one, and whether it merges."""
    support = variant.support
    exported = variant.r * variant.export_rank_factor if support.plain_lora else variant.r
    rank = exported if support.plain_lora or support.low_rank else None
    return serving.ServedAdapter(variant.name, rank, variant.support.merge, quantized_base)


def whole_factors(variant: Variant, context: Context) -> tuple[str, ...]:
    """The rule of optimizers that need whole factors of a layer: ZeRO 1 to 3 hand them slices of a flat buffer."""
    if context.zero_stage == 0:
        return ()
    return (f"{variant.name}'s optimizer needs whole factors, and ZeRO stage {context.zero_stage} splits them; use 0",)


def divides(name: str, value: int, side: int, layer: str, words: str) -> tuple[str, ...]:
    """The sentence for a block size that does not divide a side of a layer; empty when it does."""
    if side % value == 0:
        return ()
    return (f"{name} {value} does not divide the {side} {words} of {layer}; choose a divisor or drop the layer",)


def random_rows_spread(r: int, n: int) -> float:
    """Largest standard deviation of ||G P||^2 / ||G||^2 over random projections P of rank r in R^n.

    For G of rank one the share is Beta(r/2, (n-r)/2), of variance 2 r (n - r) / (n^2 (n + 2)); a G of higher rank averages
    it down. No unit.

    Example:
        >>> random_rows_spread(4, 4)
        0.0
    """
    return (2 * r * max(0, n - r) / (n * n * (n + 2))) ** 0.5


def random_start_displacement(scale: float, r: int, view: LayerStatistics) -> float:
    """Displacement of W + s B A from B = 0 and PEFT's random A (uniform, variance 1 / (3 n)).

    One sign step moves B by +-1 (A has no gradient at B = 0): an output changes by s sum_k +-(a_k . x), of mean square
    s^2 r E||x||^2 / (3 n), against E||W x||^2 / m.
    """
    moved = scale**2 * r * view.activation_energy / (3 * view.in_features)
    return (moved / mean_square_output(view)) ** 0.5


def mean_square_columns(view: LayerStatistics) -> float:
    """||W||^2 E||x||^2 / (m n): the mean square of an output if x's energy does not know W's columns."""
    return view.weight_energy * view.activation_energy / (view.in_features * view.out_features)


def mean_square_output(view: LayerStatistics) -> float:
    """E||W x||^2 / m, kept above zero so that a dead layer gives a large but finite ratio."""
    return max(view.output_energy / view.out_features, 1e-12)
