"""Records of the choice: spectra, candidates, decision."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_select.records.files import FileRef


@dataclass(frozen=True)
class LayerSpectra:
    """Statistics of one linear layer, W of shape (m, n) = (out, in); see docs/theory.md for each formula.

    Energies are squared Frobenius norms of the label-masked mean-loss gradient G (units: nats^2 per weight-unit^2).
    `signal_energy` is a U-statistic, unbiased and so possibly negative; `signal_energy_se` is its jackknife standard
    error. `noise_energy` is the energy of one microbatch's deviation from the mean. `heldout_values` are held-out singular
    values of G with `heldout_se`; `signal_rank` counts those above zero at a false discovery rate of 1 %. `gradient_error` is the a
    posteriori error of the stored singular system of the mean gradient, relative to that gradient, sampling noise included, at most 1.
    """

    name: str
    kind: str
    out_features: int
    in_features: int
    tokens: int
    signal_energy: float
    signal_energy_se: float
    noise_energy: float
    heldout_values: tuple[float, ...]
    heldout_se: tuple[float, ...]
    signal_rank: int
    gradient_error: float
    weight_energy: float
    weight_values: tuple[float, ...]
    """Leading singular values of W, descending."""
    weight_minor_values: tuple[float, ...]
    """Trailing singular values of W, ascending."""
    weight_residual: float
    """Largest residual of the weight's singular triplets over its largest singular value: the error of each value is below it."""
    weight_stable_rank: float
    activation_energy: float
    """Mean squared norm of the layer input, E||x||^2, per token."""
    activation_variance: float
    """E||x - E[x]||^2 per token, the sum of all eigenvalues of the centred second moment."""
    activation_values: tuple[float, ...]
    """Leading eigenvalues of the centred second moment of the inputs, per token."""
    output_energy: float
    """Mean squared norm of the layer output, E||W x||^2, per token."""
    structure: Mapping[str, float]
    """Structure scores of the signal's leading directions by field of `LayerStatistics` (`rotation@32` for a block size); empty where the
    signal energy is below two standard errors."""
    structure_se: Mapping[str, float]
    tangent_shares: Mapping[str, float]
    """Candidate tangent share at init per variant key (`<variant>@<r>`), of the *signal* energy: unbiased over folds."""
    tangent_shares_se: Mapping[str, float]
    displacements: Mapping[str, float]
    """rms(dW x)/rms(W x) after one sign step of unit rate per variant key, no unit."""


@dataclass(frozen=True)
class Spectra:
    """One streamed pass over `microbatches` training microbatches with frozen base weights.

    `tensors` holds per-layer singular systems (safetensors) that initialisations are built from.
    """

    dataset_digest: str
    model_digest: str
    microbatches: int
    folds: int
    sketch_size: int
    seed: int
    tokens: int
    label_tokens: int
    mean_loss: float
    layers: tuple[LayerSpectra, ...]
    skipped_layers: Mapping[str, str]
    tensors: FileRef
    seconds: float
    """Of the whole analysis."""
    finish_seconds: float
    """Of turning sums into records, all layers together."""
    notes: tuple[str, ...]
    """What had to be done otherwise than asked, such as a microbatch run in halves."""
    fused_experts: Mapping[str, int] = field(default_factory=dict)
    """Expert weights that one tensor of a layer holds, which the pass does not measure: name -> parameters."""
    expert_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Their shapes (experts, m, n) or (experts, n, m); empty in records of earlier versions, where they get no adapter."""
    model_parameters: int = 0
    """Of the whole model, 0 where it was not counted."""


@dataclass(frozen=True)
class Curvature:
    """Largest eigenvalue of the loss's Gauss-Newton matrix in the trainable parameters, on one microbatch.

    `value` is in nats per label and squared unit of the parameters; an eigenvalue lies within `error` of it, and the largest one
    is not below it but for rounding. `products` matrix-vector products were made, J v by `route`, in `parameters` numbers.
    """

    value: float
    error: float
    products: int
    route: str
    parameters: int


@dataclass(frozen=True)
class QuantisationError:
    """What quantising one weight W costs at its own inputs, E = W - Q(W), Z the inputs' second moment.

    `relative_error` is ||E Z^{1/2}||_F / ||W Z^{1/2}||_F. `shares` holds, per rank r, the part of ||E Z^{1/2}||_F^2 in its r
    leading directions, which the true one exceeds by at most about `share_errors[r]`: what a LoftQ start of rank r can take back.
    """

    kind: str
    relative_error: float
    shares: Mapping[int, float]
    share_errors: Mapping[int, float]


@dataclass(frozen=True)
class AdapterCosts:
    """What `lora-select analyze` measures on request: curvature of one candidate's adapter, quantisation error by layer."""

    candidate: str
    """Key of the candidate whose curvature it is."""
    curvature: Curvature | None
    quantisation: Mapping[str, QuantisationError]


