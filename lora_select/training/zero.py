"""The ZeRO stages that an adapter works at: by its optimizer, and by what was measured. Imports no torch."""

from lora_select.errors import InputError
from lora_select.records import AdapterSpec, Constraints
from lora_select.variants import support

UNSPLIT_ONLY = ("lora-fa", "riemannian", "adalora")
"""Optimizers that read a layer's factors together: ZeRO 1 to 3 hand them parts of a flat tensor."""
LIVE_PARAMETERS = 2 * 10**7
"""What a rank may have gathered at ZeRO-3: DeepSpeed's `stage3_max_live_parameters`."""
EVERY = (0, 1, 2, 3)
AUTO = (0, 2, 3)
"""What `auto` chooses from: stage 1 saves less than 2 and costs as much."""


def refusal(spec: AdapterSpec, stage: int, quantize: str | None) -> str | None:
    """Why the adapter cannot be trained at a stage on such a base, or None."""
    name = spec.optimizer.get("name")
    if stage and name in UNSPLIT_ONLY:
        return f"optimizer {name!r} of variant {spec.variant} needs whole factors, which ZeRO stage {stage} splits"
    if stage == 3 and spec.peft_arguments.get("target_parameters"):
        return "experts in one tensor were never trained at ZeRO-3; `selection.adapt_experts=false` leaves them as they are"
    found = support.faults(spec.variant, Constraints(quantized_base=quantize, zero_stage=stage))
    return found[0] if found else None


def working(spec: AdapterSpec, quantize: str | None, among: tuple[int, ...] = EVERY) -> tuple[int, ...]:
    """The stages that the adapter works at, lowest first."""
    return tuple(stage for stage in among if refusal(spec, stage, quantize) is None)


def to_try(spec: AdapterSpec, asked: int | str, quantize: str | None) -> tuple[int, ...]:
    """The stage that was asked for, or all that `auto` may choose.

    Raises:
        InputError: the stage that was asked for does not work, or none does.
    """
    works = working(spec, quantize, AUTO)
    if asked == "auto" and works:
        return works
    reason = refusal(spec, 0 if asked == "auto" else int(asked), quantize)
    if reason and works:
        raise InputError(f"{reason}; set `training.zero_stage` {' or '.join(map(str, works))}, or auto")
    if reason:
        raise InputError(f"{reason}; choose another variant or another `base_model.quantize`")
    return (int(asked),)
