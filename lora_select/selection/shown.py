"""Where the learning rate was shown: a model or a plan unlike those that its constants come from is told so, in the decision itself."""

from lora_select.records import Constraints, Spectra
from lora_select.selection.calibration import LONG_STEPS, Calibration
from lora_select.selection.candidates import Candidate
from lora_select.selection.learning_rate import lora_displacement

APART = 3.0
"""A number beyond the shown ones by more than this factor is unlike them."""
UNSHOWN = "This learning rate was never shown on "
"""How the sentence begins."""


def never_shown(candidate: Candidate, spectra: Spectra, inputs: Constraints, constants: Calibration) -> tuple[str, ...]:
    """A sentence where the model is much larger or smaller, moves much farther or less far, or trains longer than what the constants saw.

    Args:
        candidate: the choice; LoRA's displacement on its layers counts.
        spectra: for the model's parameters.
        inputs: for the planned steps.
        constants: with the ranges; a range of (0, 0) says nothing.
    """
    moved = lora_displacement(candidate)
    found = [
        f"a model of {_count(spectra.model_parameters)} parameters (shown: {_count(constants.parameters[0])} to {_count(constants.parameters[1])})"
        if _outside(spectra.model_parameters, constants.parameters)
        else "",
        f"a model that LoRA's step displaces by {moved:.2g} (shown: {constants.displacements[0]:.2g} to {constants.displacements[1]:.2g})"
        if _outside(moved, constants.displacements)
        else "",
        f"{inputs.planned_steps} steps (shown: {constants.steps} to {LONG_STEPS:g})"
        if _outside(inputs.planned_steps, (constants.steps, LONG_STEPS))
        else "",
    ]
    parts = [part for part in found if part]
    return (
        (f"{UNSHOWN}{', nor on '.join(parts)}. A race (`selection.race_budget=3`) tries three of them here.",)
        if parts
        else ()
    )


def _outside(value: float, shown: tuple[float, float]) -> bool:
    return bool(value and shown[1]) and not shown[0] / APART <= value <= shown[1] * APART


def _count(parameters: float) -> str:
    """In millions or billions.

    >>> _count(134_515_008), _count(7_241_732_096)
    ('135 M', '7.2 B')
    """
    return f"{parameters / 1e9:.2g} B" if parameters >= 1e9 else f"{parameters / 1e6:.3g} M"
