"""What rules a candidate out, in sentences: the user's words, the hard filter, and the capacity floor of the rank."""

import dataclasses
import difflib
import math
from collections.abc import Sequence

from lora_select.errors import InputError
from lora_select.records import Constraints, DatasetProfile, Spectra
from lora_select.selection.candidates import TARGETS, Candidate, context_of
from lora_select.serving import ENGINES
from lora_select.variants import VARIANTS, offered, support
from lora_select.variants.base import Variant, has_rank

FLOOR_FACTOR = 5.0
"""The rank floor over the break-even rank. Open: never the choice, only a floor."""
CLAIMS = {"tangent_share_predicts_short_runs": False}
"""Switches of what is not proven, and whether each is in force unless the config says otherwise."""


def claims_in_force(inputs: Constraints) -> dict[str, bool]:
    """Every claim with its setting.

    Raises:
        InputError: a claim is unknown.
    """
    for name in inputs.claims:
        if name not in CLAIMS:
            raise InputError(f"`selection.claims.{name}` is not a claim{_nearest(name, list(CLAIMS))}")
    return CLAIMS | dict(inputs.claims)


def check_names(inputs: Constraints) -> None:
    """Check what the user named.

    Raises:
        InputError: unknown variant, targets or claim, or a rank or learning rate that is none; all faults at once.
    """
    claims_in_force(inputs)
    faults, names = [], [variant.name for variant in VARIANTS]
    if inputs.variant is not None and inputs.variant not in names:
        faults.append(f"`selection.variant` {inputs.variant!r} is not a variant{_nearest(inputs.variant, names)}")
    kind = next((variant for variant in VARIANTS if variant.name == inputs.variant), None)
    if kind is not None and inputs.r is not None and not has_rank(kind):
        faults.append(f"{kind.name} has no rank (its size is {offered(kind, ())[0].size}); leave `selection.r` out")
    if inputs.targets is not None and inputs.targets not in TARGETS:
        faults.append(f"`selection.targets` {inputs.targets!r} is unknown{_nearest(inputs.targets, list(TARGETS))}")
    if inputs.r is not None and inputs.r < 1:
        faults.append(f"`selection.r` must be at least 1, got {inputs.r}")
    if inputs.learning_rate is not None and not 0 < inputs.learning_rate < math.inf:
        faults.append(f"`selection.learning_rate` must be above 0, got {inputs.learning_rate}")
    if faults:
        raise InputError("\n".join(faults))


def contradictions(candidate: Candidate, inputs: Constraints) -> list[str]:
    """Where the candidate is not what the user named."""
    found = []
    for name, wanted, got in (
        ("variant", inputs.variant, candidate.variant.name),
        ("targets", inputs.targets, candidate.targets),
        ("r", inputs.r, candidate.variant.r),
    ):
        if wanted is not None and got != wanted:
            found.append(f"the config names `selection.{name}` {wanted}, this is {got}")
    return found


def violations(candidate: Candidate, inputs: Constraints) -> list[str]:
    """The hard filter: constraints the candidate cannot meet."""
    found = list(candidate.variant.violations(context_of(candidate, inputs)))
    found += support.faults(candidate.variant.name, inputs)
    if inputs.max_parameters is not None and candidate.num_parameters > inputs.max_parameters:
        found.append(
            f"it has {candidate.num_parameters:,} parameters, above `max_parameters` {inputs.max_parameters:,}"
        )
    return found


def with_experts(candidates: Sequence[Candidate], spectra: Spectra, inputs: Constraints) -> tuple[Candidate, ...]:
    """The candidates, those that can with the model's expert tensors."""
    found = spectra.expert_shapes
    return tuple(dataclasses.replace(c, experts={} if experts_left(c.variant, inputs) else found) for c in candidates)


def experts_left(variant: Variant, inputs: Constraints) -> str:
    """Why expert weights in one tensor get no adapter of this variant; empty where they get one."""
    if not inputs.adapt_experts:
        return "`selection.adapt_experts` is false"
    if not variant.adapts_experts:
        return f"PEFT takes plain LoRA to them and not {variant.name}"
    if inputs.serve is not None and ENGINES[inputs.serve].form != "merged":
        return f"{ENGINES[inputs.serve].title} is given adapters of linear layers alone; --serve merged takes them"
    if inputs.quantized_base is not None:
        return f"on an {inputs.quantized_base} base that was never tried"
    return "ZeRO-3 splits them, and that was never tried" if inputs.zero_stage == 3 else ""


def rank_floor(candidate: Candidate, profile: DatasetProfile) -> float:
    """5 x the rank at which the adapter's capacity, 2 bits a parameter, equals the information in the labels; 0 for no rank."""
    return FLOOR_FACTOR * profile.information_bits * candidate.variant.r / candidate.capacity_bits


def below_floor(candidate: Candidate, profile: DatasetProfile) -> list[str]:
    """Why the rank is too low for the data, if it is."""
    floor = rank_floor(candidate, profile)
    if candidate.variant.r >= floor:
        return []
    return [
        f"r {candidate.variant.r} is below the capacity floor {floor:.1f}: the labels hold at most "
        f"{profile.information_bits:.3g} bits, the adapter about {candidate.capacity_bits:.3g}, and {FLOOR_FACTOR:g} times "
        "the data is asked for"
    ]


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return (f"; did you mean {near[0]}?" if near else "") + f"; known: {', '.join(known)}"