@dataclass(frozen=True)
class AdapterSpec:
    """Everything that names an adapter: what the worker builds and what MLflow records.

    `scale` = alpha / r (alpha / sqrt(r) for rsLoRA); `r`, `lora_alpha` and `scale` are 0 where a variant has none. `init` names
    the start (`default`, `pissa`, `eva`). `peft_class` is the name of a config class in `peft`, built from `peft_arguments`.
    `optimizer` is empty for plain AdamW, else its name and settings: `{"name": "lora+", "lora_b_ratio": 16.0}`.
    """

    variant: str
    targets: str
    target_modules: tuple[str, ...]
    r: int
    lora_alpha: int
    scale: float
    init: str
    learning_rate: float
    peft_class: str
    peft_arguments: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    num_parameters: int

    @property
    def placed(self) -> str | list[str]:
        """PEFT's `target_modules`: a pattern of whole names where another tower has layers of the same ends, else the ends."""
        return self.peft_arguments.get("target_modules") or list(self.target_modules)

    def adapts(self, layer: str) -> bool:
        """Whether the layer of this name gets an adapter, as PEFT decides it: by a pattern of whole names, or by their ends."""
        if isinstance(self.placed, str):
            return re.fullmatch(self.placed, layer) is not None
        return any(layer == end or layer.endswith(f".{end}") for end in self.target_modules)


@dataclass(frozen=True)
class Evidence:
    """One measured number that a decision leans on: name, value, standard error (None: exact), unit, source stage."""

    name: str
    value: float
    standard_error: float | None
    unit: str
    source: str


@dataclass(frozen=True)
class CandidateScore:
    """A candidate, what was measured for it, and why it was not chosen.

    `rejected` is empty for the choice alone; sentences that begin with `tied:` mark the tie set. `score` is the share of the
    signal energy in the tangent space at the start, in [0, 1], with its standard error.
    """

    key: str
    spec: AdapterSpec
    evidence: tuple[Evidence, ...]
    score: float
    score_se: float
    rejected: tuple[str, ...]


@dataclass(frozen=True)
class Constraints:
    """Everything `select` reads besides profile and spectra: constraints, limits and the planned number of steps.

    The one type of them, from the config (`selection`, `base_model.quantize`, `training.zero_stage`) to the record of the decision.
    """

    serve: str | None = None
    must_merge: bool = False
    quantized_base: str | None = None
    allow_modified_base: bool = True
    zero_stage: int = 0
    r: int | None = None
    variant: str | None = None
    targets: str | None = None
    learning_rate: float | None = None
    planned_steps: int = 0
    max_parameters: int | None = None
    claims: Mapping[str, bool] = field(default_factory=dict)
    race_budget: float = 0.0
    """What a race may train on, as a share of the planned training; 0: no race."""
    adapt_experts: bool = True
    """Whether expert weights in one tensor get an adapter too, where PEFT has one."""
    prefer_retention: bool = False
    """Of earlier runs, so that they can be replayed: what forgets at most half as much is taken within one standard error of the best loss too."""


@dataclass(frozen=True)
class Decision:
    """The choice, its evidence, every alternative and the rule that chose; recomputable from `inputs` and records.

    `abstained` is True when nothing cleared the noise and the default (all-linear LoRA) was taken. `race_digest` is None where none
    was run.
    """

    rule: str
    rule_version: str
    profile_digest: str
    spectra_digest: str
    inputs: Constraints
    choice: AdapterSpec
    choice_key: str
    abstained: bool
    reasons: tuple[str, ...]
    candidates: tuple[CandidateScore, ...]
    race_digest: str | None = None
